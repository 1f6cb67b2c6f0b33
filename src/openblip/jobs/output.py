"""The file that a job writes: the rows as they were, with new columns behind the old ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from openblip.errors import OptionError
from openblip.jobs.rows import ColumnType, Row, Table
from openblip.jobs.text_output import csv_lines, json_lines
from openblip.saving import naming

ERROR = "error"
"""The column that says what was wrong with a row; empty where nothing was."""

Columns: TypeAlias = "Mapping[str, ColumnType]"
Finished: TypeAlias = "tuple[Row, Mapping[str, Any]]"
"""A row with the values of its new columns; one that is missing is empty."""
Write: TypeAlias = "Callable[[Table, Columns, Columns, Iterable[Finished], Path], None]"
"""Writes a file: the table, its columns, the new columns, the rows, and the path of the draft."""


def _write_csv(table: Table, columns: Columns, new: Columns, rows: Iterable[Finished], path: Path) -> None:
    with naming(path), path.open("wb") as file:
        file.writelines(csv_lines(table, list(columns), list(new), rows))


def _write_tsv(table: Table, columns: Columns, new: Columns, rows: Iterable[Finished], path: Path) -> None:
    with naming(path), path.open("wb") as file:
        file.writelines(csv_lines(table, list(columns), list(new), rows, has_tabs=True))


def _write_json_lines(table: Table, columns: Columns, new: Columns, rows: Iterable[Finished], path: Path) -> None:
    with naming(path), path.open("wb") as file:
        file.writelines(json_lines(list(new), rows))


KINDS: dict[str, Write] = {
    ".csv": _write_csv,
    ".tsv": _write_tsv,
    ".jsonl": _write_json_lines,
    ".ndjson": _write_json_lines,
}
"""How files are written, by suffix."""


def writer_of(path: Path) -> Write:
    """How a file of this name is written. Raises OptionError if its name does not say what it is."""
    write = KINDS.get(path.suffix.lower())
    if write is None:
        raise OptionError(f"{path} has an unknown ending: a run writes .csv, .tsv or .jsonl")
    return write
