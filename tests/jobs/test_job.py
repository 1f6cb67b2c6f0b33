"""A job is killed, stopped, cut off from its disk, and given images that kill it: the output has the same bytes."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests import warm

DRIVER = Path(__file__).with_name("driver.py")
DEADLY = (1, 2, 3)


def arguments(source: Path, output: Path, **options: Any) -> list[str]:
    return [str(DRIVER), str(source), str(output)] + [f"{name}={json.dumps(value)}" for name, value in options.items()]


def command(source: Path, output: Path, **options: Any) -> list[str]:
    """For what a fork cannot do: all else is run by `run` and `start`."""
    return [sys.executable, *arguments(source, output, **options)]


def run(source: Path, output: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return warm.run(arguments(source, output, **options))


def start(source: Path, output: Path, **options: Any) -> warm.Process:
    return warm.Process(arguments(source, output, **options), stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def shade(number: int) -> int:
    """What the verb says of an image of `make_table`, where it may also hang."""
    return number % 256 * 65536 + number // 256 * 256 + 7


def make_table(folder: Path, count: int, special: dict[int, Any] | None = None) -> Path:
    """A table of images, some of which are copies, damaged or not there; `special` has colors, bytes or None."""
    lines = ["id,image,note"]
    for number in range(count):
        path = folder / f"{number}.png"
        what = (special or {}).get(number, (number % 256, number // 256, 7))
        if isinstance(what, bytes):
            path.write_bytes(what)
        elif what is not None:
            Image.new("RGB", (2, 2), what).save(path)
        lines.append(f'{number:03},{path.name},"two\nlines, {number}"')
    table = folder / "table.csv"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return table


def folder_of(output: Path) -> Path:
    return output.with_name(output.name + ".openblip")


def rows_file(output: Path) -> Path:
    return folder_of(output) / "rows.jsonl"


def wait_for(output: Path, size: int, process: subprocess.Popen[Any] | warm.Process) -> None:
    """Until the journal has this size, or the process is at its end."""
    while process.poll() is None:
        with suppress(FileNotFoundError):  # not begun, or done meanwhile
            if rows_file(output).stat().st_size >= size:
                return
        time.sleep(0.002)


def test_killed_ten_times_the_output_has_the_same_bytes(tmp_path: Path) -> None:
    special = {5: (4, 0, 7), 9: b"no image", 17: None, 21: b"no image", 40: (4, 0, 7), 41: (4, 0, 7)}
    table = make_table(tmp_path, 60, special)
    whole, killed = tmp_path / "whole.csv", tmp_path / "killed.csv"
    done = run(table, whole)
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout) == {"rows": 60, "errors": 3, "copies": 4}
    random_source = random.Random(11)
    full = rows_file(whole).stat().st_size
    for number in range(10):
        process = start(table, killed, pause=0.02, hang_at=shade(59))
        wait_for(killed, full * number // 10, process)
        time.sleep(random_source.uniform(0, 0.03))  # wherever that is
        process.kill()
        assert (process.communicate(timeout=600)[1], process.returncode) == ("", -signal.SIGKILL)
    assert not killed.exists()
    assert 0 < rows_file(killed).stat().st_size < full
    assert run(table, killed).returncode == 1
    assert killed.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_it_with_a_sentence_and_it_goes_on(tmp_path: Path, stop: signal.Signals, code: int) -> None:
    table = make_table(tmp_path, 30)
    process = start(table, tmp_path / "out.csv", hang_at=shade(29))
    wait_for(tmp_path / "out.csv", 1, process)
    process.send_signal(stop)
    _, said = process.communicate(timeout=600)
    assert (process.returncode, said) == (
        code,
        "stopped: what was done is kept, and the same command goes on from there\n",
    )
    assert run(table, tmp_path / "out.csv").returncode == 0
    assert run(table, tmp_path / "whole.csv").returncode == 0
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not folder_of(tmp_path / "out.csv").exists()


@pytest.mark.parametrize("damage", ["cut", "bit", "tail"])
def test_a_damaged_journal_costs_its_end_alone(tmp_path: Path, damage: str) -> None:
    table = make_table(tmp_path, 20, {3: b"no image"})
    output = tmp_path / "out.csv"
    run(table, output)
    whole, content = output.read_bytes(), rows_file(output).read_bytes()
    output.unlink()
    if damage == "cut":
        rows_file(output).write_bytes(content[: len(content) * 2 // 3])
    elif damage == "bit":
        at = len(content) // 2
        rows_file(output).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    else:
        rows_file(output).write_bytes(content + b'{"row":20,"sh\0\0\0\0')
    assert run(table, output).returncode == 1
    assert output.read_bytes() == whole
    assert rows_file(output).read_bytes() == content


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """A limit on the size of files acts as a disk that fills up: the write takes a part, the next one fails."""
    table = make_table(tmp_path, 40)
    whole, output = tmp_path / "whole.csv", tmp_path / "out.csv"
    run(table, whole)

    def small() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))

    done = subprocess.run(
        command(table, output), capture_output=True, text=True, check=False, timeout=600, preexec_fn=small
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {rows_file(output)} cannot be written (File too large): make room, and give the command again\n"
    )
    assert 0 < rows_file(output).stat().st_size <= 2000 and not output.exists()
    assert run(table, output).returncode == 0
    assert output.read_bytes() == whole.read_bytes()


def test_rows_that_kill_the_process_are_errors(tmp_path: Path) -> None:
    other = io.BytesIO()
    Image.new("RGB", (3, 3), DEADLY).save(other, "png")
    table = make_table(tmp_path, 30, {7: DEADLY, 8: (*DEADLY[:2], 4), 11: DEADLY, 22: other.getvalue()})
    done = run(table, tmp_path / "out.csv")
    assert json.loads(done.stdout) == {"rows": 30, "errors": 3, "copies": 1}, done.stderr
    lines = (tmp_path / "out.csv").read_text(encoding="utf-8").replace("two\nlines", "").splitlines()
    killed = [line for line in lines if "the process that reads it was killed" in line]
    assert [line[:3] for line in killed] == ["007", "011", "022"]
    # Both files of it name the same rows again, whenever the command was interrupted.
    assert run(table, tmp_path / "again.csv").returncode == 1
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "out.csv").read_bytes()


def test_batches_are_those_of_a_block_alone(tmp_path: Path) -> None:
    """Blocks have 12 rows here: the last batch of one is not filled up with images of the next."""
    special: dict[int, Any] = dict.fromkeys((5, 9, 20, 37), (4, 0, 7)) | dict.fromkeys(range(31, 36), (30, 0, 7))
    table = make_table(tmp_path, 50, special | {3: None, 14: b"no image"})
    assert run(table, tmp_path / "out.csv").returncode == 1
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        found = [json.loads(row["batch"] or "null") for row in csv.DictReader(file)]
    expected: list[list[int] | None] = [None] * 50
    for begin in range(0, 50, 12):
        new = [row for row in range(begin, min(begin + 12, 50)) if row not in special and row != 3]
        for batch in (new[at : at + 3] for at in range(0, len(new), 3)):
            shades = [row * 65536 + 7 for row in (*batch, *[batch[-1]] * (3 - len(batch))) if row != 14]
            for row in batch:
                expected[row] = shades if begin < 48 else shades[: len(batch)]
    expected[14] = None
    for row, color in special.items():
        expected[row] = expected[color[0]]
    assert found == expected


def test_a_worker_does_not_outlive_its_parent(tmp_path: Path) -> None:
    table = make_table(tmp_path, 9)
    parent = subprocess.Popen(command(table, tmp_path / "out.csv", pause=600), stdout=subprocess.PIPE)
    wait_for(tmp_path / "out.csv", 0, parent)
    time.sleep(1)
    parent.kill()
    # The worker has the pipe, too: this returns when it is gone.
    assert parent.communicate(timeout=600)[0] == b""


def test_errors_are_tried_again(tmp_path: Path) -> None:
    table = make_table(tmp_path, 20, {2: None, 11: b"no image", 15: b"no image"})
    output = tmp_path / "out.csv"
    assert json.loads(run(table, output).stdout) == {"rows": 20, "errors": 3, "copies": 1}
    before = output.read_bytes()
    assert run(table, output).returncode == 1 and output.read_bytes() == before
    for number in (2, 11):
        Image.new("RGB", (2, 2), (200, number, 0)).save(tmp_path / f"{number}.png")
    assert json.loads(run(table, output, retry_errors=True).stdout) == {"rows": 20, "errors": 1, "copies": 0}
    Image.new("RGB", (2, 2), (200, 15, 0)).save(tmp_path / "15.png")
    assert json.loads(run(table, output, retry_errors=True).stdout) == {"rows": 20, "errors": 0, "copies": 0}
    assert "no image" not in output.read_text(encoding="utf-8")
    assert not folder_of(output).exists()


def test_two_runs_at_once(tmp_path: Path) -> None:
    table = make_table(tmp_path, 30)
    output = tmp_path / "out.csv"
    first = start(table, output, hang_at=shade(0))
    wait_for(output, 0, first)  # until it has its journal
    second = run(table, output)
    assert (second.returncode, second.stderr) == (
        2,
        f"error: another command is writing to {output} (process {first.pid}): wait for it, or give another --output\n",
    )
    first.kill()
    first.wait()
    assert run(table, output).returncode == 0


def test_another_command_is_refused(tmp_path: Path) -> None:
    table = make_table(tmp_path, 9, {1: None})
    output = tmp_path / "out.csv"
    run(table, output)
    other = run(table, output, batch_size=4)
    assert other.returncode == 2
    assert other.stderr == (
        f"error: {folder_of(output)} holds the work of another command (--batch-size was 3, now 4): give that command "
        "to go on, delete this folder to begin anew, or give another --output than out.csv\n"
    )
    with table.open("a", encoding="utf-8") as file:
        file.write("9,9.png,\n")
    assert "(the input changed; it had 9 rows, now 10)" in run(table, output).stderr


def test_shards_are_the_whole(tmp_path: Path) -> None:
    table = make_table(tmp_path, 20, {1: None})
    header = b"id,image,note,shade,batch,error\n"
    parts = b""
    for part in (1, 2, 3):
        assert run(table, tmp_path / f"{part}.csv", shard=(part, 3), batch_size=1).returncode in (0, 1)
        parts += (tmp_path / f"{part}.csv").read_bytes().removeprefix(header)
    run(table, tmp_path / "whole.csv", batch_size=1)
    assert header + parts == (tmp_path / "whole.csv").read_bytes()


def test_an_output_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    table = make_table(tmp_path, 3)
    output = tmp_path / "out.csv"
    output.write_text("mine", encoding="utf-8")
    refused = run(table, output)
    assert (refused.returncode, output.read_text(encoding="utf-8")) == (2, "mine")
    assert refused.stderr == f"error: {output} is there already: give another --output, or delete it\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 40 kB, where the system lets us have one."""
    place = tmp_path / "disk"
    place.mkdir()
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount a small disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False, timeout=600).returncode:
        pytest.skip("no disk can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full_loses_nothing(tmp_path: Path, small_disk: Path) -> None:
    table = make_table(tmp_path, 120)
    whole, output = tmp_path / "whole.csv", small_disk / "out.csv"
    run(table, whole)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(20_000))
    done = run(table, output)
    assert (done.returncode, "No space left on device): make room" in done.stderr) == (2, True)
    assert 0 < rows_file(output).stat().st_size < 20_000
    ballast.unlink()
    assert run(table, output).returncode == 0
    assert output.read_bytes() == whole.read_bytes()
