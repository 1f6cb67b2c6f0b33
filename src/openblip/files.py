"""Files that a user, a table or a model folder names: ordinary ones alone are opened.

A named pipe without a writer, a terminal, a device that never ends or a file of the kernel would hold up the program,
or fill its memory, before anyone could tell that it holds nothing of use.
"""

from __future__ import annotations

import os
import stat
from functools import cache
from pathlib import Path
from typing import BinaryIO

KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
KERNEL_FOLDERS = ("/proc", "/sys")
FLAGS = os.O_RDONLY
for _flag in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY", "O_NOINHERIT"):
    FLAGS |= getattr(os, _flag, 0)


class NotAFileError(OSError):
    """Something that is there and no ordinary file.

    Attributes:
        kind: what it is, such as "a named pipe".
    """

    def __init__(self, path: str | os.PathLike[str], kind: str) -> None:
        super().__init__(None, f"it is {kind}, not an ordinary file", os.fspath(path))
        self.kind = kind


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open an ordinary file to read its bytes; never waits.

    Raises:
        NotAFileError: there is something else. Folders raise as `open` does.
        OSError, ValueError: as `open`.
    """
    refuse(path, os.stat(path))
    # It may be another by now: without O_NONBLOCK the opening of a pipe waits for somebody who writes.
    return _opened(path, os.open(path, FLAGS))


def open_in_folder(folder: int, name: str, path: str | os.PathLike[str]) -> BinaryIO:
    """As `open_file`, for a file of a folder that is open; a link is not followed.

    Args:
        folder: its descriptor.
        path: what errors call the file.
    """
    refuse(path, os.stat(name, dir_fd=folder, follow_symlinks=False))
    return _opened(path, os.open(name, FLAGS | os.O_NOFOLLOW, dir_fd=folder))


def _opened(path: str | os.PathLike[str], handle: int) -> BinaryIO:
    try:
        refuse(path, os.fstat(handle))
        return open(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def refuse(path: str | os.PathLike[str], found: os.stat_result) -> None:
    """Raises NotAFileError, or IsADirectoryError, when `found` is of no ordinary file."""
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(21, "Is a directory", os.fspath(path))
    for is_kind, kind in KINDS:
        if is_kind(found.st_mode):
            raise NotAFileError(path, kind)
    if found.st_dev in _kernel_devices(KERNEL_FOLDERS):
        raise NotAFileError(path, "a file of the kernel")


def check_file(path: str | os.PathLike[str]) -> None:
    """Raises as `open_file`, for files that a library opens."""
    refuse(path, os.stat(path))


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """All of an ordinary file. Raises as `open_file`."""
    with open_file(path) as file:
        return file.read()


def read_text(path: str | os.PathLike[str], encoding: str = "utf-8", errors: str = "strict") -> str:
    """All of an ordinary file of text. Raises as `open_file`, or UnicodeDecodeError."""
    text = read_bytes(path).decode(encoding, errors)
    return text.replace("\r\n", "\n").replace("\r", "\n")


@cache
def _kernel_devices(folders: tuple[str, ...]) -> set[int]:
    found = set()
    for folder in folders:
        try:
            found.add(Path(folder).stat().st_dev)
        except OSError:
            continue
    # Where /proc or /sys is an empty folder of the root file system, nothing is told apart by it.
    return found - {Path(os.sep).stat().st_dev}
