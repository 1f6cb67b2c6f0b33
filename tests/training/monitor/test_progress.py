"""What Weights & Biases is told of a run, and that a full disk does not hide what went wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from openblip.errors import OpenBlipError
from openblip.training.monitor.curves import Curves
from openblip.training.monitor.progress import RunMonitor
from openblip.training.recipe import Evaluation, MonitorSection, Recipe, Stage

CPU = torch.device("cpu")
LOGGED = {"loss/itc", "lr", "images/s", "peak memory GB"}


class Run:
    """As a run of wandb, which takes steps in order and nothing once it is finished."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = False

    def log(self, values: dict[str, float], step: int) -> None:
        assert not self.finished
        assert not self.logged or step >= self.logged[-1][0]
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Every run that a stand-in for wandb was asked for. Its `init` takes what wandb 0.31 is given here."""
    begun: list[Run] = []

    def init(*, project: str, dir: str, name: str, id: str, resume: str, config: dict[str, Any]) -> Run:
        begun.append(Run(project=project, dir=dir, name=name, id=id, resume=resume, config=config))
        return begun[-1]

    module = ModuleType("wandb")
    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return begun


def recipe(folder: Path) -> Recipe:
    folder.mkdir(parents=True, exist_ok=True)
    return Recipe(
        Stage.STAGE1,
        str(folder),
        [],
        name="balls",
        init="mini",
        log_every=2,
        monitor=MonitorSection(tensorboard=False, wandb="project"),
        evaluation=Evaluation(),
    )


def watched(folder: Path, done: int) -> None:
    with RunMonitor(recipe(folder), done, 8, ("itc",), CPU) as monitor:
        for step in range(done + 1, done + 5):
            monitor.step(step, 0, 1e-3, {"itc": float(step)}, 4)
        monitor.report(done + 4, {"evaluation": 0.5})


def test_wandb_gets_settings_losses_and_the_same_run_again(runs: list[Run], tmp_path: Path) -> None:
    watched(tmp_path / "out", 0)
    watched(tmp_path / "out", 4)
    watched(tmp_path / "other", 0)
    first, again, other = runs
    assert first.settings["id"] == again.settings["id"] != other.settings["id"]
    assert first.settings["id"].isalnum() and len(first.settings["id"]) <= 64
    told = {name: first.settings[name] for name in ("project", "dir", "name", "resume")}
    assert told == {"project": "project", "dir": str(tmp_path / "out"), "name": "balls", "resume": "allow"}
    assert first.settings["config"]["stage"] == "stage1", "words, as recipes have them"
    assert json.dumps(first.settings["config"])
    assert [step for step, _ in first.logged] == [2, 4, 4]
    assert [step for step, _ in again.logged] == [6, 8, 8]
    assert first.logged[0][1]["loss/itc"] == 1.5 and first.logged[0][1].keys() == LOGGED
    assert first.logged[-1][1] == {"evaluation": 0.5}
    assert all(run.finished for run in runs)


def test_without_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(OpenBlipError, match="pip install wandb, or leave it out"):
        watched(tmp_path, 0)


def test_what_went_wrong_is_told_though_the_curves_cannot_be_written(
    runs: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Curves) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Curves, "write", full)
    with (
        pytest.raises(OpenBlipError, match="the loss is not finite"),
        RunMonitor(recipe(tmp_path), 0, 8, ("itc",), CPU),
    ):
        raise OpenBlipError("the loss is not finite")
    with pytest.raises(OSError, match="No space left"), RunMonitor(recipe(tmp_path), 0, 8, ("itc",), CPU):
        pass


def test_wandb_that_cannot_be_reached(runs: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**settings: object) -> Run:
        raise RuntimeError("no\nnetwork")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(OpenBlipError, match=r"cannot be begun \(no network\): log in with .* WANDB_MODE=offline"):
        watched(tmp_path, 0)


def test_curves_that_a_kill_has_cut(tmp_path: Path) -> None:
    curves = Curves(tmp_path, 0, ("itc",))
    for step in range(1, 14):
        curves.add(step, 0, 1e-3, {"itc": 1.0})
    curves.write()
    whole = curves.table.path.read_text()
    for cut in ("\n1", "\n14,0", "\n14,0,1e-3,0.5", "\0\0\0", "\nnonsense\n", "\n14,0,1e-3,0.5,9\n"):
        curves.table.path.write_text(whole.rstrip("\n") + cut)
        again = Curves(tmp_path, 13, ("itc",))
        # A line that the disk lost the end of is another one than was written.
        expected = 12 if cut == "\0\0\0" else 13
        assert [row["step"] for row in again.table.kept] == [str(step + 1) for step in range(expected)], cut
