"""CSV, JSON lines and Parquet: one row a picture with what is said about it."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from openblip.data.sample import Sample
from openblip.data.sources.parquet import read_parquet
from openblip.data.sources.records import Columns, PictureFinder
from openblip.errors import OpenBlipError

CSV_SUFFIXES = frozenset({".csv", ".tsv", ".txt"})
JSON_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json"})
TABLE_SUFFIXES = CSV_SUFFIXES | JSON_SUFFIXES | {".parquet"}
DELIMITERS = ",;\t|"
LONGEST_CELL = 20
"""Lines that a row of a CSV may take; beyond, a quote was left open."""


def read_table(path: Path, pictures: Path | None = None, split: str | None = None) -> list[Sample]:
    """The rows of a table, whose columns are found by their usual names (see `records.COLUMNS`).

    Args:
        pictures: the folder that paths in the table are relative to; by default the table's own.
        split: only rows that say so in a column of that name.

    Raises:
        OpenBlipError: no such table, a row that cannot be read, or columns that tell too little.
    """
    finder = PictureFinder(pictures or path.parent)
    # The lines of a JSONL need not be alike: captions and questions may be mixed.
    known: dict[tuple[str, ...], Columns] = {}
    samples: list[Sample] = []
    empty, has_splits = True, False
    for place, row in read_rows(path):
        empty = False
        columns = known.get(tuple(row))
        if columns is None:
            columns = known[tuple(row)] = Columns(row, place if known else str(path))
        has_splits = has_splits or "split" in columns.names
        if split is not None and columns.text(row, "split") != split:
            continue
        picture, name = finder.find(columns.value(row, "image"), place)
        samples.append(columns.sample(row, (picture,), name))
    if split is not None and not has_splits and not empty:
        raise OpenBlipError(f"{path} has no column split: leave split: {split} out")
    if empty:
        raise OpenBlipError(f"{path} has no rows: check that it is the right file")
    if not samples:
        raise OpenBlipError(f"{path} has no rows of the split {split}: check its column split")
    return samples


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of any table as dictionaries, each with the name of its place for messages.

    Raises:
        OpenBlipError: as `read_table`.
    """
    suffix = path.suffix.lower()
    if not path.is_file():
        raise OpenBlipError(f"there is no table at {path}: check the path")
    if suffix == ".parquet":
        for number, row in enumerate(read_parquet(path), start=1):
            yield f"{path}, row {number},", row
    elif suffix in JSON_SUFFIXES or suffix in CSV_SUFFIXES:
        read = _json_rows if suffix == ".json" else _json_line_rows if suffix in JSON_SUFFIXES else _csv_rows
        try:
            yield from read(path)
        except UnicodeDecodeError as error:
            raise OpenBlipError(f"{path} is not UTF-8 ({error}): save it again as that") from error
    else:
        raise OpenBlipError(f"{path} is no table: a .csv, .tsv, .jsonl or .parquet file is one")


def _json_line_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}, line {number},"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise OpenBlipError(f"{place} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise OpenBlipError(f"{place} is no JSON object: write {{...}} a line")
            yield place, row


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    rows = load_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise OpenBlipError(f"{path} is no list of JSON objects: as a table it has to be one")
    for number, row in enumerate(rows, start=1):
        yield f"{path}, entry {number},", row


def load_json(path: Path) -> Any:
    """Raises OpenBlipError when the file is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise OpenBlipError(f"there is no file {path}: check the path") from None
    except OSError as error:
        raise OpenBlipError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    except ValueError as error:
        raise OpenBlipError(f"{path} is not JSON, or cut short ({error}): get it again") from error


def _csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        # Counted in the header alone, which is short and has no prose in it.
        delimiter = max(DELIMITERS, key=header.count)
        file.seek(0)
        # Tables with tabs are written with quotes around texts and without: there a quote opens nothing.
        has_tabs = delimiter == "\t"
        quoting: Literal[0, 3] = csv.QUOTE_NONE if has_tabs else csv.QUOTE_MINIMAL
        reader = csv.DictReader(file, delimiter=delimiter, quoting=quoting)
        before = 1
        try:
            twice = [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1 and name.strip()]
            if twice:
                raise OpenBlipError(f"{path} has several columns {twice[0]!r}: give each a name of its own")
            for row in reader:
                place = f"{path}, line {before + 1},"
                if reader.line_num - before > LONGEST_CELL:
                    raise OpenBlipError(f"{place} begins a row of {reader.line_num - before} lines: close its quote")
                before = reader.line_num
                if None in row:
                    raise OpenBlipError(f"{place} has more cells than the header: quote texts that hold {delimiter!r}")
                yield (
                    place,
                    {name: _unquoted(value) if quoting == csv.QUOTE_NONE else value for name, value in row.items()},
                )
        except csv.Error as error:
            raise OpenBlipError(f"{path}, line {reader.line_num}, is no CSV: {error}") from error


def _unquoted(value: str | None) -> str | None:
    if value is None or len(value) < 2 or not (value[0] == value[-1] == '"'):
        return value
    return value[1:-1].replace('""', '"')
