"""recipes/mini/train.sh: every command can be read, begins from models that are there by then, and is given once."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from openblip.training.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[1]
RUNS = "runs/mini/"
STUB = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> commands.txt
[ -n "${STOP_AT:-}" ] && [ "$(wc -l < commands.txt)" -eq "$STOP_AT" ] && exit 130
if [ "$1" = average ]; then mkdir -p "$2"; echo '{}' > "$2/config.json"; fi
"""

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="has no bash")


def start(folder: Path, stop_at: str = "") -> tuple[int, list[str]]:
    """The exit status of the script, and the commands that it gave; `openblip` is a stub that writes them down."""
    stub = folder / "bin" / "openblip"
    stub.parent.mkdir(exist_ok=True)
    stub.write_text(STUB, encoding="utf-8")
    stub.chmod(0o755)
    for name in ("data", "weights"):
        (folder / name).mkdir(exist_ok=True)
    environment = {**os.environ, "PATH": f"{stub.parent}{os.pathsep}{os.environ['PATH']}", "STOP_AT": stop_at}
    commands = folder / "commands.txt"
    commands.unlink(missing_ok=True)
    script = ["bash", str(ROOT / "recipes/mini/train.sh"), "data", "weights"]
    done = subprocess.run(script, cwd=folder, env=environment, check=False, capture_output=True, text=True)
    return done.returncode, commands.read_text(encoding="utf-8").splitlines()


def models_before(recipe: Recipe) -> set[str]:
    return {model for model in (recipe.init, recipe.decoder) if model is not None}


def test_every_command_can_be_read_and_has_what_it_begins_from(tmp_path: Path) -> None:
    status, commands = start(tmp_path)
    assert status == 0
    made: list[str] = []
    seeds: set[tuple[str, int]] = set()
    for command in commands:
        kind, first, *words = command.split()
        if kind == "train":
            recipe = load_recipe(Path(first), words)
            assert models_before(recipe) <= set(made), command
            assert recipe.data_root == "data"
            assert recipe.output.startswith(RUNS)
            assert (first, recipe.seed) not in seeds, f"{command}: gives the same batches as a run before"
            seeds.add((first, recipe.seed))
            made.append(recipe.output)
        else:
            shares = dict(word.split("=") for word in words if "=" in word)
            assert kind == "average"
            assert set(shares) <= set(made), command
            assert sum(map(float, shares.values())) == pytest.approx(1), command
            made.append(first)
    assert len(commands) == len(set(made)) == 28
    assert made[-1] == RUNS + "mini"


def test_a_chain_that_was_stopped_goes_on(tmp_path: Path) -> None:
    """Training continues by itself; a mean that is there is kept, and the one that was not finished is made."""
    _, whole = start(tmp_path)
    shutil.rmtree(tmp_path / "runs")
    status, until = start(tmp_path, stop_at="14")
    assert (status, until) == (130, whole[:14])
    finished = {command for command in until[:-1] if command.startswith("average")}
    assert len(finished) == 2
    status, again = start(tmp_path)
    assert (status, again) == (0, [command for command in whole if command not in finished])


def test_a_wrong_folder_is_told(tmp_path: Path) -> None:
    script = ["bash", str(ROOT / "recipes/mini/train.sh"), "nowhere", "weights"]
    done = subprocess.run(script, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "there is no folder nowhere: give DATA and WEIGHTS\n"
