"""Paths that tables name, and what is said of the content of the files that a job reads."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

from openblip.data.sources.json_rows import reading
from openblip.data.sources.paths import local_path
from openblip.errors import OpenBlipError
from openblip.images.sources import is_address
from openblip.jobs import object_storage

DIGEST_PIECE = 2**20
WHOLE = 2**28
"""Bytes up to which archives are read whole to see whether they changed."""
SAMPLES = 64

_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")


def image_path(text: str, folder: Path | str | None) -> str:
    """The path or address that the text of a cell means; paths may be of any system.

    Args:
        folder: what paths are relative to; a text is an address in object storage.

    Raises:
        OpenBlipError: it is empty, or no path.
    """
    text = text.strip()
    if not text:
        raise OpenBlipError("the row names no image")
    if is_address(text):
        return text
    if isinstance(folder, str):
        return object_storage.join(folder, text)
    folder = folder or Path()
    if os.name != "nt" and _DRIVE.match(text):
        return str(_without_drive(text, folder))
    return str(local_path(text, folder, "the row"))


def _without_drive(text: str, folder: Path) -> Path:
    r"""`C:\Users\ann\photos\a.jpg` below a folder: as much of its end as there is a file for."""
    parts = [part for part in PureWindowsPath(text).parts[1:] if part not in ("..", ".")]
    ends = [folder / PurePosixPath(*parts[start:]) for start in range(len(parts))]
    found = next((path for path in ends if path.is_file()), None)
    if found is None:
        raise OpenBlipError(
            f"{text} is on a Windows drive, and no end of it is below {folder}: name the folder with --data-root"
        )
    return found


def is_excluded(image: str, root: str, exclude: Sequence[str]) -> bool:
    """Whether one of the patterns is of the image's name, of a folder in its path, or of its path below `root`."""
    if is_address(image):
        return any(fnmatch(image, pattern) for pattern in exclude)
    path = PurePath(os.path.relpath(image, root) if root else image)
    shown = path.as_posix()
    # "drafts" means a folder of that name wherever it is, "2019/*.png" a path below the input.
    return any(
        fnmatch(shown, pattern.rstrip("/")) or any(fnmatch(part, pattern.rstrip("/")) for part in path.parts)
        for pattern in exclude
    )


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex. Raises OpenBlipError if it cannot be read."""
    digest = hashlib.sha256()
    with reading(path), path.open("rb") as file:
        while piece := file.read(DIGEST_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def digest_of(archives: Iterable[Path], *more: str) -> str:
    """A digest of files with images in them, in order, and of texts.

    Of a file of more than `WHOLE` bytes, its size, the time of its last change and 64 MiB of its content are taken:
    to read a terabyte would take hours.

    Raises:
        OpenBlipError: one cannot be read.
    """
    digest = hashlib.sha256()
    for path in archives:
        with reading(path), path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size <= WHOLE:
                digest.update(file_digest(path).encode())
                continue
            digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
            for number in range(SAMPLES):
                file.seek((status.st_size - DIGEST_PIECE) * number // (SAMPLES - 1))
                digest.update(file.read(DIGEST_PIECE))
    digest.update("\0".join(more).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
