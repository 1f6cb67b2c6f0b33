"""A new folder that a model is written into: whole at the end, or as it was."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from openblip.errors import CheckpointError, OpenBlipError, OptionError
from openblip.saving import NO_ROOM, locked, naming

UNFINISHED = ".unfinished"
"""The folder that files are written into until all are there."""
MOVING_FILE = ".moving.json"
"""In it: which files are on their way out of it."""
LOCK_FILE = ".unfinished.lock"
LAST = ("config.json", "checkpoint.pth")
"""Nobody takes a folder for a model before one of these is there."""


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A place to write a model's files to; they are in `folder` at the end, all or none.

    The folder is locked from the beginning, so that a second command refuses before it does any work. What a process
    that was killed has left is removed by the next one; nothing else is ever deleted.

    Args:
        folder: must be empty or not exist yet.

    Raises:
        OptionError: there is something in the folder, which might be lost.
        OpenBlipError: another process is writing there, the disk is full, or may not be written to.
    """
    require_new(folder)
    made = [place for place in (folder, *folder.absolute().parents) if not place.exists()]
    place = folder / UNFINISHED
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / LOCK_FILE, f"another process is writing to {folder}: wait for it, or give another folder"):
            _take_over(folder)
            require_new(folder)
            try:
                place.mkdir()
                yield place
                with naming(folder):
                    _publish(folder)
            except BaseException:
                _take_over(folder)
                raise
    except OSError as error:
        inside = error.filename is not None and Path(os.fsdecode(error.filename)).is_relative_to(folder)
        if error.errno not in NO_ROOM and not inside:
            raise
        raise OpenBlipError(
            f"{folder} cannot be written ({error.strerror or error}): make room, or give another folder"
        ) from error
    except CheckpointError as error:
        # Users know nothing of the place within.
        raise CheckpointError(str(error).replace(str(place), str(folder))) from error
    finally:
        for one in made:
            with suppress(OSError):  # it is a model's, or another process is at it
                one.rmdir()


def _publish(folder: Path) -> None:
    place = folder / UNFINISHED
    names = sorted((path.name for path in place.iterdir()), key=lambda name: (name in LAST, name))
    (place / MOVING_FILE).write_text(json.dumps(names), encoding="utf-8")
    for name in names:
        (place / name).replace(folder / name)
    shutil.rmtree(place)


def _take_over(folder: Path) -> None:
    """Remove what was written into the folder by a process that did not come to its end."""
    place = folder / UNFINISHED
    for path in _moved(place):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)


def _moved(place: Path) -> list[Path]:
    """What has come out of `place` of a move that did not come to its end."""
    try:
        listed = json.loads((place / MOVING_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(listed, list) or not all(isinstance(name, str) and Path(name).name == name for name in listed):
        return []  # no list of ours
    still = [name for name in listed if (place / name).exists()]
    return [place.parent / name for name in listed if name not in still] if still else []


def require_new(folder: Path) -> None:
    """Raises OptionError when there is something in `folder`, which might be lost."""
    if folder.is_symlink() and not folder.exists():
        raise OptionError(f"{folder} is a link to nowhere: give a new folder")
    if folder.exists() and (not folder.is_dir() or _used(folder)):
        raise OptionError(f"{folder} is not empty: give a new folder")
    require_writable(folder)


def _used(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()} - {LOCK_FILE}
    return bool(names) and UNFINISHED not in names


def require_writable(folder: Path, called: str = "") -> None:
    """Raises OptionError when a folder, which need not be there yet, cannot be written; before any work is done.

    Args:
        called: what the user calls the folder.
    """
    there = next((place for place in (folder, *folder.absolute().parents) if place.exists()), folder)
    problem = f"{called} {folder} cannot be written, for {there}".lstrip()
    if not there.is_dir():
        raise OptionError(f"{problem} is no folder: give another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OptionError(f"{problem} may not be changed: give another folder")
