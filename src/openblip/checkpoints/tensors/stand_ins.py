"""What lies where a file of weights should, and is none: a folder, nothing in it, a pointer to the real one."""

from __future__ import annotations

from pathlib import Path

from openblip.errors import CheckpointError
from openblip.files import open_file

POINTER = b"version https://git-lfs"


def refuse_stand_ins(path: Path) -> None:
    """Raises CheckpointError when there is no file of any content at `path`, or it may not be read."""
    if not path.is_file():
        problem = "is no file" if path.exists() else "is missing"
        raise CheckpointError(f"{path} {problem}: the model folder is incomplete, get it again")
    try:
        with open_file(path) as file:
            start = file.read(len(POINTER))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if start == POINTER:
        raise CheckpointError(f"{path} is a Git LFS pointer: fetch the real file with `git lfs pull`")
    if not start:
        raise CheckpointError(f"{path} is empty: get the file again")
