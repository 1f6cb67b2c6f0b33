"""`--data` of `finetune` and `evaluate`: files of other programs and of our own commands, from the photos to scores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Run

TEXTS = ("a red ball", "two dogs on the beach", "a red car")
NUMBERS = (126107, 165518, 174375)
QUESTION = "what is it?"
Make = Callable[[Path, Run, Path], tuple[str, list[str]]]
"""Puts a file beside the folder `photos`; gives its name and the options that go with --data."""
GREEDY = ["text.num_beams=1", "text.max_new_tokens=4", "captions={tokenizer: never, meteor: never, spice: never}"]


@pytest.fixture
def photos(image_paths: list[Path], tmp_path: Path) -> list[Path]:
    """Three images with the names of COCO's."""
    places = [tmp_path / "photos" / f"{number:012d}.png" for number in NUMBERS]
    places[0].parent.mkdir()
    for image, place in zip(image_paths, places, strict=False):
        shutil.copy(image, place)
    return places


def written(name: str, content: Any, *options: str) -> Make:
    def make(root: Path, run: Run, model: Path) -> tuple[str, list[str]]:
        lines = isinstance(content, tuple)
        text = "".join(json.dumps(row) + "\n" for row in content) if lines else json.dumps(content)
        (root / name).write_text(text, encoding="utf-8")
        return name, [*options]

    return make


def vqa(root: Path, run: Run, model: Path) -> tuple[str, list[str]]:
    asked = [{"image_id": number, "question": QUESTION, "question_id": 1000 * number} for number in NUMBERS]
    answers = [{"answer": "ball", "answer_id": one, "answer_confidence": "yes"} for one in range(1, 11)]
    told = [{"question_id": 1000 * number, "image_id": number, "answers": answers} for number in NUMBERS]
    written("v2_mscoco_train2014_annotations.json", {"annotations": told})(root, run, model)
    return written("v2_OpenEnded_mscoco_train2014_questions.json", {"questions": asked})(root, run, model)


def sidecars(root: Path, run: Run, model: Path) -> tuple[str, list[str]]:
    for number, text in zip(NUMBERS, TEXTS, strict=True):
        (root / f"photos/{number:012d}.caption").write_text(text, encoding="utf-8")
    return "photos", []


def ours(name: str, *command: str, options: tuple[str, ...] = ()) -> Make:
    def make(root: Path, run: Run, model: Path) -> tuple[str, list[str]]:
        given = [str(root / part) if part == "photos" else part for part in command]
        assert run(*given, "--output", root / name, "--model", model, "--max-new-tokens", "4").code == 0
        return name, [*options]

    return make


def coco(split: str) -> list[str]:
    return [f"COCO_{split}_{number:012d}.jpg" for number in NUMBERS]


CAPTIONS = {
    "images": [{"id": number, "file_name": name} for number, name in zip(NUMBERS, coco("val2014"), strict=True)],
    "annotations": [
        {"image_id": number, "id": place, "caption": text}
        for place, (number, text) in enumerate(zip(NUMBERS, TEXTS, strict=True))
    ],
}
KARPATHY = {
    "dataset": "coco",
    "images": [
        {"filepath": "val2014", "filename": name, "split": split, "sentences": [{"raw": text}]}
        for name, split, text in zip(coco("val2014"), ("train", "restval", "test"), TEXTS, strict=True)
    ],
}
INSTRUCT = [
    {
        "id": str(number),
        "image": f"coco/train2017/{number:012d}.png",
        "conversations": [
            {"from": "human", "value": f"<image>\n{QUESTION}"},
            {"from": "gpt", "value": text},
            {"from": "human", "value": "What color?"},
            {"from": "gpt", "value": "Red."},
        ],
    }
    for number, text in zip(NUMBERS, TEXTS, strict=True)
]
MESSAGES = tuple(
    {
        "messages": [{"role": "user", "content": "<image>Describe it."}, {"role": "assistant", "content": text}],
        "images": [f"/data/train/{number:012d}.png"],
    }
    for number, text in zip(NUMBERS, TEXTS, strict=True)
)
KOHYA = {
    f"/home/me/train/{number:012d}": {"caption": text, "tags": "ball, dog"}
    for number, text in zip(NUMBERS, TEXTS, strict=True)
}
NAMED = {f"{number:012d}.png": text for number, text in zip(NUMBERS, TEXTS, strict=True)}
RUN, ASKED = ("run", "caption", "photos"), ("run", "ask", "photos", "--question", QUESTION)
slow = pytest.mark.slow  # each starts a process with a model of its own

FORMS = [
    pytest.param(written("captions_val2014.json", CAPTIONS), id="COCO"),
    pytest.param(written("dataset_coco.json", KARPATHY, "--split", "train"), id="Karpathy"),
    pytest.param(vqa, id="VQA"),
    pytest.param(written("llava_instruct.json", INSTRUCT), id="LLaVA"),
    pytest.param(written("messages.jsonl", MESSAGES, "--images", "photos"), id="messages"),
    pytest.param(written("meta_cap.json", KOHYA), id="kohya"),
    pytest.param(written("captions.json", NAMED), id="named"),
    pytest.param(sidecars, id="sidecars"),
    pytest.param(ours("out.txt", "caption", "photos"), id="caption.txt"),
    pytest.param(ours("out.jsonl", "caption", "photos", "--json", "--num-captions", "2"), id="caption.jsonl"),
    pytest.param(ours("out.jsonl", "ask", "photos", QUESTION, "how many?", "--json"), id="ask.jsonl"),
    *(pytest.param(ours(f"out.{end}", *RUN), id=f"run.{end}", marks=slow) for end in ("csv", "jsonl", "parquet")),
    pytest.param(ours("out.jsonl", *RUN, "--num-captions", "2"), id="run-2.jsonl", marks=slow),
    pytest.param(ours("out.parquet", *RUN, "--num-captions", "2"), id="run-2.parquet", marks=slow),
    pytest.param(ours("out.csv", *ASKED, options=("--question", QUESTION)), id="run-ask.csv", marks=slow),
    pytest.param(ours("out.parquet", *ASKED, "--question", "how many?"), id="run-ask-2.parquet", marks=slow),
]


@pytest.mark.parametrize("make", FORMS)
def test_a_model_learns_from_it_and_is_scored_by_it(
    run: Run, photos: list[Path], tiny_model_folder: Path, tmp_path: Path, make: Make
) -> None:
    name, options = make(tmp_path, run, tiny_model_folder)
    own = ["--data", tmp_path / name, *(tmp_path / text if text == "photos" else text for text in options)]
    new = tmp_path / "new"
    learned = run("finetune", *own, "--model", tiny_model_folder, "--output", new, "--epochs", "1")
    assert learned.code == 0, learned.err
    assert learned.lines[-1] == str(new)
    scored = run("evaluate", *own, "--model", new, "--output", tmp_path / "scores", "device=cpu", *GREEDY)
    assert scored.code == 0, scored.err
    found = json.loads((tmp_path / "scores/metrics.json").read_text(encoding="utf-8"))
    assert found["metrics"], found
    predictions = (tmp_path / "scores/predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert {Path(json.loads(line)["image"]).name for line in predictions} <= {photo.name for photo in photos}
    assert len(predictions) >= 2
