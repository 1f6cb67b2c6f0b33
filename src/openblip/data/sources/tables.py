"""Tables in CSV, JSON lines or Parquet: a row names an image and has texts about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openblip.data.sample import ImageFile, Sample
from openblip.data.sources.csv_records import CsvFile
from openblip.data.sources.json_rows import read_values
from openblip.data.sources.parquet import read_parquet
from openblip.data.sources.records import SAYS, Columns, ImageFinder, known_columns, tell_skipped
from openblip.errors import OpenBlipError

CSV_SUFFIXES = frozenset({".csv", ".tsv", ".txt"})
JSON_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json"})
TABLE_SUFFIXES = CSV_SUFFIXES | JSON_SUFFIXES | {".parquet"}
FAILED = "error"
"""The key that `openblip caption --json` writes instead of captions if it could not read an image."""
LONGEST_CELL = 20
"""Most lines that a row of a CSV may take; a longer row has an unclosed quote."""


def read_table(
    path: Path, image_root: Path | None = None, split: str | None = None, skipped: list[str] | None = None
) -> list[Sample]:
    """The rows of a table, whose columns are found by their usual names (see `records.COLUMNS`).

    Args:
        image_root: the folder that paths in the table are relative to; by default the folder of the table.
        split: read only rows with this value in the column `split`.
        skipped: gets a sentence about rows in which our own commands report a bad image; by default it is logged.

    Raises:
        OpenBlipError: there is no such table, a row cannot be read, or columns are missing.
    """
    finder = ImageFinder(image_root or path.parent)
    # Rows of a JSONL may have different keys: captions and questions may be mixed.
    columns_of: dict[tuple[str, ...], Columns] = {}
    samples: list[Sample] = []
    empty, has_splits, failed = True, False, 0
    for place, row in read_rows(path):
        empty = False
        columns = columns_of.get(tuple(row))
        if columns is None:
            if row.get(FAILED) and not SAYS & known_columns(row).keys():
                failed += 1
                continue
            columns = columns_of[tuple(row)] = Columns(row, place if columns_of else str(path))
        has_splits = has_splits or "split" in columns.names
        if split is not None and columns.text(row, "split", place) != split:
            continue
        image, name = finder.find(columns.value(row, "image"), place)
        images: tuple[ImageFile, ...] = (image,)
        if "second_image" in columns.names:
            images += (finder.find(columns.value(row, "second_image"), place)[0],)
        samples.append(columns.sample(row, images, name, place))
    if failed:
        tell_skipped([f"{path}: {failed} rows are left out, for they say that the image could not be used"], skipped)
    if split is not None and not has_splits and not empty:
        raise OpenBlipError(f"{path} has no column split: leave split: {split} out")
    if empty:
        raise OpenBlipError(f"{path} has no rows: check that it is the right file")
    if not samples:
        wanted = "that can be used" if split is None else f"of the split {split}: check its column split"
        raise OpenBlipError(f"{path} has no rows {wanted}")
    return samples


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of any table as dictionaries, each with its place for error messages.

    Raises:
        OpenBlipError: as `read_table`.
    """
    suffix = path.suffix.lower()
    if not path.is_file():
        raise OpenBlipError(f"there is no table at {path}: check the path")
    if suffix == ".parquet":
        for number, row in enumerate(read_parquet(path, known_columns), start=1):
            yield f"{path}, row {number},", row
    elif suffix in JSON_SUFFIXES:
        for place, value in read_values(path):
            if not isinstance(value, dict):
                raise OpenBlipError(f"{place} is no JSON object: write a list of {{...}}, or one a line")
            yield place, value
    elif suffix in CSV_SUFFIXES:
        yield from _csv_rows(path)
    else:
        raise OpenBlipError(f"{path} is no table: a .csv, .tsv, .jsonl or .parquet file is one")


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    file = CsvFile(path)
    names = file.columns
    for record in file.records():
        place = f"{path}, line {record.line},"
        if record.lines > LONGEST_CELL:
            raise OpenBlipError(f"{place} begins a row of {record.lines} lines: close its quote")
        # A short row ends early.
        missing = [None] * (len(names) - len(record.cells))
        yield place, dict(zip(names, [*record.cells, *missing], strict=True))
