"""Predictions as they come, one JSON object a line, so that a run that was killed goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

from openblip.errors import OpenBlipError
from openblip.saving import naming


class Journal:
    """What was predicted so far.

    Args:
        path: the file, which is read first if it exists; None keeps predictions in memory only.

    Attributes:
        done: under each row's number its fields. Rows whose image could not be read are not among them when a
            file is opened: the image may have been mended.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.done: dict[int, dict[str, Any]] = {}
        self.path = path
        self._file: IO[str] | None = None
        if path is not None:
            kept = self._read(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("r+" if path.exists() else "w", encoding="utf-8", errors="backslashreplace")
            self._file.seek(kept)
            self._file.truncate()  # a line that a kill has cut

    def add(self, number: int, **fields: Any) -> None:
        """Keep a row's prediction, on disk as far as the system goes."""
        self.done[number] = fields
        if self._file is not None:
            with naming(Path(self._file.name)):
                self._file.write(json.dumps({"row": number, **fields}, ensure_ascii=False) + "\n")
                self._file.flush()

    def beside(self, name: str) -> Path | None:
        """A file in the same folder, for what is no line of text."""
        return None if self.path is None else self.path.with_name(name)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _read(self, path: Path) -> int:
        """Bytes up to the end of the last whole line."""
        if not path.exists():
            return 0
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                fields = json.loads(line)
                row = int(fields.pop("row"))
            except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError):
                raise OpenBlipError(f"{path}, line {number}, is no prediction: delete the file to begin anew") from None
            if "error" not in fields:
                self.done[row] = fields
        return len(whole)
