"""Folders that cannot be written and disks that are full: one sentence, and what was there is kept."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from openblip.checkpoints.lora.files import write_adapter
from tests.checkpoints.lora.test_files import adapter_of

from .conftest import Ran, Run

resource = pytest.importorskip("resource", reason="there are no limits on files' sizes here")


@contextmanager
def room(size: int) -> Iterator[None]:
    """No file can grow beyond so many bytes, as on a disk that is full then."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refused(ran: Ran, *words: str) -> None:
    assert ran.code == 2, ran
    assert ran.err.count("error: ") == 1 and ran.err.rstrip().rpartition("\n")[2].startswith("error: "), ran.err
    for word in words:
        assert word in ran.err


@pytest.fixture
def data(tmp_path: Path, photos: list[Path]) -> Path:
    lines = [{"image": str(photo), "captions": ["a red ball"]} for photo in photos]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


@pytest.fixture
def training(data: Path, tiny_model_folder: Path) -> Path:
    path = data / "train.yaml"
    path.write_text(
        f"stage: stage1\ninit: {json.dumps(str(tiny_model_folder))}\ndata_root: {json.dumps(str(data))}\n"
        f"cache: {json.dumps(str(data / 'features'))}\noutput: {json.dumps(str(data / 'run'))}\n"
        "data: [{name: balls, captions: captions.jsonl}]\nepochs: 1\nbatch_size: 2\ndevice: cpu\nthreads: 1\n"
        "watching: {tensorboard: false}\n"
    )
    return path


@pytest.fixture
def evaluation(data: Path, tiny_model_folder: Path) -> Path:
    path = data / "evaluate.yaml"
    path.write_text(
        f"task: captions\nmodel: {json.dumps(str(tiny_model_folder))}\ndata_root: {json.dumps(str(data))}\n"
        f"output: {json.dumps(str(data / 'scores'))}\ndata: {{name: balls, captions: captions.jsonl}}\ndevice: cpu\n"
        "captions: {tokenizer: never, meteor: never, spice: never}\n"
    )
    return path


def test_outputs_that_are_no_folders(
    run: Run, data: Path, training: Path, evaluation: Path, tiny_model_folder: Path
) -> None:
    (data / "file").write_text("mine")
    place = data / "file/below"
    adapter = data / "adapter"
    write_adapter(adapter_of(str(tiny_model_folder), adapter), adapter)
    commands: list[list[str | Path]] = [
        ["train", training, f"output={place}"],
        ["finetune", "--model", tiny_model_folder, "--data", data / "captions.jsonl", "--output", place],
        ["evaluate", evaluation, f"output={place}"],
        ["average", place, f"{tiny_model_folder}=0.5", "mini=0.5"],
        ["merge", adapter, place],
    ]
    for command in commands:
        refused(run(*command), "cannot be written", "file")
    assert (data / "file").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="Windows has no such permissions")
def test_a_folder_that_may_not_be_changed(
    run: Run, training: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != data)  # root may do anything
    refused(run("train", training), f"{data / 'run'} cannot be written, for {data} may not be changed: give another")


def test_training_on_a_full_disk(run: Run, training: Path, data: Path) -> None:
    with room(1000):
        refused(run("train", training), "the disk is full: features in", "what was computed is kept")
    with room(150_000):
        refused(run("train", training), "checkpoint.pt cannot be written, the disk is full after", "goes on from")
    assert not list((data / "run").glob("*.draft")) and not (data / "run/model.safetensors").exists()
    assert run("train", training).code == 0
    folder = data / "run"
    whole = (folder / "model.safetensors").read_bytes()
    checkpoint = (folder / "checkpoint.pt").read_bytes()
    (folder / "model.safetensors").unlink()
    with room(150_000):
        refused(run("train", training), f"{folder} cannot be written (", "make room", "give the command again")
    assert not list(folder.glob("*.draft")) and (folder / "checkpoint.pt").read_bytes() == checkpoint
    assert run("train", training).code == 0
    assert (folder / "model.safetensors").read_bytes() == whole


def test_evaluating_on_a_full_disk(run: Run, evaluation: Path, data: Path) -> None:
    with room(1200):
        refused(run("evaluate", evaluation), "scores", "cannot be written (File too large)", "give the command again")
    assert run("evaluate", evaluation).code == 0
    assert len((data / "scores/predictions.jsonl").read_text().splitlines()) == 5


def test_merging_and_averaging_on_a_full_disk(run: Run, data: Path, tiny_model_folder: Path) -> None:
    adapter = data / "adapter"
    write_adapter(adapter_of(str(tiny_model_folder), adapter), adapter)
    twin = data / "twin"
    twin.symlink_to(tiny_model_folder)
    with room(60_000):
        refused(run("merge", adapter, data / "merged"), f"{data / 'merged'} cannot be written (", "make room")
        refused(run("average", data / "mean", tiny_model_folder, twin), f"{data / 'mean'} cannot be written (")
    assert not (data / "merged").exists() and not (data / "mean").exists()
