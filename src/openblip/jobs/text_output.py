"""Output files that are text: CSV, TSV and JSON lines. Rows of a file of the same kind keep every byte."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from openblip.data.sources.csv_records import CsvFile
from openblip.jobs.rows import Row, Table
from openblip.jobs.text_tables import CsvTable


def csv_lines(
    table: Table,
    columns: Sequence[str],
    new: Sequence[str],
    rows: Iterable[tuple[Row, Mapping[str, Any]]],
    *,
    has_tabs: bool = False,
) -> Iterator[bytes]:
    """The content of a CSV or TSV file, line by line.

    Args:
        columns: the columns of the input; new: those that are added.
        rows: each row with the values of its new columns; one that is missing is empty.
    """
    is_same = isinstance(table, CsvTable) and (table.path.suffix.lower() == ".tsv") == has_tabs
    same = CsvFile(table.path) if is_same else None
    delimiter = same.delimiter if same is not None else "\t" if has_tabs else ","
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


def json_lines(new: Sequence[str], rows: Iterable[tuple[Row, Mapping[str, Any]]]) -> Iterator[bytes]:
    """The content of a file of JSON lines. Arguments as for `csv_lines`."""
    for row, values in rows:
        text = _json_text(row)
        added = json.dumps({name: values.get(name) for name in new}, ensure_ascii=False)
        comma = ", " if row.values else ""
        yield (text[:-1].rstrip() + comma + added[1:] + "\n").encode("utf-8", "backslashreplace")


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


def _json_text(row: Row) -> str:
    """The row as it was, as a JSON object."""
    if row.json_values is None:
        return json.dumps(dict(row.values), ensure_ascii=False)
    if row.raw:
        return row.raw.rstrip()
    fields = (f"{json.dumps(name, ensure_ascii=False)}: {text}" for name, text in row.json_values.items())
    return "{" + ", ".join(fields) + "}"


def _encoded(text: str) -> bytes:
    # Names of files that are no text are written as the bytes that they are.
    return text.encode("utf-8", "surrogateescape")
