"""A journal of predictions, one JSON object per line, so that a killed run continues where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

from openblip.errors import OpenBlipError
from openblip.saving import naming


class Journal:
    """The predictions so far.

    Args:
        path: the file, which is read first if it exists; None: predictions are kept in memory only.

    Attributes:
        done: the fields of each row by its number. Rows with an unreadable image are left out when a file is opened,
            and tried again.
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
            self._file.truncate()  # a truncated line of a killed run

    def add(self, number: int, **fields: Any) -> None:
        """Store the prediction of a row, and flush it to disk."""
        self.done[number] = fields
        if self._file is not None:
            with naming(Path(self._file.name)):
                self._file.write(json.dumps({"row": number, **fields}, ensure_ascii=False) + "\n")
                self._file.flush()

    def beside(self, name: str) -> Path | None:
        """Another file in the same folder, for data that is no text."""
        return None if self.path is None else self.path.with_name(name)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _read(self, path: Path) -> int:
        """The length in bytes up to the end of the last complete line."""
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
