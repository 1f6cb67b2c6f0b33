"""CSV and TSV files as records: the cells of each, and its text as it stands in the file."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Literal

from openblip.data.sources.json_rows import reading
from openblip.errors import OpenBlipError

DELIMITERS = ",;\t|"
CELL = 16 << 20
"""Characters of the largest cell: a quote that is never closed must not take a whole large file into memory."""


@dataclass(frozen=True, slots=True)
class CsvRecord:
    """One row of a file.

    Attributes:
        line: number of its first line, counted from 1.
        lines: how many lines of the file it takes.
        raw: its text, with the line break at its end if there is one.
        cells: the texts of its cells.
    """

    line: int
    lines: int
    raw: str
    cells: list[str]


class CsvFile:
    """A file of records; the first one is the header.

    Attributes:
        header: the record of the header; None if the file is empty.
        delimiter: the one of `DELIMITERS` that the header has most of.
        has_bom: whether the file begins with a byte order mark.

    Raises:
        OpenBlipError: the file cannot be read, is not UTF-8 or no CSV, or two columns have one name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # The limit, which is of the whole process, is 128 kB by default: pages and encoded files in cells are larger.
        csv.field_size_limit(max(CELL, csv.field_size_limit()))
        with reading(path), path.open("rb") as file:
            self.has_bom = file.read(3) == b"\xef\xbb\xbf"
        with reading(path), self._open() as file:
            # Counted in the header only, which is short and has no prose.
            first = file.readline()
            self.delimiter = max(DELIMITERS, key=first.count)
            file.seek(0)
            self.header = next(self._records(file), None)
        names = Counter(self.columns)
        twice = [name for name, count in names.items() if count > 1 and name.strip()]
        if twice:
            raise OpenBlipError(f"{path} has several columns {twice[0]!r}: give each a name of its own")

    @property
    def columns(self) -> list[str]:
        return self.header.cells if self.header is not None else []

    @property
    def quoting(self) -> Literal[0, 3]:
        """A quote in a TSV is an ordinary character, unless it encloses a whole cell."""
        return csv.QUOTE_NONE if self.delimiter == "\t" else csv.QUOTE_MINIMAL

    def records(self) -> Iterator[CsvRecord]:
        """The records behind the header, without empty lines.

        Raises:
            OpenBlipError: as the class, or a row has more cells than the header.
        """
        with self._open() as file:
            records = self._records(file)
            next(records, None)
            for record in records:
                if len(record.cells) > len(self.columns):
                    raise self._too_wide(record.line)
                yield record

    def count_records(self) -> int:
        """How many `records` there are; much faster than to read them.

        Raises:
            OpenBlipError: as `records` and `check_end`.
        """
        count = before = start = 0
        widest = len(self.columns)
        with self._open() as file, reading(self.path):
            reader = csv.reader(file, delimiter=self.delimiter, quoting=self.quoting)
            try:
                for cells in reader:
                    if cells:
                        count += 1
                        start = before
                        if len(cells) > widest:
                            raise self._too_wide(before + 1)
                    before = reader.line_num
            except csv.Error as error:
                raise self._no_csv(reader.line_num, error) from error
            if count:
                file.seek(0)
                raw = "".join(islice(file, start, before))
                self.check_end(CsvRecord(start + 1, before - start, raw, []))
        return max(0, count - 1)

    def check_end(self, last: CsvRecord) -> None:
        """Raises OpenBlipError if the file ends within the quotes of its last record."""
        if self.quoting == csv.QUOTE_NONE:
            return
        try:
            list(csv.reader([last.raw], delimiter=self.delimiter, strict=True))
        except csv.Error as error:
            if "unexpected end" in str(error):
                place = f"{self.path}, line {last.line},"
                raise OpenBlipError(f"{place} opens a quote that is never closed: close it") from None

    def _too_wide(self, line: int) -> OpenBlipError:
        return OpenBlipError(
            f"{self.path}, line {line}, has more cells than the header: quote texts that hold {self.delimiter!r}"
        )

    def _no_csv(self, line: int, error: csv.Error) -> OpenBlipError:
        if "field limit" in str(error):
            return OpenBlipError(
                f"{self.path}, line {line}, has a cell of more than {CELL >> 20} MB: close the quote that is open "
                "there, or give the table without that column"
            )
        return OpenBlipError(f"{self.path}, line {line}, is no CSV: {error}")

    def _open(self) -> IO[str]:
        with reading(self.path):
            return self.path.open(encoding="utf-8-sig", newline="")

    def _records(self, file: IO[str]) -> Iterator[CsvRecord]:
        taken: list[str] = []

        def lines() -> Iterator[str]:
            for line in file:
                taken.append(line)
                yield line

        reader = csv.reader(lines(), delimiter=self.delimiter, quoting=self.quoting)
        before = 0
        with reading(self.path):
            try:
                for cells in reader:
                    if cells:
                        if self.quoting == csv.QUOTE_NONE:
                            cells = [_unquoted(cell) for cell in cells]
                        yield CsvRecord(before + 1, reader.line_num - before, "".join(taken), cells)
                    before = reader.line_num
                    taken.clear()
            except csv.Error as error:
                raise self._no_csv(reader.line_num, error) from error


def _unquoted(cell: str) -> str:
    if len(cell) < 2 or not (cell[0] == cell[-1] == '"'):
        return cell
    return cell[1:-1].replace('""', '"')
