"""Where the files of a job lie: a folder, which processes of several machines may share."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from openblip.saving import naming, rename

DRAFT = ".draft"


class Store(Protocol):
    """Small files by name, which are there whole, or not at all. Instances are pickled."""

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if it is not there. Raises OSError if it cannot be read."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Make a file, or replace it. Raises OSError, with its name, if it cannot be written."""
        ...

    def names(self) -> list[str]: ...

    def remove(self, names: Iterable[str]) -> None:
        """Remove those of the files that are there."""
        ...

    def clear(self) -> None:
        """Remove all files."""
        ...


@dataclass(frozen=True)
class FolderStore:
    """Files in a folder, which is there while files are in it."""

    folder: Path

    def read(self, name: str) -> bytes | None:
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        path = self.folder / name
        # A worker that was given up may write the same file as the one that does its work now.
        draft = self.folder / f"{name}.{uuid.uuid4().hex}{DRAFT}"
        with naming(path):
            self.folder.mkdir(exist_ok=True)
            try:
                draft.write_bytes(content)
                rename(draft, path)
            except BaseException:
                with suppress(OSError):
                    draft.unlink()
                raise

    def names(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        return [path.name for path in self.folder.iterdir() if path.suffix != DRAFT]

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all files, and what killed processes left of some, and the folder."""
        with suppress(FileNotFoundError):
            for path in self.folder.iterdir():
                path.unlink(missing_ok=True)
            self.folder.rmdir()
