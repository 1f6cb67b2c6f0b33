"""`openblip evaluate`."""

from __future__ import annotations

import json
import sys
from io import StringIO
from pathlib import Path

import pytest

from openblip.cli.progress import EVERY_SECONDS, ProgressLines, show_progress
from openblip.evaluation.recipe import load_evaluation

from .conftest import Run

RECIPE = """
task: captions
output: runs/new
data: {name: photos, captions: photos.jsonl}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def test_a_dry_run_prints_a_recipe_that_can_be_run(run: Run, recipe: Path, tmp_path: Path) -> None:
    ran = run("evaluate", recipe, "limit=3", "text.num_beams=2", "--dry-run")
    assert (ran.code, ran.err) == (0, "")
    printed = tmp_path / "printed.yaml"
    printed.write_text(ran.out, encoding="utf-8")
    assert load_evaluation(printed) == load_evaluation(recipe, ["limit=3", "text.num_beams=2"])


def test_a_table_a_page_and_what_was_left_out(
    run: Run, tiny_model_folder: Path, image_paths: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    rows = [
        f'{{"image": "{path.as_posix()}", "captions": ["a dog"]}}' for path in (image_paths[0], broken, image_paths[1])
    ]
    (tmp_path / "photos.jsonl").write_text("\n".join(rows), encoding="utf-8")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE + "published: [{metric: cider, value: 1.458, source: a paper}]\n", encoding="utf-8")
    settings = ["captions={tokenizer: never, meteor: never, spice: never}", "device=cpu"]
    output = tmp_path / "out"
    ran = run("evaluate", path, f"model={tiny_model_folder}", f"data_root={tmp_path}", f"output={output}", *settings)
    assert ran.code == 1
    assert ran.err == ""
    assert [line.split()[0] for line in ran.lines[:6]] == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"]
    assert "published 145.8" in ran.lines[5]
    assert "a paper" in ran.lines[5]
    assert f"left out: {broken}: is not an image" in ran.out
    assert ran.lines[-1] == str(output / "report.html")
    assert (output / "report.html").is_file()
    stopped = run(
        "evaluate",
        path,
        f"model={tiny_model_folder}",
        f"data_root={tmp_path}",
        f"output={output}",
        *settings,
        "on_bad_image=stop",
    )
    assert stopped.code == 2
    assert "on_bad_image=skip" in stopped.err


def test_wrong_recipes_are_explained(run: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, message in (
        ([tmp_path / "no.yaml"], "no recipe at"),
        ([recipe, "num_beams=3"], "num_beams"),
        ([recipe, f"data_root={tmp_path}"], "photos.jsonl"),
    ):
        ran = run("evaluate", *arguments)
        assert (ran.code, ran.out) == (2, "")
        assert message in ran.err
        assert ran.err.count("\n") == 1
    monkeypatch.setitem(sys.modules, "omegaconf", None)
    assert 'pip install "openblip[eval]"' in run("evaluate", recipe).err


def test_ctrl_c_says_that_the_run_goes_on(run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("openblip.evaluation.run.evaluate", interrupted)
    ran = run("evaluate", recipe)
    assert (ran.code, ran.out) == (130, "")
    assert ran.err == "stopped: what was done is kept, and the same command goes on from there\n"


def test_logs_get_a_line_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    lines = ProgressLines("images", lambda: now[0])
    lines(100, 400)  # of an earlier run
    for done in range(101, 301):
        now[0] += EVERY_SECONDS / 48
        lines(done, 400)
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 4
    assert told[-1] == "292 of 400 images, 0.80 a second, 2 minutes left"


def test_terminals_get_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with show_progress("images") as progress:
        for done in range(4):
            progress(done, 3)
    assert "3/3" in terminal.getvalue()


def test_data_instead_of_a_recipe(
    run: Run, tiny_model_folder: Path, image_paths: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"image": str(path), "caption": "a dog"} for path in image_paths[:2]] + [
        {"image": "gone.jpg", "caption": "x"}
    ]
    (tmp_path / "own.json").write_text(json.dumps(rows))
    settings = ["captions={tokenizer: never, meteor: never, spice: never}", "device=cpu", "limit=2"]
    ran = run("evaluate", "--model", tiny_model_folder, "--data", tmp_path / "own.json", *settings)
    assert ran.code == 0, ran.err
    assert "1 of 3 images are missing" in caplog.text
    assert ran.lines[-1] == str(tmp_path / "own-evaluation/report.html")
    ran = run("evaluate", "--data", tmp_path / "own.json", "num_beams=3")
    assert ran.code == 2 and "num_beams" in ran.err
    for arguments, words in (
        (["--model", "mini", "x.yaml"], "--model goes with --data: in a recipe, write KEY=VALUE"),
        ([], "give RECIPE.yaml, or --data TABLE"),
        (["x.yaml", "--data", tmp_path / "own.json"], "give a recipe or --data, not both"),
    ):
        ran = run("evaluate", *arguments)
        assert (ran.code, ran.out) == (2, "") and words in ran.err
