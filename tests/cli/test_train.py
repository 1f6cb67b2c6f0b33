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


DEEP = "[" * 3000 + "]" * 3000
KEYS = "|[|]|.|..|a.|.a|a..b|a[0|a[0]]|a[]|[0]|data[x].name|data[9].name|data.9.name|data.x|data.-1.name|optimizer."
UNICODE = [" ", "\t", "é", "🙂", "\u202e", "\ud800", "a\nb", "{", "${seed}", "a" * 100_000]
VALUES = ["", "[", "{", "=1", "1e400", ".inf", "1" * 100_000, DEEP, "\x1b[31m", "²", "${", "???"]
ODD_OVERRIDES = [
    *(f"{key}=1" for key in [*KEYS.split("|"), *UNICODE]),
    *(f"epochs={value}" for value in VALUES),
    *(f"data={value}" for value in ["x", "[]", "[1]", "{}", "[{}]", "1", "null", DEEP]),
    *(f"optimizer={value}" for value in ["1", "null", "[1]", "{lr: x}", "{" * 3000, "{a: " * 3000 + "}" * 3000]),
    *("", "=", "epochs", "name=&a [*a]", "name=\0", "output.x=1", "data.0.name.x=1", "lora.rank=1", "new=1", "stage=x"),
]


@pytest.mark.parametrize("override", ODD_OVERRIDES, ids=lambda text: ascii(text[:20]))
def test_an_odd_override_is_told_in_a_sentence(run: Run, recipe: Path, override: str) -> None:
    ran = run("train", recipe, override, "--dry-run")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ran.err.startswith("error: ") and len(ran.err) < 1000


@pytest.mark.parametrize(
    "arguments",
    [
        ["caption", "a\0b.png"],
        ["ask", "a\0b/", "what is it?"],
        ["embed", "photos", "--output", "a\0b.npz"],
        ["match", "photo.png", "a\0b"],
        ["train", "a\0b.yaml"],
        ["evaluate", "a.yaml", "output=a\0b"],
        ["convert", "mini", "a\0b", "--to", "openblip"],
        ["quantize", "a\0b", "c"],
        ["caption", "photo.png", "--model", "a\0b"],
        ["finetune", "--data", "a\0b"],
        ["inspect", "\0"],
        ["download", "a/b\0"],
    ],
    ids=lambda words: words[0],
)
def test_what_no_path_can_hold_is_told_in_a_sentence(run: Run, arguments: list[str]) -> None:
    ran = run(*arguments)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert "holds a character of the code 0" in ran.err


def test_a_changed_fine_tuning_is_told_by_its_options(
    run: Run, image_paths: list[Path], tmp_path: Path, tiny_model_folder: Path
) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text("image,caption\n" + "".join(f"{image_path},a red ball\n" for image_path in image_paths))
    command = ["finetune", "--data", table, "--model", tiny_model_folder, "--output", tmp_path / "new", "--epochs", "1"]
    assert run(*command, "--lr", "0.001").code == 0
    checkpoint = tmp_path / "new/checkpoint.pt"
    kept = checkpoint.read_bytes()
    changed: list[tuple[list[str], str]] = [
        (["--lr", "0.002"], "--lr was 0.001, now 0.002"),
        (["--lr", "0.001", "--seed", "7"], "--seed was 42, now 7"),
        (["--lr", "0.002", "--batch-size", "3"], "--batch-size was 2, now 3; --lr was 0.001, now 0.002"),
        (["--lr", "0.001", "--lora"], "--lora was null, now {"),
    ]
    for options, told in changed:
        ran = run(*command, *options)
        assert ran.code == 2
        names = ", ".join(part.partition(" was ")[0] for part in told.split("; "))
        line = ran.err.splitlines()[-1]
        assert line.startswith(f"error: {checkpoint} is of another run, which differs in {names}: delete it, or give ")
        assert f", or go on with its settings: {told}" in line
        assert checkpoint.read_bytes() == kept
    assert run(*command, "--lr", "0.001").code == 0
