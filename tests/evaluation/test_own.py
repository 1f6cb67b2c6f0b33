"""Evaluations of own data and of test sets: the task is found, and servers' files are as their tools read them."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import pytest

from openblip.data.sources.own import OwnData
from openblip.errors import OpenBlipError
from openblip.evaluation.own import EvaluateOptions, evaluation_recipe
from openblip.evaluation.run import Run, evaluate
from openblip.evaluation.settings import Accuracy, Decision, Task

NUMBERS = (391895, 42, 7)
COCO = {
    "info": {},
    "licenses": [],
    "images": [{"id": number, "file_name": f"COCO_test2014_{number:012d}.jpg"} for number in NUMBERS],
}
QUESTIONS = {
    "data_type": "mscoco",
    "data_subtype": "test2015",
    "questions": [
        {"image_id": number, "question": question, "question_id": 1000 * number + place}
        for number in NUMBERS
        for place, question in enumerate(["What is it?", "Is it red?"])
    ],
}


@pytest.fixture
def data(image_paths: list[Path], tmp_path: Path) -> Path:
    """Two images of three, in a folder of another layout."""
    for number, image in zip(NUMBERS[:2], image_paths, strict=False):
        path = tmp_path / f"images/test2017/{number:012d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, path)
    return tmp_path


def run(data: Path, model: Path, name: str, content: object, **options: object) -> Run:
    (data / name).write_text(json.dumps(content))
    source = OwnData(data / name, data / "images")
    made = evaluation_recipe(EvaluateOptions(str(model), source, data / f"{name}.out", **options))  # type: ignore[arg-type]
    made.captions.tokenizer = made.captions.meteor = made.captions.spice = type(made.captions.spice).NEVER
    made.device = "cpu"
    return evaluate(made)


def test_captions_for_the_server(data: Path, tiny_model_folder: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    done = run(data, tiny_model_folder, "image_info_test2014.json", COCO, results=data / "new/captions_results.json")
    assert done.found.metrics == {} and len(done.found.rows) == 2 and len(done.found.excluded) == 1
    assert "1 empty captions, of images that could not be read" in " ".join(done.found.notes)
    rows = json.loads((data / "new/captions_results.json").read_text())
    assert [row["image_id"] for row in rows] == [*NUMBERS] and all(type(row["image_id"]) is int for row in rows)
    assert [row["caption"] for row in rows] == [*(row.prediction for row in done.found.rows), ""]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO(str(data / "image_info_test2014.json"))
        read = truth.loadRes(str(data / "new/captions_results.json"))
    assert sorted(read.getImgIds()) == sorted(NUMBERS)
    assert read.imgToAnns[42][0]["caption"] == rows[1]["caption"]
    page = (done.output / "report.html").read_text(encoding="utf-8")
    assert "upload captions_results.json" in page


def test_answers_for_the_server(data: Path, tiny_model_folder: Path) -> None:
    name = "v2_OpenEnded_mscoco_test2015_questions.json"
    done = run(data, tiny_model_folder, name, QUESTIONS)
    assert done.recipe.questions.accuracy is Accuracy.HIDDEN
    rows = json.loads((done.output / "answers.json").read_text())
    ids = [question["question_id"] for question in QUESTIONS["questions"]]  # type: ignore[index]
    assert [(row["question_id"], type(row["answer"])) for row in rows] == [(number, str) for number in ids]
    assert [row["answer"] for row in rows[:4]] == [row.prediction for row in done.found.rows]
    assert [row["answer"] for row in rows[4:]] == ["", ""]
    twice = {**QUESTIONS, "questions": [QUESTIONS["questions"][0]] * 2}  # type: ignore[index]
    with pytest.raises(OpenBlipError, match="the question 391895000 is there twice"):
        run(data, tiny_model_folder, "twice.json", twice)


def test_the_task_follows_from_the_data(data: Path, tiny_model_folder: Path) -> None:
    def made(content: str, **options: object) -> tuple[Task, object]:
        (data / "own.csv").write_text(content)
        options_ = EvaluateOptions("mini", OwnData(data / "own.csv"), data / "out", **options)  # type: ignore[arg-type]
        recipe = evaluation_recipe(options_)
        more = {Task.QUESTIONS: recipe.questions.accuracy, Task.CLASSIFICATION: recipe.classification.by}
        return recipe.task, more.get(recipe.task)

    image = f"images/test2017/{42:012d}.jpg"
    assert made(f"image,caption\n{image},a dog\n") == (Task.CAPTIONS, None)
    assert made(f"image,question,answer\n{image},what?,a dog\n") == (Task.QUESTIONS, Accuracy.EXACT)
    ten = json.dumps(["red"] * 10).replace('"', '""')
    assert made(f'image,question,answers\n{image},what?,"{ten}"\n') == (Task.QUESTIONS, Accuracy.VQA)
    assert made(f"image,label\n{image},dog\n") == (Task.CLASSIFICATION, Decision.CONTRAST)
    assert made(f"image,hypothesis,label\n{image},a dog,neutral\n") == (Task.CLASSIFICATION, Decision.JUDGE)
    both = f"image,caption,question,answer\n{image},a dog,what?,dog\n"
    with pytest.raises(OpenBlipError, match="has captions and questions: choose one with --task"):
        made(both)
    assert made(both, task=Task.QUESTIONS)[0] is Task.QUESTIONS
    with pytest.raises(OpenBlipError, match=r"none of the 1 images of .*own.csv is there .*--images"):
        made("image,caption\ngone.jpg,a dog\n")


def test_results_need_numbers(data: Path, tiny_model_folder: Path) -> None:
    image = f"test2017/{42:012d}.jpg"
    with pytest.raises(OpenBlipError, match=r"has the id 'test2017/0.*servers of COCO and NoCaps take numbers"):
        run(data, tiny_model_folder, "own.json", [{"image": image, "caption": "a dog"}], results=data / "r.json")
    rows = [{"image": image, "image_id": 42, "caption": "a dog"}, {"image": image, "image_id": 42, "caption": "a cat"}]
    run(data, tiny_model_folder, "own.json", rows, results=data / "r.json")
    assert [row["image_id"] for row in json.loads((data / "r.json").read_text())] == [42]
    with pytest.raises(OpenBlipError, match="retrieval has no file of results"):
        run(data, tiny_model_folder, "own.json", rows, task=Task.RETRIEVAL, results=data / "r.json")
