"""Inputs that are text: CSV and TSV tables, JSON lines, and lists of paths and addresses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from openblip.data.sources.csv_records import CsvFile, CsvRecord
from openblip.data.sources.json_rows import reading, split_object
from openblip.data.sources.records import known_columns
from openblip.images.path_lists import listed_path, read_lines
from openblip.images.sources import is_address
from openblip.jobs.json_types import JsonTypes
from openblip.jobs.paths import file_digest, image_path
from openblip.jobs.rows import IMAGE, ColumnType, Row, Scan, Table


@dataclass(frozen=True)
class ListTable(Table):
    """A path or an address a line."""

    def rows(self, start: int = 0, *, packed: bool = False) -> Iterator[Row]:
        with reading(self.path), self.path.open("rb") as file:
            for number, line in enumerate(islice(read_lines(file), start, None), start=start + 1):
                yield Row(f"{self.path}, line {number},", {IMAGE: line}, line)

    def scan(self) -> Scan:
        columns: dict[str, ColumnType] = {IMAGE: "string"}
        return Scan(sum(1 for _ in self.rows()), columns, file_digest(self.path))

    def image_of(self, row: Row) -> str:
        text = row.values[IMAGE]
        if isinstance(self.folder, str):
            return image_path(text, self.folder)
        return text if is_address(text) else listed_path(text, self.folder)


@dataclass(frozen=True)
class JsonTable(Table):
    """An object a line. Objects may have different fields."""

    def rows(self, start: int = 0, *, packed: bool = False) -> Iterator[Row]:
        with reading(self.path), self.path.open(encoding="utf-8-sig", newline="\n") as text:
            lines = ((number, line) for number, line in enumerate(text, start=1) if line.strip())
            for number, line in islice(lines, start, None):
                place = f"{self.path}, line {number},"
                fields = split_object(line, place)
                yield Row(place, {name: _text_of(value) for name, value in fields.items()}, line, fields)

    def scan(self) -> Scan:
        types = JsonTypes()
        count = 0
        for row in self.rows():
            count += 1
            types.add(row.json_values or {})
        return Scan(count, types.found(), file_digest(self.path))

    def image_of(self, row: Row) -> str:
        column = self.column or known_columns(row.values).get(IMAGE, "")
        return image_path(row.values.get(column, ""), self.folder)


@dataclass(frozen=True)
class CsvTable(Table):
    """A CSV or TSV file, of which every byte is kept: `Row.raw`."""

    def rows(self, start: int = 0, *, packed: bool = False) -> Iterator[Row]:
        file = CsvFile(self.path)
        names = file.columns
        record: CsvRecord | None = None
        for record in islice(file.records(), start, None):
            cells = [*record.cells, *[""] * (len(names) - len(record.cells))]
            raw = record.raw
            if len(record.cells) < len(names):  # a short row ends early
                text = raw.rstrip("\r\n")
                raw = text + file.delimiter * (len(names) - len(record.cells)) + raw[len(text) :]
            yield Row(f"{self.path}, line {record.line},", dict(zip(names, cells, strict=True)), raw)
        if record is not None:
            file.check_end(record)

    def scan(self) -> Scan:
        file = CsvFile(self.path)
        return Scan(file.count_records(), dict.fromkeys(file.columns, "string"), file_digest(self.path))

    def image_of(self, row: Row) -> str:
        return image_path(row.values.get(self.column, ""), self.folder)


def _text_of(value: str) -> str:
    """A JSON value as the text of a cell: strings without quotes, null as nothing, all others as they are written."""
    if value.startswith('"'):
        return str(json.loads(value))
    return "" if value == "null" else value
