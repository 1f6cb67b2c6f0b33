"""Commands that are stopped or killed: what they have done is kept, and the same command goes on from there."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from openblip.cli import main
from openblip.jobs.journal import Journal, count_done
from tests import warm

from .conftest import Run

if os.name == "nt":
    pytest.skip("Windows has no signals that programs are told of", allow_module_level=True)

COPIES = 12
"""Of each photo: enough that a command is still at work when it is stopped."""


@pytest.fixture
def folder(image_paths: list[Path], tmp_path: Path) -> Path:
    """Sixty images, and one that is none."""
    place = tmp_path / "photos"
    place.mkdir()
    for number in range(COPIES * len(image_paths)):
        (place / f"{number}.png").write_bytes(image_paths[number % len(image_paths)].read_bytes())
    (place / "3.jpg").write_bytes(b"no image at all")
    return place


WAITING = """
import sys, time
from pathlib import Path
from openblip.checkpoints.tools import quantize
from openblip.cli import main
from openblip.jobs.kept_output import KeptOutput

gate = Path(sys.argv[1])
add, load = KeptOutput.add, quantize.load_parts

def wait():
    while gate.exists():
        time.sleep(0.01)

def added(self, *arguments):
    add(self, *arguments)
    if self.done > 8:
        wait()

def loaded(*arguments, **options):
    wait()
    return load(*arguments, **options)

KeptOutput.add, quantize.load_parts = added, loaded
main(sys.argv[2:])
"""
"""In the middle of its work, however fast the machine is, a command waits until a file is gone."""


@pytest.fixture
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gate") / "closed"
    path.touch()
    return path


@contextmanager
def running(gate: Path, *arguments: str | Path) -> Iterator[warm.Process]:
    program = ["-c", WAITING, str(gate), *map(str, arguments)]
    with warm.Process(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        yield process


def killed_while_writing(arguments: Sequence[str | Path], after: int, share: float) -> bool:
    """Whether a command was killed, as it is after so many writes to its files and a share of the next one."""
    child = os.fork()
    if not child:
        append, written = Journal._append, 0

        def killed(journal: Journal, content: bytes) -> None:
            nonlocal written
            if written == after:
                os.write(journal._file.fileno(), content[: int(share * len(content))])
                os.kill(os.getpid(), signal.SIGKILL)
            written += 1
            append(journal, content)

        try:
            Journal._append = killed  # type: ignore[method-assign]
            main([str(argument) for argument in arguments])
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def folder_of(output: Path) -> Path:
    return output.with_name(output.name + ".openblip")


def rows_file(output: Path) -> Path:
    return folder_of(output) / "rows.jsonl"


def done(output: Path) -> int:
    return count_done(rows_file(output), 0) if rows_file(output).exists() else 0


def wait_for(process: warm.Process, condition: Callable[[], bool]) -> None:
    while process.poll() is None and not condition():
        time.sleep(0.002)


def commands(folder: Path, model: Path) -> dict[str, list[str | Path]]:
    small: list[str | Path] = ["--model", model, "--batch-size", "2"]
    return {
        "captions.txt": ["caption", folder, *small],
        "captions.jsonl": ["caption", folder, *small, "--json", "--num-captions", "2", "--top-p", "0.9", "--seed", "3"],
        "answers.jsonl": ["ask", folder, "what is it?", "what color?", "--model", model, "--json"],
        "matches.txt": ["match", folder, "a dog", "a red ball", *small],
        "matches.jsonl": ["match", folder, "a dog", "a red ball", *small, "--json"],
        "features.npz": ["embed", folder, "--text", "a dog", *small],
        "features.safetensors": ["embed", folder, "--text", "a dog", *small],
    }


def content_of(path: Path) -> object:
    if path.suffix == ".safetensors":  # the order of its metadata is drawn at random
        with safe_open(path, "np") as file:
            return file.metadata(), {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
    if path.suffix != ".npz":
        return path.read_bytes()

    with np.load(path) as arrays:  # the archive has times in it
        return {name: (arrays[name].shape, arrays[name].tobytes()) for name in arrays.files}


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("captions.txt", signal.SIGINT),
        ("captions.jsonl", signal.SIGTERM),
        ("answers.jsonl", signal.SIGINT),
        ("matches.txt", signal.SIGTERM),
        ("matches.jsonl", signal.SIGHUP),
        ("features.npz", signal.SIGTERM),
        ("features.safetensors", signal.SIGINT),
    ],
)
def test_a_command_that_is_stopped_goes_on(
    run: Run, folder: Path, tiny_model_folder: Path, tmp_path: Path, gate: Path, name: str, number: signal.Signals
) -> None:
    command = commands(folder, tiny_model_folder)[name]
    straight, output = tmp_path / f"straight-{name}", tmp_path / name
    output.write_text("old")
    whole = run(*command, "--output", straight)
    assert whole.code == 1  # one is no image
    with running(gate, *command, "--output", output) as process:
        wait_for(process, lambda: done(output) > 8)
        process.send_signal(number)
        _, err = process.communicate(timeout=600)
        assert process.returncode == 128 + number, err
    kept = done(output)
    place = folder_of(output)
    assert 8 < kept < 61
    assert f"{kept} of 61 images are done and kept in {place}: the same command goes on from there" in err
    assert output.read_text() == "old"
    again = run(*command, "--output", output)
    assert again.code == 1
    assert f"going on in {place}: {kept} of 61 images are done, 1 of which could not be read" in again.err
    assert again.out.replace(str(output), "") == whole.out.replace(str(straight), "")
    assert content_of(output) == content_of(straight)
    assert {path.name for path in tmp_path.iterdir()} == {"photos", straight.name, name}


def test_killed_again_and_again(run: Run, folder: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    command = commands(folder, tiny_model_folder)["captions.jsonl"]
    straight, output = tmp_path / "straight.jsonl", tmp_path / "captions.jsonl"
    run(*command, "--output", straight)
    expected = straight.read_bytes()
    chance = random.Random(7)
    kept, kills, content = 0, 0, b""
    while killed_while_writing([*command, "--output", output], chance.randint(0, 5), chance.random()):
        kills += 1
        assert not output.exists()
        assert done(output) >= kept
        kept = done(output)
        before, content = content, rows_file(output).read_bytes() if rows_file(output).exists() else b""
        whole = before[: before.rfind(b'\n{"done"') + 1]
        assert content.startswith(whole)
        assert len(content.splitlines()) >= kept
    assert kills > 4
    assert output.read_bytes() == expected
    assert {path.name for path in tmp_path.iterdir()} == {"photos", straight.name, output.name}


def test_half_a_line_is_no_line(run: Run, folder: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    command = commands(folder, tiny_model_folder)["captions.txt"]
    straight, output = tmp_path / "straight.txt", tmp_path / "captions.txt"
    run(*command, "--output", straight)
    assert killed_while_writing([*command, "--output", output], 5, 0.0)
    assert done(output) == 10
    rows, job = rows_file(output), folder_of(output) / "job.json"
    kept, identity = rows.read_bytes(), job.read_bytes()
    middle = len(kept) // 2
    cuts = [kept[:-1], kept + b"/half of a", kept[:-3], kept + b'{"done": 60, "by', kept[:5], b""]
    cuts.append(kept[:middle] + bytes([kept[middle] ^ 1]) + kept[middle + 1 :])
    for content in cuts:
        output.unlink(missing_ok=True)
        job.parent.mkdir(exist_ok=True)
        job.write_bytes(identity)
        rows.write_bytes(content)
        assert run(*command, "--output", output).code == 1
        assert output.read_bytes() == straight.read_bytes()
    output.unlink()
    # Without a whole job.json nobody knows whose it is.
    job.parent.mkdir()
    rows.write_bytes(kept)
    job.write_bytes(identity[:20])
    ran = run(*command, "--output", output)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert f"{job} cannot be read (" in ran.err and f"delete the folder {job.parent} to begin anew" in ran.err
    assert rows.read_bytes() == kept


def test_other_commands_leave_what_is_kept_alone(
    run: Run, folder: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    command = commands(folder, tiny_model_folder)["captions.txt"]
    output = tmp_path / "captions.txt"
    assert killed_while_writing([*command, "--output", output], 5, 0.0)
    assert done(output) == 10
    kept = rows_file(output).read_bytes()
    ask = commands(folder, tiny_model_folder)["answers.jsonl"]
    others: list[tuple[list[str | Path], str]] = [
        ([*command, "--num-beams", "2"], "--num-beams was left out, now 2"),
        ([*command, "--batch-size", "3"], "--batch-size was 2, now 3"),
        ([*command, "--json"], "--json was False, now True"),
        ([*command, "--prompt", "a"], "--prompt was left out, now a"),
        ([*command, "--model", "mini"], "--model was"),
        (["caption", folder / "1.png", *command[2:]], "the list of images changed"),
        (ask, "--batch-size was 2, now left out"),
    ]
    for other, told in others:
        ran = run(*other, "--output", output)
        assert (ran.code, ran.err.count("\n")) == (2, 1), ran.err
        assert f"{folder_of(output)} holds the work of another command (" in ran.err
        assert told in ran.err and "delete this folder to begin anew" in ran.err
        assert rows_file(output).read_bytes() == kept
    # The same name for another model.
    config = tiny_model_folder / "config.json"
    state = config.stat()
    os.utime(config, ns=(state.st_atime_ns, state.st_mtime_ns + 10**9))
    try:
        assert "the files of --model changed" in run(*command, "--output", output).err
    finally:
        os.utime(config, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert run(*command, "--output", output).code == 1


def test_a_second_command_keeps_out(
    run: Run, folder: Path, tiny_model_folder: Path, tmp_path: Path, gate: Path
) -> None:
    command = commands(folder, tiny_model_folder)["captions.txt"]
    output, straight = tmp_path / "captions.txt", tmp_path / "straight.txt"
    run(*command, "--output", straight)
    with running(gate, *command, "--output", output) as process:
        wait_for(process, lambda: done(output) > 8)
        ran = run(*command, "--output", output)
        assert (ran.code, ran.err.count("\n")) == (2, 1)
        whose = f"(process {process.pid})"
        assert f"another command is writing to {output} {whose}: wait for it, or give another --output" in ran.err
        gate.unlink()
        process.communicate(timeout=600)
        assert process.returncode == 1
    assert output.read_bytes() == straight.read_bytes()


def test_two_commands_into_one_folder(run: Run, tiny_model_folder: Path, tmp_path: Path, gate: Path) -> None:
    target = tmp_path / "new" / "int8"
    command = ["quantize", tiny_model_folder, target]
    with running(gate, *command) as process:
        wait_for(process, (target / ".unfinished").exists)
        for other in (command, ["convert", tiny_model_folder, target, "--to", "openblip"]):
            ran = run(*other)
            assert (ran.code, ran.err.count("\n")) == (2, 1)
            assert f"another process is writing to {target}: wait for it, or give another folder" in ran.err
        gate.unlink()
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
    assert {"config.json", "model.safetensors"} < {path.name for path in target.iterdir()}
    assert not [path.name for path in target.iterdir() if path.name.startswith(".")]
    before = {path: path.read_bytes() for path in target.iterdir()}
    assert "is not empty" in run(*command).err
    assert {path: path.read_bytes() for path in target.iterdir()} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_model_that_is_stopped_leaves_nothing(
    run: Run, tiny_model_folder: Path, tmp_path: Path, gate: Path, number: signal.Signals
) -> None:
    target = tmp_path / "new" / "int8"
    with running(gate, "quantize", tiny_model_folder, target) as process:
        wait_for(process, (target / ".unfinished").exists)
        (target / "mine.txt").write_text("put there meanwhile")
        process.send_signal(number)
        process.communicate(timeout=600)
        assert process.returncode == 128 + number
    assert [path.name for path in target.iterdir()] == ["mine.txt"]
    (target / "mine.txt").unlink()
    assert run("quantize", tiny_model_folder, target).code == 0


KILLED = """
import json, os, signal, sys
from pathlib import Path
from openblip.checkpoints.tools.quantize import quantize_model

model, place = sys.argv[1:]

def forked(target, left):
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]

    def count(event, arguments):
        nonlocal left
        if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir") and target in str(arguments[0]):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    quantize_model(model, Path(target), 8)
    os._exit(0)

for step in range(1000):
    target = f"{place}/{step}"
    status = forked(target, step)
    there = sorted(os.listdir(target)) if os.path.exists(target) else []
    again = 0 if not status or "config.json" in there else forked(target, 10**9)
    print(json.dumps({"killed": status, "there": there, "again": again}))
    if not status:
        break
"""


def test_a_model_that_is_killed_anywhere_blocks_nothing(tiny_model_folder: Path, tmp_path: Path) -> None:
    """At each file that is opened, moved or removed in the folder: the next command there has its way."""
    ran = warm.run(["-c", KILLED, str(tiny_model_folder), str(tmp_path)])
    assert ran.returncode == 0, ran.stderr
    steps = [json.loads(line) for line in ran.stdout.splitlines()]
    last = tmp_path / str(len(steps) - 1)
    expected = {path.name: path.read_bytes() for path in last.iterdir()}
    assert {"config.json", "model.safetensors"} < expected.keys()
    assert not [name for name in expected if name.startswith(".")]
    assert (len(steps) > 8, steps[-1]["killed"]) == (True, 0)
    assert sum("model.safetensors" in step["there"] for step in steps) > 1  # killed between two of its files
    for number, step in enumerate(steps[:-1]):
        assert (step["killed"], step["again"]) == (signal.SIGKILL, 0), step
        found = {path.name: path for path in (tmp_path / str(number)).iterdir()}
        assert {name: found[name].read_bytes() for name in expected} == expected
        # What says that it is whole may come before the last of what is to be removed.
        assert found.keys() == expected.keys() or "config.json" in step["there"]
