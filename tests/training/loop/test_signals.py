"""Runs that are asked to stop; and files that are broken, hostile, or of another run."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from openblip.errors import OpenBlipError
from openblip.training.loop.checkpoint import BEST_FILE, CHECKPOINT_FILE
from openblip.training.recipe import load_recipe
from openblip.training.run import train
from tests.training.parallel.test_processes import free_port
from tests.training.recipes import EVALUATED
from tests.warm import Process

STEPS = 24
WAITING = """
import os, sys, time
from openblip.cli import main
from openblip.training.loop.trainer import Trainer

step = Trainer._step
def waiting(self, *arguments):
    while self.state.position.total == 2 and os.environ.get("RANK") != "0" and not self.stop._noted:
        open(os.environ["WAITS"], "w").close()
        time.sleep(0.01)
    return step(self, *arguments)

Trainer._step = waiting
main(sys.argv[1:])
"""
"""The signal comes in the third step, however long it takes to get there; the first of two processes gets none.

The process that waits says so in a file: the curves tell of two steps while another process is still in the second.
"""


@pytest.fixture
def recipe(tmp_path: Path, data: Path, tiny_model_folder: Path) -> Path:
    """Stage 1 on images, six epochs of four steps."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"stage: stage1\ninit: {tiny_model_folder.as_posix()}\ndata_root: {data.as_posix()}\ncache: null\n"
        f"output: {(tmp_path / 'run').as_posix()}\n"
        "data: [{name: balls, captions: captions.jsonl}]\n"
        "epochs: 6\nbatch_size: 5\nlog_every: 1\nsave_every: 1000\nthreads: 1\ndevice: cpu\n"
        "monitor: {tensorboard: false}\noptimizer: {lr: 2.0e-3, warmup_steps: 4}\n"
    )
    return path


def wait_for(process: Process, file: Path) -> None:
    while process.poll() is None and not file.exists():
        time.sleep(0.01)


def first_epoch(path: Path, *overrides: str) -> Path:
    """A run whose checkpoint is there."""
    return train(load_recipe(path, ["epochs=1", *overrides]))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_run_that_is_asked_to_stop_saves_where_it_is(recipe: Path, tmp_path: Path, number: signal.Signals) -> None:
    command = ["-c", WAITING, "train", str(recipe)]
    with Process(
        command,
        env={**os.environ, "WAITS": str(tmp_path / "waits")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        wait_for(process, tmp_path / "waits")
        process.send_signal(number)
        _, told = process.communicate(timeout=600)
    assert process.returncode == 128 + number, told
    assert "Traceback" not in told and "once more stops at once" in told
    position = torch.load(tmp_path / "run" / CHECKPOINT_FILE, weights_only=True)["position"]
    assert position["total"] == 3, "in the middle of an epoch nothing else would have saved it"
    assert f"stopped after step 3 of {STEPS}" in told and "the same command goes on" in told
    whole = train(load_recipe(recipe, [f"output={tmp_path / 'whole'}"]))
    resumed = train(load_recipe(recipe))
    expected, found = (load_file(folder / "model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert (resumed / "curves.csv").read_text() == (whole / "curves.csv").read_text()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_processes_stop_together_though_one_alone_is_asked_to(recipe: Path, tmp_path: Path) -> None:
    shared = {
        **os.environ,
        "WAITS": str(tmp_path / "waits"),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": "2",
    }
    running = [
        Process(
            ["-c", WAITING, "train", str(recipe), "batch_size=4"],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    wait_for(running[1], tmp_path / "waits")
    running[1].send_signal(signal.SIGTERM)
    told = [process.communicate(timeout=600)[1] for process in running]
    assert [process.returncode for process in running] == [128 + signal.SIGTERM] * 2, told
    position = torch.load(tmp_path / "run" / CHECKPOINT_FILE, weights_only=True)["position"]
    assert position["total"] == 3
    assert all("stopped after step 3 of 30" in each for each in told)


def while_writing(name: str, after: int, whole: bool) -> Callable[[pytest.MonkeyPatch], None]:
    """Killed at the `after`-th file of that name: half written, or written but without its name."""

    def arrange(patch: pytest.MonkeyPatch) -> None:
        replace, seen = Path.replace, 0

        def killed(self: Path, target: Path) -> Path:
            nonlocal seen
            seen += target.name.endswith(name)
            if seen == after:
                if not whole:
                    os.truncate(self, self.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(self, target)

        patch.setattr(Path, "replace", killed)

    return arrange


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_killed_at_the_worst_moments(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [*EVALUATED, "epochs=2", "save_every=1", f"cache={tmp_path / 'features'}"]
    whole = train(load_recipe(recipe, [*settings, f"output={tmp_path / 'whole'}", f"cache={tmp_path / 'others'}"]))
    moments = [
        while_writing(".npy", 1, False),  # features: rows
        while_writing(".npy", 1, True),
        while_writing(".json", 1, True),  # and their names
        while_writing(CHECKPOINT_FILE, 1, False),  # the first one: there is none yet
        while_writing(CHECKPOINT_FILE, 3, False),
        while_writing(CHECKPOINT_FILE, 2, True),
        while_writing(BEST_FILE, 1, False),
        while_writing("model.safetensors", 1, True),  # the trained model: nothing of it yet
        while_writing("config.json", 1, True),  # all but the file that makes it count
    ]
    for number, arrange in enumerate(moments):
        child = os.fork()
        if not child:
            with monkeypatch.context() as patch:
                arrange(patch)
                train(load_recipe(recipe, settings))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"moment {number} did not come"
        assert not (tmp_path / "run/config.json").exists()
    found = train(load_recipe(recipe, settings))
    expected, learnt = (load_file(folder / "model.safetensors") for folder in (whole, found))
    assert all(torch.equal(expected[name], learnt[name]) for name in expected)
    assert (found / "curves.csv").read_text() == (whole / "curves.csv").read_text()
    assert not list(found.glob("*.draft")) and not list((tmp_path / "features").rglob("*.draft"))


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (os.environ["EVIL"],)


def truncated(path: Path, content: dict[str, Any]) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path, content: dict[str, Any]) -> None:
    path.write_bytes(b"")


def text(path: Path, content: dict[str, Any]) -> None:
    path.write_text("what is this")


def with_code(path: Path, content: dict[str, Any]) -> None:
    torch.save({**content, "position": Evil()}, path)


def bare_pickle(path: Path, content: dict[str, Any]) -> None:
    path.write_bytes(pickle.dumps(Evil()))


def a_list(path: Path, content: dict[str, Any]) -> None:
    torch.save([content], path)


def compressed(path: Path, content: dict[str, Any]) -> None:
    torch.save({"parameters": {"a": torch.zeros(10**6)}}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def giant(path: Path, content: dict[str, Any]) -> None:
    """Ten terabytes in four bytes."""
    name = next(name for name, tensor in content["parameters"].items() if tensor.ndim == 2)
    torch.save(content | {"parameters": {**content["parameters"], name: torch.zeros(1).expand(10**6, 10**7)}}, path)


def wrong_shape(path: Path, content: dict[str, Any]) -> None:
    parameters = {name: tensor[:1] if tensor.ndim else tensor for name, tensor in content["parameters"].items()}
    torch.save(content | {"parameters": parameters}, path)


def wrong_moments(path: Path, content: dict[str, Any]) -> None:
    optimizer = {
        name: {key: torch.ones(3) if key == "exp_avg" else value for key, value in state.items()}
        for name, state in content["optimizer"].items()
    }
    torch.save(content | {"optimizer": optimizer}, path)


def no_place(path: Path, content: dict[str, Any]) -> None:
    torch.save(content | {"position": {**content["position"], "step": -3}}, path)


def half(path: Path, content: dict[str, Any]) -> None:
    torch.save({name: value for name, value in content.items() if name != "optimizer"}, path)


def of_another_version(path: Path, content: dict[str, Any]) -> None:
    torch.save(content | {"version": 1}, path)


HOSTILE = (truncated, empty, text, with_code, bare_pickle, a_list, compressed, giant, wrong_shape, wrong_moments)


def test_checkpoints_that_are_none_are_refused_with_a_sentence(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVIL", str(tmp_path / "evil"))
    folder = first_epoch(recipe)
    path = folder / CHECKPOINT_FILE
    content = torch.load(path, weights_only=True)
    good = path.read_bytes()
    kept = {file.name: file.read_bytes() for file in folder.iterdir() if file.name != CHECKPOINT_FILE}
    for spoil in (*HOSTILE, no_place, half, of_another_version):
        path.write_bytes(good)
        spoil(path, content)
        spoilt = path.read_bytes()
        with pytest.raises(OpenBlipError) as caught:
            train(load_recipe(recipe, ["epochs=1"]))
        told = str(caught.value)
        assert told.startswith(str(path)) and "delete it" in told and "\n" not in told, (spoil.__name__, told)
        assert path.read_bytes() == spoilt, spoil.__name__
        assert {file.name: file.read_bytes() for file in folder.iterdir() if file.name != CHECKPOINT_FILE} == kept
    assert not (tmp_path / "evil").exists(), "code in a checkpoint was run"
    path.write_bytes(good)
    assert first_epoch(recipe) == folder


def test_the_best_weights_of_another_run_are_not_taken_for_its_own(recipe: Path, tmp_path: Path) -> None:
    mine = train(load_recipe(recipe, EVALUATED))
    other = train(load_recipe(recipe, [*EVALUATED, f"output={tmp_path / 'other'}", "seed=7"]))
    own = (mine / BEST_FILE).read_bytes()
    (mine / BEST_FILE).write_bytes((other / BEST_FILE).read_bytes())
    with pytest.raises(OpenBlipError, match=r"best\.pt is of another run, which differs in seed: delete it, or use"):
        train(load_recipe(recipe, EVALUATED))
    torch.save({"prompt": torch.zeros(3)}, mine / BEST_FILE)
    with pytest.raises(OpenBlipError, match=r"best\.pt is of another run, which differs in the version"):
        train(load_recipe(recipe, EVALUATED))
    (mine / BEST_FILE).write_bytes(own[:-50])
    with pytest.raises(OpenBlipError, match=r"best\.pt cannot be read.*the last weights instead of the best"):
        train(load_recipe(recipe, EVALUATED))
    (mine / BEST_FILE).write_bytes(own)
    assert train(load_recipe(recipe, EVALUATED)) == mine
