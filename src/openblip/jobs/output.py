"""The file that a job writes: the rows as they were, with new columns behind the old ones."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from openblip.data.sources.csv_records import CsvFile
from openblip.errors import OptionError
from openblip.jobs.rows import Row, Table

OutputKind: TypeAlias = Literal["csv", "tsv", "jsonl"]
KINDS: dict[str, OutputKind] = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
ERROR = "error"
"""The column that says what was wrong with a row; empty where nothing was."""


def kind_of(path: Path) -> OutputKind:
    """Raises OptionError if the name of the file does not say what it is."""
    kind = KINDS.get(path.suffix.lower())
    if kind is None:
        raise OptionError(f"{path} has an unknown ending: a run writes .csv, .tsv or .jsonl")
    return kind


def written(
    table: Table, columns: Sequence[str], new: Sequence[str], rows: Iterable[tuple[Row, Mapping[str, Any]]], path: Path
) -> Iterator[bytes]:
    """The content of an output file, line by line.

    Rows of a file of the same kind keep every byte: new cells are appended to their text.

    Args:
        columns: the columns of the input; new: those that are added.
        rows: each row with the values of its new columns; one that is missing is empty.
        path: its suffix decides the kind of file.
    """
    kind = kind_of(path)
    if kind == "jsonl":
        for row, values in rows:
            yield _json_line(table, row, [(name, values.get(name)) for name in new])
        return
    same = CsvFile(table.path) if table.kind == kind else None
    delimiter = same.delimiter if same is not None else "\t" if kind == "tsv" else ","
    has_tabs = delimiter == "\t"
    end = "\n"
    if same is None or same.header is None:
        yield _encoded(_cells([*columns, *new], has_tabs, delimiter) + end)
    else:
        text = same.header.raw.rstrip("\r\n")
        end = same.header.raw[len(text) :] or end
        mark = "\ufeff" if same.has_bom else ""
        yield _encoded(mark + text + delimiter + _cells(list(new), has_tabs, delimiter) + end)
    for row, values in rows:
        cells = [_cell(values.get(name)) for name in new]
        if same is None:
            old = [row.values.get(name, "") for name in columns]
            yield _encoded(_cells([*old, *cells], has_tabs, delimiter) + end)
        else:
            text = row.raw.rstrip("\r\n")
            yield _encoded(text + delimiter + _cells(cells, has_tabs, delimiter) + (row.raw[len(text) :] or end))


def _cell(value: Any) -> str:
    """A value as the text of a cell: lists are JSON, numbers as Python writes them, nothing is empty."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cells(texts: list[str], has_tabs: bool, delimiter: str) -> str:
    if has_tabs:
        return delimiter.join(map(_tsv_cell, texts))
    line = io.StringIO()
    # Characters of its line break are what makes the writer put a text in quotes.
    csv.writer(line, delimiter=delimiter, lineterminator="\r\n").writerow(texts)
    return line.getvalue().removesuffix("\r\n")


def _tsv_cell(text: str) -> str:
    """A cell of a TSV, which has no tabs and line breaks in cells."""
    if any(mark in text for mark in "\t\r\n"):
        text = " ".join(text.split())
    return '"' + text.replace('"', '""') + '"' if len(text) > 1 and text[0] == text[-1] == '"' else text


def _json_line(table: Table, row: Row, new: list[tuple[str, Any]]) -> bytes:
    if row.json_values is None:
        fields: dict[str, Any] = dict(row.values) | dict(new)
        return (json.dumps(fields, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
    text = row.raw.rstrip()
    added = json.dumps(dict(new), ensure_ascii=False)
    comma = ", " if row.json_values else ""
    return (text[:-1].rstrip() + comma + added[1:] + "\n").encode("utf-8", "backslashreplace")


def _encoded(text: str) -> bytes:
    # Names of files that are no text are written as the bytes that they are.
    return text.encode("utf-8", "surrogateescape")
