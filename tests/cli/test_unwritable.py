"""Folders that cannot be written and disks that are full: one sentence, and what was there is kept."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from openblip.checkpoints.lora.files import write_adapter
from tests import warm
from tests.checkpoints.lora.test_files import adapter_of
from tests.checkpoints.theirs import write_writer

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
def data(tmp_path: Path, image_paths: list[Path]) -> Path:
    lines = [{"image": str(image_path), "captions": ["a red ball"]} for image_path in image_paths]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


@pytest.fixture
def training(data: Path, tiny_model_folder: Path) -> Path:
    path = data / "train.yaml"
    path.write_text(
        f"stage: stage1\ninit: {json.dumps(str(tiny_model_folder))}\ndata_root: {json.dumps(str(data))}\n"
        f"cache: {json.dumps(str(data / 'features'))}\noutput: {json.dumps(str(data / 'run'))}\n"
        "data: [{name: balls, captions: captions.jsonl}]\nepochs: 1\nbatch_size: 2\ndevice: cpu\nthreads: 1\n"
        "monitor: {tensorboard: false}\n"
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


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["caption"], "captions.txt"),
        (["caption", "--json"], "captions.jsonl"),
        (["ask"], "answers.txt"),
        (["match", "--json"], "matches.jsonl"),
        (["embed"], "features.npz"),
        (["embed"], "features.safetensors"),
    ],
)
@pytest.mark.parametrize("size", [0, 100, 1000, 2500])
def test_output_files_on_a_full_disk(
    run: Run, image_paths: list[Path], tmp_path: Path, tiny_model_folder: Path, command: list[str], name: str, size: int
) -> None:
    folder = image_paths[0].parent
    words = ["a dog"] if command[0] in ("ask", "match") else []
    program = [command[0], folder, *words, *command[1:], "-m", tiny_model_folder]
    program += [] if command[0] == "ask" else ["--batch-size", "1"]
    output, straight = tmp_path / name, tmp_path / f"straight-{name}"
    output.write_text("old")
    assert run(*program, "--output", straight).code == 0
    with room(size):
        ran = run(*program, "--output", output)
    if ran.code:  # else it has room
        refused(ran, f"{output}", "cannot be written (File too large): make room, and give the command again")
        assert output.read_text() == "old"
        assert not list(tmp_path.glob("*.draft"))
    else:
        assert size >= 1000
    again = run(*program, "--output", output)
    assert again.code == 0
    if output.suffix != ".safetensors":  # whose metadata come in any order
        assert len(output.read_bytes()) == len(straight.read_bytes())
    assert {path.name for path in tmp_path.iterdir()} >= {name, straight.name}
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".openblip"]


@pytest.mark.parametrize("to", ["openblip", "transformers", "lavis"])
@pytest.mark.parametrize("size", [10, 5_000, 60_000])
def test_conversion_on_a_full_disk(run: Run, tmp_path: Path, to: str, size: int) -> None:
    source = write_writer(tmp_path / "source").folder
    target = tmp_path / "new/converted"
    with room(size):
        ran = run("convert", source, target, "--to", to)
    refused(ran, f"{target} cannot be written (File too large): make room")
    assert not target.parent.exists()
    assert run("convert", source, target, "--to", to).code == 0


def test_quantizing_on_a_full_disk(run: Run, tmp_path: Path, tiny_model_folder: Path) -> None:
    with room(20_000):
        refused(
            run("quantize", tiny_model_folder, tmp_path / "q"), f"{tmp_path / 'q'} cannot be written (File too large)"
        )
    assert not (tmp_path / "q").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize(
    "words",
    [
        ["caption", "{image_path}", "-m", "{model}"],
        ["ask", "{image_path}", "what?", "-m", "{model}", "--stream"],
        ["match", "{image_path}", "a dog", "-m", "{model}", "--json"],
        ["embed", "--text", "a dog", "-m", "{model}", "--json"],
        ["caption", "{image_path}", "-m", "{model}", "--output", "/dev/full"],
        ["models"],
        ["inspect", "{model}"],
        ["caption", "--help"],
        ["--version"],
        ["train", "{recipe}", "--dry-run"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_standard_output_on_a_full_disk(
    training: Path, image_paths: list[Path], tiny_model_folder: Path, words: list[str]
) -> None:
    filled = [word.format(image_path=image_paths[0], model=tiny_model_folder, recipe=training) for word in words]
    with open("/dev/full", "w") as full:
        if words[-1] in ("--help", "--version"):  # what they say is written when Python ends
            command = [sys.executable, "-m", "openblip", *filled]
            ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        else:
            ran = warm.run(["-m", "openblip", *filled], stdout=full.fileno())
    place = "/dev/full" if "--output" in words else "standard output"
    told = "cannot be written (No space left on device): make room, and give the command again"
    assert (ran.returncode, ran.stderr) == (2, f"error: {place} {told}\n")
