"""The shipped recipes of BLIP and CLIP on a few images, by small models of each family."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import openblip
from openblip.checkpoints.openblip.folder import save_native
from openblip.cli import main
from openblip.errors import OpenBlipError
from openblip.evaluation.recipe import load_evaluation
from openblip.evaluation.run import Run, evaluate
from tests.checkpoints.clip_theirs import write_clip
from tests.models.blip_models import small_parts

RECIPES = Path(__file__).parents[2] / "recipes/evaluate"
SAID = ["a dog on the beach", "two children play with a red ball", "the ball", "a red dog", "two cats play"]
ANSWERS = ["red", "dog", "two", "a cat", "on the beach", "what", "the ball"]

Evaluate = Callable[..., Run]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of small models by what they do."""
    folder = tmp_path_factory.mktemp("families")
    tasks = ("caption", "answer", "match", "pair", "entail")
    for task in tasks:
        save_native(small_parts(task, folder / f"{task} words"), folder / task)
    return {task: folder / task for task in tasks} | {"clip": write_clip(folder / "clip").folder}


@pytest.fixture
def data(tmp_path: Path, image_paths: list[Path]) -> Path:
    """Five images with captions, questions and classes."""
    folder = tmp_path / "data"
    for number, (image, said) in enumerate(zip(image_paths, SAID, strict=True)):
        place = folder / "classes" / ("n1" if number % 2 else "n2")
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, place)
        with (folder / "captions.jsonl").open("a", encoding="utf-8") as file:
            print(json.dumps({"image": str(image), "captions": [said, f"{said} today"]}), file=file)
        with (folder / "questions.jsonl").open("a", encoding="utf-8") as file:
            for place_of, question in enumerate(("what is on the beach?", "how many children are there?")):
                row = {"image": str(image), "question": question, "answers": ["red"] * 5 + ["two"] * 5}
                print(json.dumps(row | {"question_id": 10 * number + place_of}), file=file)
    (folder / "answers.json").write_text(json.dumps(ANSWERS))
    return folder


@pytest.fixture
def run(data: Path, models: dict[str, Path], tmp_path: Path) -> Evaluate:
    """Run a shipped recipe with a small model on other data."""

    def run(recipe: str, model: str, table: str, *changes: str) -> Run:
        settings = [
            f"model={models[model]}",
            f"data_root={data}",
            *("data.dataset=null", "data.split=null", f"data.table={table}", "device=cpu", "dtype=float32"),
            *("batch_size=2", "captions={tokenizer: never, meteor: never, spice: never}"),
            f"output={tmp_path / 'out' / recipe}",
        ]
        return evaluate(load_evaluation(RECIPES / f"{recipe}.yaml", [*settings, *changes]))

    return run


@pytest.mark.parametrize("recipe", ["blip_coco_captions", "blip_nocaps_large"])
def test_captions(run: Evaluate, models: dict[str, Path], image_paths: list[Path], recipe: str) -> None:
    found = run(recipe, "caption", "captions.jsonl").found
    model = openblip.load(models["caption"], device="cpu", dtype="float32")
    said = model.caption(image_paths, prompt="a picture of", num_beams=3, min_new_tokens=1, max_new_tokens=16)
    assert [row.prediction for row in found.rows] == said
    assert len(set(said)) > 1 and found.metrics["cider"] >= 0


@pytest.mark.parametrize("recipe", ["blip_okvqa", "blip_aokvqa"])
def test_answers_are_the_likeliest_of_a_list(
    run: Evaluate, models: dict[str, Path], image_paths: list[Path], recipe: str
) -> None:
    done = run(recipe, "answer", "questions.jsonl", "questions.answer_list=answers.json", "questions.candidates=5")
    model = openblip.load(models["answer"], device="cpu", dtype="float32")
    asked = ["what is on the beach?", "how many children are there?"]
    best = [ranked[0] for image in image_paths for ranked in model.rank_answers(image, asked, ANSWERS, top=1, first=5)]
    assert [row.prediction for row in done.found.rows] == [one.answer for one in best]
    assert len({round(one.score, 3) for one in best}) > 1
    lines = (done.output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["log_probability"] for line in lines] == pytest.approx(
        [one.score for one in best], abs=1e-4
    )
    assert done.found.metrics["accuracy"] > 0
    assert "the likeliest of the 7 in the list" in done.found.notes[1]
    with pytest.raises(OpenBlipError, match=r"another run \(other answers to choose from\)"):
        run(recipe, "answer", "questions.jsonl", "questions.answer_list=answers.json", "questions.candidates=4")


def test_hidden_answers_are_written_for_the_challenge(run: Evaluate, capsys: pytest.CaptureFixture[str]) -> None:
    done = run("blip_vqav2_test", "answer", "questions.jsonl", "questions.answer_list=answers.json")
    assert done.found.metrics == {}
    answers = json.loads((done.output / "answers.json").read_text())
    assert [answer["question_id"] for answer in answers] == [
        10 * number + place for number in range(5) for place in (0, 1)
    ]
    assert [answer["answer"] for answer in answers] == [row.prediction for row in done.found.rows]
    assert all(0 < row.score <= 1 for row in done.found.rows)
    page = (done.output / "report.html").read_text(encoding="utf-8")
    assert "78.2" in page and "upload answers.json" in page
    again = done.recipe
    arguments = [f"{key}={getattr(again, key)}" for key in ("model", "data_root", "output", "device", "dtype")]
    arguments += ["data.dataset=null", "data.split=null", "data.table=questions.jsonl"]
    arguments += ["questions.answer_list=answers.json"]
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", str(RECIPES / "blip_vqav2_test.yaml"), *arguments])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == "Accuracy (test-dev) published 78.2, LAVIS, docs/benchmark".split()


@pytest.mark.parametrize(
    ("recipe", "model"),
    [("blip_retrieval_coco", "match"), ("blip_retrieval_flickr30k", "match"), ("clip_retrieval_coco", "clip")],
)
def test_retrieval(run: Evaluate, models: dict[str, Path], image_paths: list[Path], recipe: str, model: str) -> None:
    found = run(recipe, model, "captions.jsonl").found
    loaded = openblip.load(models[model], device="cpu", dtype="float32")
    texts = [text for said in SAID for text in (said, f"{said} today")]
    ranked = loaded.rank_both(image_paths, texts, top=1, rerank=0 if model == "clip" else 256)
    assert [row.prediction for row in found.rows[:5]] == [best[0].source for best in ranked.texts]
    assert [row.prediction for row in found.rows[5:]] == [best[0].source for best in ranked.images]
    assert 0 <= found.metrics["image_to_text_at_1"] <= found.metrics["image_to_text_at_5"] <= 1


def test_texts_are_cleaned_for_clip_alone(run: Evaluate, data: Path, image_paths: list[Path]) -> None:
    (data / "loud.jsonl").write_text(
        "".join(
            json.dumps({"image": str(path), "captions": ["A DOG, (red)! " + path.stem]}) + "\n" for path in image_paths
        )
    )
    cleaned = run("clip_retrieval_coco", "clip", "loud.jsonl").found.rows[0].references
    assert cleaned == ("a dog, red photo1",)
    assert run("blip_retrieval_flickr30k", "match", "loud.jsonl").found.rows[0].references == ("A DOG, (red)! photo1",)


def test_classes_of_clip(run: Evaluate, data: Path, models: dict[str, Path]) -> None:
    (data / "templates.txt").write_text("a photo of a {label}.\na drawing of a {}.\n")
    (data / "names.txt").write_text("dog\nred ball\n")
    files = ["classification.templates=templates.txt", "classification.names=names.txt"]
    found = run("clip_imagenet", "clip", "classes", *files).found
    model = openblip.load(models["clip"], device="cpu", dtype="float32")
    templates = ["a photo of a {}.", "a drawing of a {}."]
    paths = sorted((data / "classes").rglob("*.png"))
    chosen = [best[0].label for best in model.classify(paths, ["dog", "red ball"], templates=templates)]
    label_of = {"dog": "n1", "red ball": "n2"}
    assert {row.image: row.prediction for row in found.rows} == {
        str(path): label_of[label] for path, label in zip(paths, chosen, strict=True)
    }
    assert found.metrics["accuracy"] == sum(row.prediction == row.references[0] for row in found.rows) / 5
    (data / "templates.txt").write_text("a photo\n")
    with pytest.raises(OpenBlipError, match=r"the template 'a photo' has no \{label\} in it"):
        run("clip_imagenet", "clip", "classes", *files)


@pytest.mark.parametrize(("recipe", "model"), [("blip_nlvr2", "pair"), ("snli_ve", "entail")])
def test_statements(
    run: Evaluate, data: Path, models: dict[str, Path], image_paths: list[Path], recipe: str, model: str
) -> None:
    """Rows about the same images are judged together; a broken image leaves out its rows alone."""
    labels = {"pair": ["true", "False"], "entail": ["neutral", "entailment"]}[model]
    (data / "bad.png").write_bytes(b"x")
    pairs = [(0, 1, SAID[0]), (1, 0, SAID[0]), (0, 1, SAID[1]), (2, -1, SAID[2])]
    lines = ["left_image,right_image,statement,label" if model == "pair" else "image,other,hypothesis,label"]
    names = [*map(str, image_paths), str(data / "bad.png")]
    if model == "entail":
        pairs[-1] = (-1, 0, SAID[2])
    lines += [f"{names[a]},{names[b]},{text},{labels[row % 2]}" for row, (a, b, text) in enumerate(pairs)]
    (data / "statements.csv").write_text("\n".join(lines) + "\n")
    done = run(recipe, model, "statements.csv")
    judge = openblip.load(models[model], device="cpu", dtype="float32")
    for row, (a, b, text) in zip(done.found.rows, pairs, strict=False):
        images = (image_paths[a], image_paths[b]) if model == "pair" else image_paths[a]
        assert (row.prediction, row.question) == (judge.judge(images, text).label, text)
    assert len(done.found.rows) == 3 and "bad.png" in done.found.excluded[0].image
    right = [row.prediction.lower() == labels[place % 2].lower() for place, row in enumerate(done.found.rows)]
    assert done.found.metrics["accuracy"] == pytest.approx(sum(right) / 3)
    (data / "good.csv").write_text("\n".join(lines[:-1]) + "\n")
    first, again = (run(recipe, model, "good.csv", f"output={data / 'good'}").found for _ in range(2))
    assert first.metrics == again.metrics == done.found.metrics  # again, nothing is left to be judged
    (data / "odd.csv").write_text("image,caption,label\n" + f"{names[0]},a dog,blue\n")
    with pytest.raises(OpenBlipError, match=r"chooses among .*, and the data has blue"):
        run(recipe, model, "odd.csv", f"output={data / 'odd'}")
    (data / "odd.csv").write_text("image,caption,label\n" + f"{names[0]},,{labels[0]}\n")
    with pytest.raises(OpenBlipError, match="has no sentence to judge"):
        run(recipe, model, "odd.csv", f"output={data / 'odd2'}")
    with pytest.raises(OpenBlipError, match="match has no head to judge statements with"):
        run(recipe, "match", "statements.csv", f"output={data / 'odd3'}")


@pytest.mark.parametrize(
    ("recipe", "model", "told"),
    [
        ("blip_coco_captions", "clip", "has no language model to caption with: it can match, embed, classify"),
        ("blip_okvqa", "match", "has no language model to answer with"),
        ("blip_retrieval_coco", "caption", "has no text side to match with"),
        ("clip_imagenet", "answer", "does not compare images with the names of classes"),
    ],
)
def test_a_model_that_cannot_is_one_sentence(run: Evaluate, recipe: str, model: str, told: str) -> None:
    table = {"clip_imagenet": "classes", "blip_okvqa": "questions.jsonl"}.get(recipe, "captions.jsonl")
    changes = {
        "clip_imagenet": ["classification.templates=null", "classification.names=null"],
        "blip_okvqa": ["questions.answer_list=answers.json"],
    }
    with pytest.raises(OpenBlipError, match=told):
        run(recipe, model, table, *changes.get(recipe, []))
