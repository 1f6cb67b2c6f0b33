"""The rows of a job: of a table, or of a list of images; read one at a time, as often as needed."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Literal, TypeAlias

from openblip.data.sources.cells import shown_columns
from openblip.data.sources.csv_records import CsvFile, CsvRecord
from openblip.data.sources.json_rows import reading, split_object
from openblip.data.sources.paths import local_path
from openblip.data.sources.records import known_columns
from openblip.errors import OpenBlipError, OptionError
from openblip.images.path_lists import listed_path, read_lines
from openblip.images.sources import find_images, is_address

Kind: TypeAlias = Literal["csv", "tsv", "jsonl", "list"]
KINDS: dict[str, Kind] = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
"""Kinds of tables, by suffix."""
LISTS = frozenset({".txt", ".lst", ".list"})
IMAGE = "image"
"""The only column of a list."""
DIGEST_PIECE = 1 << 20

_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        place: where it is, for error messages.
        raw: its text in the file, with its line break.
        values: the text of each cell, by column.
        json_values: the JSON text of each field as it is written; None of rows that are no JSON.
    """

    place: str
    raw: str
    values: Mapping[str, str]
    json_values: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Scan:
    """What a whole input holds.

    Attributes:
        rows: their number; columns: in the order of their first appearance.
        digest: SHA-256 of the file, in hex.
    """

    rows: int
    columns: tuple[str, ...]
    digest: str


@dataclass(frozen=True)
class Table:
    """An input whose rows can be read.

    Attributes:
        path: the file of the table or list.
        folder: relative paths of images are relative to it; None: to the current folder.
        column: the column of images; "" means that each row is searched for the usual names.
    """

    path: Path
    kind: Kind
    folder: Path | None
    column: str

    def rows(self) -> Iterator[Row]:
        """All rows in order. Raises OpenBlipError if the file cannot be read, or a row is none."""
        if self.kind == "list":
            with reading(self.path), self.path.open("rb") as file:
                for number, line in enumerate(read_lines(file), start=1):
                    yield Row(f"{self.path}, line {number},", line, {IMAGE: line})
        elif self.kind == "jsonl":
            with reading(self.path), self.path.open(encoding="utf-8-sig", newline="\n") as text:
                for number, line in enumerate(text, start=1):
                    if line.strip():
                        place = f"{self.path}, line {number},"
                        fields = split_object(line, place)
                        yield Row(place, line, {name: _text_of(value) for name, value in fields.items()}, fields)
        else:
            yield from self._csv_rows(CsvFile(self.path))

    def scan(self) -> Scan:
        """Read everything once, so that a fault in the last row is found before hours of work.

        Raises:
            OpenBlipError: as `rows`.
        """
        columns: dict[str, None] = {}
        if self.kind in ("csv", "tsv"):
            columns = dict.fromkeys(CsvFile(self.path).columns)
        count = 0
        for row in self.rows():
            count += 1
            if self.kind != "csv" and self.kind != "tsv":
                columns.update(dict.fromkeys(row.values))
        return Scan(count, tuple(columns), file_digest(self.path))

    def image_of(self, row: Row) -> str:
        """The path or address of a row's image.

        Raises:
            OpenBlipError: the row names none.
        """
        column = self.column or known_columns(row.values).get(IMAGE, "")
        text = row.values.get(column, "").strip() if self.kind != "list" else row.values[IMAGE]
        if not text:
            raise OpenBlipError("the row names no image")
        if is_address(text):
            return text
        if self.kind == "list":
            return listed_path(text, self.folder)
        folder = self.folder or Path()
        if os.name != "nt" and _DRIVE.match(text):
            return str(_without_drive(text, folder))
        return str(local_path(text, folder, "the row"))

    def _csv_rows(self, file: CsvFile) -> Iterator[Row]:
        names = file.columns
        record: CsvRecord | None = None
        for record in file.records():
            cells = [*record.cells, *[""] * (len(names) - len(record.cells))]
            raw = record.raw
            if len(record.cells) < len(names):  # a short row ends early
                text = raw.rstrip("\r\n")
                raw = text + file.delimiter * (len(names) - len(record.cells)) + raw[len(text) :]
            yield Row(f"{self.path}, line {record.line},", raw, dict(zip(names, cells, strict=True)))
        if record is not None:
            file.check_end(record)


def find_rows(
    text: str, spool: Path, *, exclude: Sequence[str] = (), column: str | None = None, data_root: Path | None = None
) -> tuple[Table, list[str] | None]:
    """The rows that an input of the command line means.

    Args:
        text: a table, a list of paths, a folder, a pattern, or an image.
        spool: where the list of a folder's or a pattern's images will be written.
        exclude: patterns of names, or of paths below the folder, that are left out.
        column: the column of images of a table; by default the first with one of the usual names.
        data_root: what relative paths of a table or a list are relative to; by default its own folder.

    Returns:
        The rows, and the images to write to `spool`, if it has to be written.

    Raises:
        OpenBlipError: there is no such input, or no column of images in it.
    """
    path = Path(text)
    kind = KINDS.get(path.suffix.lower(), "list")
    is_file = not is_address(text) and path.is_file()
    is_list = is_file and path.suffix.lower() in LISTS
    if kind == "list" and column is not None:
        raise OptionError(f"--image-column is for tables: {text} is none")
    if not is_file or (kind == "list" and not is_list):
        if is_file and path.suffix.lower() in (".json", ".parquet", ".tar"):
            raise OptionError(f"{text} cannot be read by run: give a CSV, TSV or JSONL file, a list, or a folder")
        if not is_address(text) and not path.exists() and path.suffix.lower() in (*KINDS, *LISTS):
            raise OptionError(f"there is no file {text}: check the path")
        root = text if path.is_dir() else ""
        images = [image for image in find_images([text], recursive=True) if not _is_excluded(image, root, exclude)]
        if not images:
            raise OptionError(f"--exclude leaves no image of {text}: exclude less")
        return Table(spool, "list", None, IMAGE), images
    if exclude:
        raise OptionError(f"--exclude is for folders and patterns: {text} is a file")
    folder = data_root or path.absolute().parent
    if is_list:
        return Table(path.absolute(), "list", folder, IMAGE), None
    return Table(path.absolute(), kind, folder, _image_column(path, kind, column)), None


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex. Raises OpenBlipError if it cannot be read."""
    digest = hashlib.sha256()
    with reading(path), path.open("rb") as file:
        while piece := file.read(DIGEST_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _image_column(path: Path, kind: Kind, column: str | None) -> str:
    if kind == "jsonl":  # rows may have different fields; the scan knows all of them
        return column or ""
    names = CsvFile(path).columns
    if column is not None and column not in names:
        raise OptionError(f"{path} has no column {column}: it has {shown_columns(names)}")
    found = column or known_columns(names).get(IMAGE)
    if found is None:
        raise OptionError(f"{path} has no column of images: name it with --image-column; it has {shown_columns(names)}")
    return found


def _is_excluded(image: str, root: str, exclude: Sequence[str]) -> bool:
    if is_address(image):
        return any(fnmatch(image, pattern) for pattern in exclude)
    path = PurePath(os.path.relpath(image, root) if root else image)
    shown = path.as_posix()
    # "drafts" means a folder of that name wherever it is, "2019/*.png" a path below the input.
    return any(
        fnmatch(shown, pattern.rstrip("/")) or any(fnmatch(part, pattern.rstrip("/")) for part in path.parts)
        for pattern in exclude
    )


def _without_drive(text: str, folder: Path) -> Path:
    r"""`C:\Users\ann\photos\a.jpg` below a folder: as much of its end as there is a file for."""
    parts = [part for part in PureWindowsPath(text).parts[1:] if part not in ("..", ".")]
    ends = [folder / PurePosixPath(*parts[start:]) for start in range(len(parts))]
    found = next((path for path in ends if path.is_file()), None)
    if found is None:
        raise OpenBlipError(
            f"{text} is on a Windows drive, and no end of it is below {folder}: name the folder with --data-root"
        )
    return found


def _text_of(value: str) -> str:
    """A JSON value as the text of a cell: strings without quotes, null as nothing, all others as they are written."""
    if value.startswith('"'):
        return str(json.loads(value))
    return "" if value == "null" else value
