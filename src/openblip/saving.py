"""Writing files: whole or not at all, one process at a time, and with the file's name in every error."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from openblip.errors import OpenBlipError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""Errors of disks: full, over quota, file too large, read-only, broken."""
RUST_ERROR = re.compile(r"I/O error: (.*?)(?: \(os error (\d+)\))?$", re.DOTALL)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the file's name to errors of writing it: the system names files when it opens them, not when they grow.

    Raises:
        OSError: with `path` as its filename where it had none; also for what safetensors raises instead of it.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    except Exception as error:
        from safetensors import SafetensorError

        match = RUST_ERROR.search(str(error))
        if not isinstance(error, SafetensorError) or match is None:
            raise
        number = int(match[2]) if match[2] else errno.EIO
        raise OSError(number, os.strerror(number) if match[2] else match[1], str(path)) from error


def put_on_disk(path: Path) -> None:
    """Wait until a file's content is on the disk, so that a power cut behind a change of its name cannot lose it.

    Raises:
        OSError: it cannot be written; `filename` is set.
    """
    with naming(path), path.open("r+b") as file:
        os.fsync(file.fileno())


def put_names_on_disk(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system has that: Windows and some others have not."""
    with suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def rename(draft: Path, path: Path) -> None:
    """Let a draft that was written take its place; a power cut leaves the old file or the new one, whole.

    Raises:
        OSError: it cannot be written; `filename` is set.
    """
    put_on_disk(draft)
    draft.replace(path)
    put_names_on_disk(path.parent)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A draft beside `path` that takes its name at the end; after an error it is gone, and `path` is what it was.

    Two processes that replace one file at a time need a lock: see `held`.

    Raises:
        OSError: it cannot be written; `filename` is set.
    """
    draft = path.with_name(path.name + ".draft")
    try:
        with naming(path):
            yield draft
            rename(draft, path)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """Replace a file by a text in UTF-8. Raises OSError, with the name of the file, when it cannot be written."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def locked(lock_file: Path, refusal: str) -> Iterator[None]:
    """Keeps other processes out. The system lets go of the lock of a process that is killed; the file goes at the end.

    Raises:
        OpenBlipError: another process is in; `refusal` is the sentence.
        OSError: the file cannot be made.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(lock_file)
    # All in one: Ctrl-C may come as soon as the file is there.
    try:
        try:
            with naming(lock_file):
                lock.acquire(timeout=0)
        except Timeout:
            raise OpenBlipError(refusal) from None
        yield
    finally:
        if lock.is_locked:
            # While it is held: once it is let go of, the file may be the lock of another process.
            with suppress(OSError):
                lock_file.unlink()
            lock.release()


LOCK, PID = "lock", "pid"
"""What `held` puts into a folder."""


@contextmanager
def held(folder: Path, refusal: Callable[[str], str]) -> Iterator[None]:
    """Makes a folder and keeps other processes out of it; at the end it goes, unless something else is in it.

    Args:
        refusal: makes the sentence for another process of what names the one that has it: " (process 12)" or nothing.

    Raises:
        OpenBlipError: another process has it.
        OSError: it cannot be made.
    """
    with naming(folder):
        folder.mkdir(exist_ok=True)
    pid = ""
    with suppress(OSError):
        pid = (folder / PID).read_text(encoding="utf-8").strip()
    try:
        with locked(folder / LOCK, refusal(f" (process {pid})" if pid else "")):
            write_text(folder / PID, str(os.getpid()))
            try:
                yield
            finally:
                with suppress(OSError):
                    (folder / PID).unlink()
    finally:
        with suppress(OSError):
            folder.rmdir()
