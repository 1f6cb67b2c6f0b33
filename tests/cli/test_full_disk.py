"""A disk that is really full: the command says so and ends, and with room it goes on to the same bytes."""

from __future__ import annotations

import gc
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.jobs.test_job import small_disk
from tests.videos import numbered, write_video

from .conftest import Ran, Run

__all__ = ["small_disk"]
pytestmark = pytest.mark.slow

SIZE = 1_000_000
FULL = "No space left on device"
Command = Callable[[Path], Ran]
"""Writes to a path."""


@pytest.fixture
def disk(small_disk: Path) -> Iterator[Path]:
    subprocess.run(["mount", "-o", f"remount,size={SIZE}", str(small_disk)], check=True)
    yield small_disk
    gc.collect()  # errors hold the files of their frames open, and the disk could not be taken away


def fill(disk: Path, room: int) -> Path:
    """Leave only so many bytes free, in whole pages."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(max(0, shutil.disk_usage(disk).free - room)))
    return ballast


def check(command: Command, disk: Path, elsewhere: Path, name: str, rooms: tuple[int, ...]) -> None:
    """Run it with ever more room, then with enough, and compare with a disk that has it all the time."""
    whole, output = elsewhere / name, disk / name
    assert command(whole).code == 0
    for room in rooms:
        ballast = fill(disk, room)
        ran = command(output)
        assert ran.code == 2, (room, ran)
        told = [line for line in ran.err.splitlines() if line.startswith("error: ")]
        assert len(told) == 1 and FULL in told[0] and "make room" in told[0] and str(disk) in told[0], (room, ran)
        assert not output.exists() and not list(disk.rglob("*.draft"))
        ballast.unlink()
    ran = command(output)
    assert ran.code == 0, ran
    assert output.read_bytes() == whole.read_bytes()
    assert [path.name for path in disk.iterdir()] == [name]


@pytest.fixture
def many(image_paths: list[Path], tmp_path: Path) -> Path:
    """Forty images."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(40):
        shutil.copy(image_paths[number % len(image_paths)], folder / f"{number:02}-{'long' * 40}.png")
    return folder


def test_run_to_parquet(run: Run, many: Path, tiny_model_folder: Path, disk: Path, tmp_path: Path) -> None:
    def command(output: Path) -> Ran:
        given = ["--model", tiny_model_folder, "--batch-size", "2", "--max-new-tokens", "8"]
        return run("run", "caption", many, "-o", output, *given)

    check(command, disk, tmp_path, "out.parquet", (0, 4096, 12_288, 20_480))


@pytest.mark.parametrize("name", ["out.html", "out.json"])
def test_analyze(run: Run, many: Path, tiny_model_folder: Path, disk: Path, tmp_path: Path, name: str) -> None:
    def command(output: Path) -> Ran:
        given = ["--model", tiny_model_folder, "--batch-size", "4", "--max-new-tokens", "4"]
        return run("analyze", many, "-q", "what is it?", "-o", output, *given)

    check(command, disk, tmp_path, name, (0, 4096, 12_288, 24_576))


@pytest.mark.parametrize("name", ["out.html", "out.vtt"])
def test_video(run: Run, tiny_model_folder: Path, disk: Path, tmp_path: Path, name: str) -> None:
    clip = write_video(tmp_path / "clip.mp4", [numbered(index // 25 * 25) for index in range(500)])

    def command(output: Path) -> Ran:
        given = ["--model", tiny_model_folder, "--batch-size", "4", "--max-new-tokens", "4"]
        return run("video", clip, "--ask", "what is it?", "-o", output, *given)

    check(command, disk, tmp_path, name, (0, 4096, 8192))


def test_index(run: Run, many: Path, tiny_model_folder: Path, disk: Path, tmp_path: Path) -> None:
    pytest.importorskip("lancedb")

    def command(db: Path) -> Ran:
        return run("index", many, "--db", db, "--model", tiny_model_folder, "--batch-size", "4")

    def found(db: Path) -> Ran:
        return run("search", "a dog", "--db", db, "--top", "5", "--json", "--model", tiny_model_folder)

    whole, db = tmp_path / "db", disk / "db"
    assert command(whole).code == 0
    for room in (0, 4096, 12_288):
        ballast = fill(disk, room)
        ran = command(db)
        assert ran.code == 2, (room, ran)
        told = [line for line in ran.err.splitlines() if line.startswith("error: ")]
        assert len(told) == 1 and FULL in told[0] and str(disk) in told[0], (room, ran)
        ballast.unlink()
    assert command(db).code == 0
    assert found(db).records == found(whole).records and found(db).records
