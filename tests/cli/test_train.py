"""`openblip train`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from openblip.training.recipe import Recipe, load_recipe

from .conftest import Run

RECIPE = """
stage: stage1
output: runs/new
init: runs/old
data:
  - {name: photos, captions: photos.jsonl}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def test_a_dry_run_prints_a_recipe_that_can_be_run(run: Run, recipe: Path, tmp_path: Path) -> None:
    ran = run("train", recipe, "epochs=3", "optimizer.lr=0.002", "--dry-run")
    assert (ran.code, ran.err) == (0, "")
    printed = tmp_path / "printed.yaml"
    printed.write_text(ran.out, encoding="utf-8")
    resolved = load_recipe(printed)
    assert resolved == load_recipe(recipe, ["epochs=3", "optimizer.lr=0.002"])
    assert (resolved.epochs, resolved.optimizer.lr) == (3, 0.002)


def test_training_gets_the_recipe_and_tells_the_folder(run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Recipe] = []

    def train(resolved: Recipe) -> Path:
        trained.append(resolved)
        return Path(resolved.output)

    monkeypatch.setattr("openblip.training.run.train", train)
    assert run("train", recipe, "output=elsewhere", "batch_size=3").lines == ["elsewhere"]
    assert trained == [load_recipe(recipe, ["output=elsewhere", "batch_size=3"])]


def test_wrong_recipes_are_explained(run: Run, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong: list[tuple[list[str | Path], str]] = [
        ([tmp_path / "no.yaml"], "no recipe at"),
        ([recipe, "epoch=3"], "epoch"),
        ([recipe, "epochs=many"], "many"),
        ([recipe, "init=null"], "init"),
    ]
    for arguments, message in wrong:
        ran = run("train", *arguments, "--dry-run")
        assert (ran.code, ran.out) == (2, "")
        assert message in ran.err
        assert ran.err.count("\n") == 1
    monkeypatch.setitem(sys.modules, "omegaconf", None)
    assert 'pip install "openblip[train]"' in run("train", recipe).err
