"""Turn a row of any table into a `Sample`; columns are found by their usual names."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from openblip.data.sample import ImageFile, Sample
from openblip.data.sources.cells import encodable, is_empty, shown_columns, to_id, to_text, to_texts
from openblip.data.sources.parquet import ParquetCell
from openblip.data.sources.paths import local_path
from openblip.errors import OpenBlipError, printable
from openblip.images.sources import is_address

LOG = logging.getLogger("openblip.data")

COLUMNS: dict[str, tuple[str, ...]] = {
    "image": tuple(
        "image image_path image_name img img_path photo file file_name filename file_path filepath path "
        "left_image image0 image_0 image1 image_1".split()
    ),
    "second_image": tuple("second_image right_image image2 image_2 image1 image_1".split()),
    "captions": (
        *("captions", "caption", "text", "description", "comment", "sentences", "sentence", "statement", "hypothesis"),
    ),
    "question": ("question",),
    "answers": ("answers", "answer"),
    "label": ("label", "class"),
    "split": ("split",),
    "image_id": ("image_id",),
    "sample_id": ("question_id", "sample_id", "instance_id", "id"),
    "kind": ("question_type", "kind", "type"),
}
"""Names that a column for each of our fields may have, most likely first; case does not matter."""

SAYS = frozenset(("captions", "question", "label"))
"""A row needs at least one of these fields."""


def known_columns(found: Iterable[object]) -> dict[str, str]:
    """Our fields that the table has, each with the name of its column."""
    lower = {str(name).strip().lower(): str(name) for name in reversed([*found])}
    columns = {
        field: next((lower[alias] for alias in aliases if alias in lower), None) for field, aliases in COLUMNS.items()
    }
    if columns["second_image"] == columns["image"]:
        columns["second_image"] = None
    return {field: column for field, column in columns.items() if column is not None}


def tell_skipped(sentences: Sequence[str], skipped: list[str] | None) -> None:
    """Add the sentences to the caller's list; without a list, log them."""
    if skipped is not None:
        skipped += sentences
        return
    for sentence in sentences:
        LOG.warning("%s", printable(sentence, 2_000, 600))


class Columns:
    """The columns of one table.

    Attributes:
        names: our fields, each with the name of its column.
    """

    def __init__(self, found: Iterable[str], place: str, *, needs_image: bool = True) -> None:
        """Raises OpenBlipError if there is no column of images, or no column of texts or labels."""
        columns = [str(name) for name in found]
        self.names = known_columns(columns)
        if needs_image and "image" not in self.names:
            raise OpenBlipError(
                f"{place} has no column of images: name one image or image_path; it has {shown_columns(columns)}"
            )
        if not SAYS & self.names.keys():
            raise OpenBlipError(
                f"{place} says nothing about its images: name a column caption, or question and answer; "
                f"it has {shown_columns(columns)}"
            )

    def value(self, row: Mapping[str, Any], field: str) -> Any:
        return row.get(self.names[field]) if field in self.names else None

    def text(self, row: Mapping[str, Any], field: str, place: str) -> str:
        """The text of a cell, or "". Raises OpenBlipError if the cell, which is at `place`, holds anything else."""
        value = self.value(row, field)
        return "" if value is None else to_text(value, place, self.names[field].strip())

    def texts(self, row: Mapping[str, Any], field: str, place: str) -> tuple[str, ...]:
        """One text or several. Raises OpenBlipError as `text`."""
        value = self.value(row, field)
        return () if value is None else to_texts(value, place, self.names[field].strip())

    def id(self, row: Mapping[str, Any], field: str, place: str) -> str:
        """A name or a number. Raises OpenBlipError as `text`."""
        value = self.value(row, field)
        return "" if value is None else to_id(value, place, self.names[field].strip())

    def sample(self, row: Mapping[str, Any], images: tuple[ImageFile, ...], name: str, place: str) -> Sample:
        """The row as a sample.

        Args:
            name: name of the image, used if the row has no image_id.
            place: where the row is, for error messages.

        Raises:
            OpenBlipError: a cell does not hold texts.
        """
        return Sample(
            images=images,
            image_id=self.id(row, "image_id", place) or name,
            sample_id=self.id(row, "sample_id", place),
            captions=self.texts(row, "captions", place),
            question=self.text(row, "question", place),
            answers=self.texts(row, "answers", place),
            label=self.text(row, "label", place),
            kind=self.text(row, "kind", place),
        )


class ImageFinder:
    """Finds the images that a table names, relative to a folder; rows about one image share its path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._found: dict[str, Path] = {}

    def find(self, value: object, place: str) -> tuple[ImageFile, str]:
        """The image, and its name in the table.

        Raises:
            OpenBlipError: the cell at `place` is not a path.
        """
        if isinstance(value, ParquetCell):
            return value, value.name
        return self.path(value, place), encodable(str(value).strip())

    def path(self, value: object, place: str) -> Path:
        """The image's path. Raises OpenBlipError as `find`."""
        if is_empty(value):
            raise OpenBlipError(f"{place} names no image: fill it in or leave the row out")
        if not isinstance(value, str):
            raise OpenBlipError(f"{place} has {type(value).__name__} for an image: a path is needed")
        if value not in self._found:
            if is_address(value.strip()):
                raise OpenBlipError(f"{place} has a web address for an image: download it and name the file")
            self._found[value] = local_path(value.strip(), self.folder, place)
        return self._found[value]
