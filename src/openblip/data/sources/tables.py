"""Tables in CSV, JSON lines or Parquet: a row names an image and has texts about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from openblip.data.sample import ImageFile, Sample
from openblip.data.sources.csv_records import CsvFile
from openblip.data.sources.documents import Document, kind_of, read_document
from openblip.data.sources.image_index import ImageIndex
from openblip.data.sources.json_rows import read_values
from openblip.data.sources.named_lines import is_lines, read_named_lines
from openblip.data.sources.parquet import read_parquet
from openblip.data.sources.records import SAYS, Columns, ImageFinder, asked_columns, known_columns, tell_skipped
from openblip.errors import OpenBlipError, OptionError

CSV_SUFFIXES = frozenset({".csv", ".tsv", ".txt"})
JSON_SUFFIXES = frozenset({".jsonl", ".ndjson", ".json"})
LINE_SUFFIXES = CSV_SUFFIXES | {".token"}
FAILED = "say that the image could not be used"
NO_IMAGE = "are conversations without an image"
LONGEST_CELL = 20
"""Most lines that a row of a CSV may take; a longer row has an unclosed quote."""


@dataclass(frozen=True)
class TableOptions:
    """How a table is read.

    Attributes:
        images: the folder that paths in the table are relative to; None: the folder of the table.
        split: read only this part: rows with this value in the column `split`, or a split of Karpathy's.
        annotations: the file with the answers to VQA's questions, if it has another name than the official one.
        question: what all answers of a table without questions answer.
        together: other files that are read with this one.
    """

    images: Path | None = None
    split: str | None = None
    annotations: Path | None = None
    question: str = ""
    together: frozenset[Path] = frozenset()

    def document(self, path: Path, content: Mapping[str, Any], images: ImageIndex) -> Document:
        return Document(path, content, images, self.split, self.annotations, self.question, self.together)


def read_table(path: Path, options: TableOptions | None = None, skipped: list[str] | None = None) -> list[Sample]:
    """The rows of a table, whose columns are found by their usual names (see `records.COLUMNS`), or of an annotation
    file in one of the forms that `documents` knows.

    Args:
        skipped: gets a sentence about rows that are left out because they report an error or have no image; by default
            it is logged.

    Raises:
        OpenBlipError: there is no such table, a row cannot be read, or columns are missing.
    """
    options = options or TableOptions()
    folder = options.images or path.parent
    finder, index = ImageFinder(folder), ImageIndex(folder)
    # Rows of a JSONL may have different keys: captions and questions may be mixed.
    columns_of: dict[tuple[str, ...], Columns] = {}
    samples: list[Sample] = []
    empty, has_splits = True, False
    left_out = {FAILED: 0, NO_IMAGE: 0}
    rows = read_rows(path)
    first = [*islice(rows, 2)]
    if len(first) == 1 and path.suffix.lower() in JSON_SUFFIXES and (reader := kind_of(first[0][1])) is not None:
        read = read_document(reader, options.document(path, first[0][1], index))
        tell_skipped(read.notes, skipped)
        return read.samples
    if options.annotations is not None:
        raise OptionError(f"{path} is no file of VQA's questions: leave annotations: {options.annotations} out")
    for place, row in chain(first, rows):
        empty = False
        row = _with_image(row)
        columns = columns_of.get(tuple(row))
        if columns is None:
            if row.get("error") and not SAYS & known_columns(row).keys():
                left_out[FAILED] += 1
                continue
            known = known_columns(row)
            if "turns" in known and not {"image", "image_id"} & known.keys():
                left_out[NO_IMAGE] += 1
                continue
            columns = Columns(row, place if columns_of else str(path), question=options.question)
            columns_of[tuple(row)] = columns
        has_splits = has_splits or "split" in columns.names
        if options.split is not None and columns.text(row, "split", place) != options.split:
            continue
        if columns.failed(row):
            left_out[FAILED] += 1
            continue
        images, name = _images(columns, row, place, finder, index)
        samples += columns.samples(row, images, name, place)
    tell_skipped(
        [f"{path}: {count} rows are left out, for they {why}" for why, count in left_out.items() if count], skipped
    )
    if options.split is not None and not has_splits and not empty:
        raise OpenBlipError(f"{path} has no column split: leave split: {options.split} out")
    if empty:
        raise OpenBlipError(f"{path} has no rows: check that it is the right file")
    if not samples:
        wanted = (
            "that can be used" if options.split is None else f"of the split {options.split}: check its column split"
        )
        raise OpenBlipError(f"{path} has no rows {wanted}")
    return _found_elsewhere(samples, finder, index, str(path))


def _found_elsewhere(samples: list[Sample], finder: ImageFinder, index: ImageIndex, place: str) -> list[Sample]:
    """The samples, with their images looked for by name if not one of them is at its path.

    A table may come from another machine or from a folder that is laid out differently. Where some images are at their
    paths, the others are missing: an image of the same name elsewhere is not the one that is meant.
    """
    names = finder.names
    if not names or any(path.is_file() for path in names):
        return samples
    found = {path: index.find(name, place) for path, name in names.items()}
    elsewhere: dict[ImageFile, Path] = {path: image for path, image in found.items() if image.is_file()}
    return [replace(sample, images=tuple(elsewhere.get(image, image) for image in sample.images)) for sample in samples]


def _with_image(row: dict[str, Any]) -> dict[str, Any]:
    """The row with the first and the second of its list of images as its images, if it has such a list."""
    listed = row.get("images")
    if "image" in row or not isinstance(listed, list) or len(listed) not in (1, 2):
        return row
    return {**row, **dict(zip(("image", "second_image"), listed, strict=False))}


def _images(
    columns: Columns, row: dict[str, Any], place: str, finder: ImageFinder, index: ImageIndex
) -> tuple[tuple[ImageFile, ...], str]:
    """The images of a row, and the name of the first."""
    if "image" not in columns.names:
        name = columns.id(row, "image_id", place)
        return (index.find(name, place),), name
    image, name = finder.find(columns.value(row, "image"), place)
    if "second_image" not in columns.names:
        return (image,), name
    return (image, finder.find(columns.value(row, "second_image"), place)[0]), name


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of any table as dictionaries, each with its place for error messages.

    Raises:
        OpenBlipError: as `read_table`.
    """
    suffix = path.suffix.lower()
    if not path.is_file():
        raise OpenBlipError(f"there is no table at {path}: check the path")
    if suffix == ".parquet":
        for number, row in enumerate(read_parquet(path, _wanted), start=1):
            yield f"{path}, row {number},", row
    elif suffix in JSON_SUFFIXES:
        for place, value in read_values(path):
            if not isinstance(value, dict):
                raise OpenBlipError(f"{place} is no JSON object: write a list of {{...}}, or one a line")
            yield place, value
    elif suffix in LINE_SUFFIXES and is_lines(path):
        yield from read_named_lines(path)
    elif suffix in CSV_SUFFIXES:
        yield from _csv_rows(path)
    else:
        raise OpenBlipError(f"{path} is no table: a .csv, .tsv, .jsonl, .json or .parquet file is one")


def _wanted(names: Sequence[str]) -> dict[str, str]:
    """The columns to read, by our fields, and those that are named as questions."""
    return {name: name for name in asked_columns(names)} | known_columns(names)


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
