"""Which files of those named are new to an index, changed, moved, copied or gone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from openblip.errors import ImageError, OptionError
from openblip.files import read_bytes
from openblip.images.sources import describe_source, find_images, is_address
from openblip.search.store import Entry

LARGEST_IN_MEMORY = 64 * 2**20
"""Bytes of a file that is hashed and decoded from one reading; larger ones are read twice."""
PIECE = 2**20


@dataclass(frozen=True)
class Seen:
    """A file as it is now.

    Attributes:
        path: absolute.
    """

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Named:
    """What the user named.

    Attributes:
        files: the images, by their absolute paths, in order.
        folders: whose images are all among the files.
    """

    files: list[str]
    folders: list[str]


def find_files(inputs: Sequence[str | os.PathLike[str]]) -> Named:
    """Files, folders with their subfolders, and patterns, as absolute paths.

    Raises:
        ImageError: an input that gives no image: nothing leaves the index because a disk is not there.
        OptionError: an address: an index is of files.
    """
    texts = [os.fspath(given) for given in inputs]
    for text in texts:
        if is_address(text):
            raise OptionError(f"{describe_source(text)} is a web address: an index is of files; download it first")
    paths = [os.path.abspath(path) for path in find_images(texts, recursive=True)]
    return Named(paths, [os.path.abspath(text) for text in texts if os.path.isdir(text)])


def state_of(path: str) -> Seen:
    """Raises ImageError when there is nothing that can be read."""
    try:
        state = os.stat(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError(describe_source(path), f"cannot be read ({reason}); check the path") from error
    return Seen(path, state.st_size, state.st_mtime_ns)


def is_same(entry: Entry, seen: Seen) -> bool:
    """Whether a file is as it was by size and time of change."""
    return (entry.size, entry.mtime_ns) == (seen.size, seen.mtime_ns)


def read_hashed(seen: Seen) -> tuple[bytes, bytes | None]:
    """A file's SHA-256, and its bytes unless there are too many of them.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        if seen.size <= LARGEST_IN_MEMORY:
            content = read_bytes(seen.path)
            return hashlib.sha256(content).digest(), content
        from openblip.files import open_file

        digest = hashlib.sha256()
        with open_file(seen.path) as file:
            while piece := file.read(PIECE):
                digest.update(piece)
        return digest.digest(), None
    except (OSError, ValueError) as error:
        reason = (error.strerror or error) if isinstance(error, OSError) else error
        raise ImageError(describe_source(seen.path), f"cannot be read ({reason}); check the file") from error


def gone_from(entries: Iterable[Entry], named: Named) -> list[Entry]:
    """Entries of files in the named folders that are not there any more. Others are not looked at."""
    there = set(named.files)
    prefixes = tuple(os.path.join(folder, "") for folder in named.folders)
    return [
        entry
        for entry in entries
        if entry.path.startswith(prefixes) and entry.path not in there and not os.path.lexists(entry.path)
    ]


def by_path(entries: Iterable[Entry]) -> tuple[dict[str, Entry], list[Entry]]:
    """The latest entry of each path, and those before it, which an interruption left."""
    latest: dict[str, Entry] = {}
    old = []
    for entry in entries:
        if entry.path in latest:
            old.append(latest[entry.path])
        latest[entry.path] = entry
    return latest, old


def by_content(entries: Mapping[str, Entry]) -> dict[bytes, list[Entry]]:
    """Entries that have the same content."""
    found: dict[bytes, list[Entry]] = {}
    for entry in entries.values():
        found.setdefault(entry.sha256, []).append(entry)
    return found
