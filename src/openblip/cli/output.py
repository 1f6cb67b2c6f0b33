"""A command's output file: each batch is kept as it comes, and the same command goes on behind the last one.

Until FILE is whole, two files lie beside it. FILE.part holds what was written so far; FILE.part.progress says in its
first line what command wrote it, and in a further line a batch how many images are done and how long FILE.part was.
A kill between the two leaves bytes that no line counts: they are cut off, and that batch is computed again.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openblip.errors import OpenBlipError
from openblip.saving import locked, naming, put_on_disk, rename, replacing

PART, PROGRESS, LOCK = ".part", ".part.progress", ".lock"
FILES = "the files of "
"""Begins the settings that are states of files; None where they were not on this machine yet."""


@dataclass(frozen=True)
class Command:
    """What decides the content of an output file.

    Attributes:
        settings: options by the names that the user has for them, with their values as JSON.
        total: images in all.
    """

    settings: Mapping[str, Any]
    total: int


@dataclass
class Kept:
    """What a command has written so far.

    Attributes:
        done: images, of which `failed` lists the numbers of those that could not be used.
    """

    path: Path
    command: Command
    done: int = 0
    size: int = 0
    failed: list[int] = field(default_factory=list)

    @property
    def part(self) -> Path:
        return self.path.with_name(self.path.name + PART)

    @property
    def progress(self) -> Path:
        return self.path.with_name(self.path.name + PROGRESS)

    def start(self) -> None:
        """Go on from what is there. Raises OpenBlipError when it is not of this command, and is worth something."""
        first, lines = self._read()
        if self.part.exists() and first is None:
            raise OpenBlipError(
                f"{self.part} is in the way, which is not of this command: move it, or give another --output"
            )
        size = self.part.stat().st_size if self.part.exists() else 0
        last = next((line for line in reversed(lines) if line["bytes"] <= size), None)
        if last is not None and first is not None:
            changed = _changes(first, self.command.settings)
            if changed:
                raise OpenBlipError(
                    f"{self.part} holds {last['done']:,} images of another command ({'; '.join(changed)}): give that "
                    f"command to go on, delete {self.part} to begin anew, or give another --output"
                )
            self.done, self.size = last["done"], last["bytes"]
            self.failed = [number for line in lines[: lines.index(last) + 1] for number in line["failed"]]
            with naming(self.part):
                os.truncate(self.part, self.size)
        # Written anew: it may end within a line, or say more than is there.
        rows: list[object] = [dict(self.command.settings)]
        if self.done:
            rows.append({"done": self.done, "bytes": self.size, "failed": self.failed})
        else:
            # First: a progress file without a part says nothing, a part without a progress file is somebody else's.
            self.part.unlink(missing_ok=True)
        with replacing(self.progress) as draft:
            draft.write_bytes(b"".join(_line(row) for row in rows))
        with naming(self.part):
            self.part.touch()

    def add(self, content: bytes, done: int, failed: list[int]) -> None:
        """Keep a batch. Raises OSError, with the name of the file, when it cannot be written."""
        if content:
            _append(self.part, content)
            put_on_disk(self.part)  # before the progress says so
        self.size += len(content)
        _append(self.progress, _line({"done": done, "bytes": self.size, "failed": failed}))
        self.done = done
        self.failed += failed

    def finish(self, write: Callable[[Path], None] | None) -> None:
        """Give FILE what was kept, or what `write` writes to a draft."""
        if write is None:
            with naming(self.path):
                rename(self.part, self.path)
        else:
            with replacing(self.path) as draft:
                write(draft)
        self.remove()

    def remove(self) -> None:
        self.part.unlink(missing_ok=True)
        self.progress.unlink(missing_ok=True)

    def _read(self) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        """The settings, if there are any, and the progress of all whole lines."""
        try:
            content = self.progress.read_bytes()
        except FileNotFoundError:
            return None, []
        try:
            first, *lines = [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]
            return dict(first), [_checked(row) for row in lines]
        except (ValueError, TypeError, LookupError, RecursionError):
            return None, []


@contextmanager
def kept_output(path: Path, command: Command, say: Callable[[str], None]) -> Iterator[Kept]:
    """What is written to `path`, an ordinary file; whatever ends the command, what was kept stays.

    Args:
        say: tells the user in a sentence what is kept, and how to go on.

    Raises:
        OpenBlipError: another command is writing there, or what is kept there is of another command.
    """
    lock = path.with_name(path.name + LOCK)
    with locked(lock, f"another command is writing to {path}: wait for it, or give another --output"):
        kept = Kept(path, command)
        kept.start()
        if kept.done:
            bad = f", {len(kept.failed):,} of which could not be read" if kept.failed else ""
            say(f"going on in {kept.part}: {kept.done:,} of {command.total:,} images are done{bad}")
        try:
            yield kept
        except BaseException:
            if kept.done:
                say(
                    f"{kept.done:,} of {command.total:,} images are done and kept in {kept.part}: "
                    "the same command goes on from there"
                )
            else:
                with suppress(OSError):
                    kept.remove()
            raise


def _changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two commands, in the user's words."""
    found = []
    for name in dict.fromkeys([*now, *then]):
        before, after = then.get(name), now.get(name)
        if before != after and not (name.startswith(FILES) and None in (before, after)):
            shown = name.startswith("-") and all(len(json.dumps(value)) < 80 for value in (before, after))
            found.append(f"{name} was {_told(before)}, now {_told(after)}" if shown else f"{name} changed")
    return found


def _checked(row: Any) -> dict[str, Any]:
    return {"done": int(row["done"]), "bytes": int(row["bytes"]), "failed": [int(number) for number in row["failed"]]}


def _told(value: object) -> str:
    return "left out" if value is None else str(value)


def _line(row: object) -> bytes:
    return json.dumps(row).encode() + b"\n"


def _append(path: Path, content: bytes) -> None:
    with path.open("ab", buffering=0) as file:
        write_all(file, path, content)


def write_all(file: io.RawIOBase, path: Path, content: bytes) -> None:
    """Write to a file without a buffer. Raises OSError, with the file's name, when it takes no more."""
    rest = memoryview(content)
    with naming(path):
        while rest:
            rest = rest[file.write(rest) or 0 :]
