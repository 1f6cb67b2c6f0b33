"""The file that a job writes: the rows as they were, with new columns behind the old ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias

from openblip.data.sources.parquet import NOT_INSTALLED
from openblip.errors import OptionError
from openblip.jobs.rows import ColumnType, Row, Table
from openblip.jobs.text_output import csv_lines, json_lines
from openblip.saving import naming

ERROR = "error"
"""The column that says what was wrong with a row; empty where nothing was."""

Columns: TypeAlias = "Mapping[str, ColumnType]"
Finished: TypeAlias = "tuple[Row, Mapping[str, Any]]"
"""A row with the values of its new columns; one that is missing is empty."""


class Writer(Protocol):
    """Writes an output file of some kind.

    Attributes:
        keeps_images: whether images in the table itself are written, too.
    """

    keeps_images: ClassVar[bool]

    def write(self, table: Table, columns: Columns, new: Columns, rows: Iterable[Finished], path: Path) -> None:
        """Write rows, each with the table's columns and new ones behind them, to the file of a draft.

        Raises:
            OSError: it cannot be written; `filename` is set.
        """
        ...


@dataclass(frozen=True)
class CsvWriter:
    """Lists are JSON text."""

    has_tabs: bool = False
    keeps_images: ClassVar[bool] = False

    def write(self, table: Table, columns: Columns, new: Columns, rows: Iterable[Finished], path: Path) -> None:
        with naming(path), path.open("wb") as file:
            file.writelines(csv_lines(table, list(columns), list(new), rows, has_tabs=self.has_tabs))


class JsonWriter:
    """An object a line."""

    keeps_images: ClassVar[bool] = False

    def write(self, table: Table, columns: Columns, new: Columns, rows: Iterable[Finished], path: Path) -> None:
        with naming(path), path.open("wb") as file:
            file.writelines(json_lines(list(new), rows))


class ParquetWriter:
    """Columns have types, and lists are lists."""

    keeps_images: ClassVar[bool] = True

    def write(self, table: Table, columns: Columns, new: Columns, rows: Iterable[Finished], path: Path) -> None:
        from openblip.jobs.parquet_output import write_parquet

        write_parquet(table, columns, new, rows, path)


WRITERS: dict[str, Writer] = {
    ".csv": CsvWriter(),
    ".tsv": CsvWriter(has_tabs=True),
    ".jsonl": JsonWriter(),
    ".ndjson": JsonWriter(),
    ".parquet": ParquetWriter(),
}
"""By suffix."""


def writer_of(path: Path) -> Writer:
    """What writes a file of this name.

    Raises:
        OptionError: its name does not say what it is, or pyarrow is needed for it and not installed.
    """
    writer = WRITERS.get(path.suffix.lower())
    if writer is None:
        raise OptionError(f"{path} has an unknown ending: a run writes .csv, .tsv, .jsonl or .parquet")
    if isinstance(writer, ParquetWriter) and find_spec("pyarrow") is None:
        raise OptionError(NOT_INSTALLED)
    return writer
