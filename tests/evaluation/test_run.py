"""From a recipe to files: what is in them, killed runs, other runs' folders."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import openblip
from openblip.checkpoints import origin
from openblip.checkpoints.blip2_models import MINI
from openblip.errors import OpenBlipError
from openblip.evaluation.recipe import load_evaluation
from openblip.evaluation.run import evaluate, number_format
from openblip.models.model import Model
from tests import warm


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_files(recipe: Path, tiny_model: Model, image_paths: list[Path], tmp_path: Path) -> None:
    run = evaluate(load_evaluation(recipe))
    said = tiny_model.caption(list(image_paths))
    rows = lines(tmp_path / "out/predictions.jsonl")
    assert [row["row"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert [row.get("prediction") for row in rows] == [*said[:2], None, *said[2:]]
    assert "is not an image" in rows[2]["error"]
    assert rows[0]["image"] == str(image_paths[0])
    assert rows[0]["references"] == ["a dog runs on the beach"]
    assert rows[0]["scores"]["cider"] == run.found.rows[0].score
    assert rows[0]["log_probability"] < 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text(encoding="utf-8"))
    assert metrics["metrics"] == run.found.metrics
    assert metrics["rows"] == 5
    assert [image["image"] for image in metrics["excluded"]] == [str(tmp_path / "data/broken.jpg")]
    assert metrics["about"]["number format"] == "float32"
    assert metrics["about"]["seconds"] >= 0
    assert metrics["recipe"]["batch_size"] == 2
    assert metrics["recipe"]["captions"]["meteor"] == "never"
    assert (tmp_path / "out/report.html").is_file()


def test_answers_as_the_hub_keeps_them(recipe: Path, image_paths: list[Path], tmp_path: Path) -> None:
    """Objects of ten people are ten answers, in a CSV of pandas, too; a question may hold any character."""
    given = [
        {"answer": text, "answer_confidence": "yes", "answer_id": at} for at, text in enumerate(["red"] * 9 + ["two"])
    ]
    question = "what\u2028color?"
    row = {"image": str(image_paths[0]), "question": question, "answers": given}
    (tmp_path / "data/vqa.jsonl").write_text(json.dumps(row), encoding="utf-8")
    with (tmp_path / "data/vqa.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*row])
        writer.writeheader()
        writer.writerow(row)
    for table in ("vqa.jsonl", "vqa.csv"):
        changes = ["data.captions=null", f"data.table={table}", f"output={tmp_path / table}.out"]
        evaluate(load_evaluation(recipe, ["task=questions", *changes]))
        (told,) = (json.loads(line) for line in (tmp_path / f"{table}.out/predictions.jsonl").read_bytes().splitlines())
        assert (told["question"], told["references"]) == (question, ["red"] * 9 + ["two"])


KILLED = """
import os, signal, sys
from pathlib import Path
from openblip.evaluation.recipe import load_evaluation
from openblip.evaluation.run import evaluate

def progress(done, total):
    if done == 4:
        os.kill(os.getpid(), signal.SIGKILL)

evaluate(load_evaluation(Path(sys.argv[1])), progress)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_run_goes_on(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(load_evaluation(recipe, [f"output={tmp_path / 'whole'}"]))
    killed = warm.run(["-c", KILLED, str(recipe)])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(lines(tmp_path / "out/predictions.jsonl")) == 4
    asked: list[str] = []
    caption_many = Model.caption_many

    def watched(self: Model, images: Any, **options: Any) -> Any:
        return caption_many(self, (asked.append(str(image)) or image for image in images), **options)  # type: ignore[func-returns-value]

    monkeypatch.setattr(Model, "caption_many", watched)
    resumed = evaluate(load_evaluation(recipe))
    assert len(asked) == 3, "the broken one is tried again, and two were left"
    assert resumed.found == whole.found
    assert "seconds" not in resumed.about, "the time of a part is not the time of the whole"
    assert lines(tmp_path / "out/predictions.jsonl") == lines(tmp_path / "whole/predictions.jsonl")
    asked.clear()
    again = evaluate(load_evaluation(recipe, ["captions.tokenizer=auto", "examples=1"]))
    assert len(asked) == 1, "scores and page can be made anew from the predictions"
    assert len(again.found.rows) == 5


@pytest.mark.parametrize(("dtype", "told"), [("float32", "float32"), ("int8", "int8 and float32")])
def test_the_number_format_is_told(tiny_model_folder: Path, dtype: str, told: str) -> None:
    assert number_format(openblip.load(tiny_model_folder, device="cpu", dtype=dtype)) == told


@pytest.mark.parametrize("override", ["text.num_beams=2", "limit=4", "dtype=int8"])
def test_another_runs_predictions_are_not_taken_for_ones_own(recipe: Path, tmp_path: Path, override: str) -> None:
    evaluate(load_evaluation(recipe))
    before = (tmp_path / "out/predictions.jsonl").read_bytes()
    with pytest.raises(OpenBlipError, match="holds predictions of another run"):
        evaluate(load_evaluation(recipe, [override]))
    assert (tmp_path / "out/predictions.jsonl").read_bytes() == before


def test_predictions_of_the_bundled_models_former_weights_are_not_its_own(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_evaluation(recipe, ["model=mini", "limit=2"])
    evaluate(settings)
    evaluate(settings)
    upgraded = Path(shutil.copytree(str(MINI.folder), tmp_path / "mini"))
    os.utime(upgraded / "model.safetensors", (1e9, 1e9))
    monkeypatch.setattr(origin, "folder_of", lambda name: upgraded)
    with pytest.raises(OpenBlipError, match=r"holds predictions of another run \(other weights\)"):
        evaluate(settings)


def test_a_damaged_journal_is_told(recipe: Path, tmp_path: Path) -> None:
    evaluate(load_evaluation(recipe))
    (tmp_path / "out/predictions.jsonl").write_text("[1]\n", encoding="utf-8")
    with pytest.raises(OpenBlipError, match=r"line 1, is no prediction"):
        evaluate(load_evaluation(recipe))


def test_a_damaged_note_of_what_made_them_is_told(recipe: Path, tmp_path: Path) -> None:
    evaluate(load_evaluation(recipe))
    for content in ("{", "[1]", ""):
        (tmp_path / "out/made_by.json").write_text(content, encoding="utf-8")
        with pytest.raises(OpenBlipError, match=r"made_by\.json is broken.*delete .* to begin anew"):
            evaluate(load_evaluation(recipe))


def test_retrieval_keeps_its_own_journal(recipe: Path, tmp_path: Path) -> None:
    run = evaluate(load_evaluation(recipe, ["task=retrieval", "retrieval.rerank=2"]))
    rows = lines(tmp_path / "out/predictions.jsonl")
    assert len(rows) == len(run.found.rows) == 10
    assert len(lines(tmp_path / "out/matches.jsonl")) == 5
    assert evaluate(load_evaluation(recipe, ["task=retrieval", "retrieval.rerank=2"])).found == run.found


def test_two_runs_do_not_share_a_folder(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out/.lock"), pytest.raises(OpenBlipError, match="another run"):
        evaluate(load_evaluation(recipe))


def test_data_that_do_not_fit_are_told_before_the_model_loads(recipe: Path) -> None:
    with pytest.raises(OpenBlipError, match="no question"):
        evaluate(load_evaluation(recipe, ["task=questions", "model=no-such-model"]))
