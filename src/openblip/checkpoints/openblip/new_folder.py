"""A folder that a model is written into: a new one, whole at the end or gone again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from openblip.errors import OpenBlipError, OptionError


def require_new(folder: Path) -> None:
    """Raises OptionError when there is something in `folder`, which might be lost."""
    if folder.is_symlink() and not folder.exists():
        raise OptionError(f"{folder} is a link to nowhere: give a new folder")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OptionError(f"{folder} is not empty: give a new folder")
    require_writable(folder)


def require_writable(folder: Path, called: str = "") -> None:
    """Raises OptionError when a folder, which need not be there yet, cannot be written; before any work is done.

    Args:
        called: what the user calls the folder.
    """
    there = next((place for place in (folder, *folder.absolute().parents) if place.exists()), folder)
    told = f"{called} {folder} cannot be written, for {there}".lstrip()
    if not there.is_dir():
        raise OptionError(f"{told} is no folder: give another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OptionError(f"{told} may not be changed: give another folder")


@contextmanager
def written_whole(folder: Path) -> Iterator[None]:
    """Whatever stops the writing, nothing is left of it in `folder`, which was new.

    Raises:
        OpenBlipError: the disk is full, or may not be written to.
    """
    was_there = folder.is_dir()
    try:
        yield
    except BaseException as error:
        for path in folder.iterdir() if folder.is_dir() else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if folder.is_dir() and not was_there:
            folder.rmdir()
        if isinstance(error, OSError | SafetensorError):
            reason = getattr(error, "strerror", None) or str(error).rpartition("I/O error: ")[2]
            raise OpenBlipError(f"{folder} cannot be written ({reason}): free some room, or give another") from error
        raise
