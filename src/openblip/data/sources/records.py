"""A row of anyone's table to a `Sample`: columns are known by their usual names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from openblip.data.sample import Picture, Sample
from openblip.data.sources.parquet import ParquetCell
from openblip.errors import OpenBlipError
from openblip.images.sources import is_address

COLUMNS: dict[str, tuple[str, ...]] = {
    "image": tuple(
        "image image_path image_name img img_path photo file file_name filename file_path filepath path".split()
    ),
    "captions": ("captions", "caption", "text", "description", "comment"),
    "question": ("question",),
    "answers": ("answers", "answer"),
    "label": ("label", "class"),
    "split": ("split",),
    "image_id": ("image_id",),
    "sample_id": ("question_id", "sample_id", "instance_id", "id"),
    "kind": ("question_type", "kind", "type"),
}
"""What each of our fields may be called in a table, likeliest first; capitals do not matter."""

SHOWN_COLUMNS = 12
SHOWN_CHARACTERS = 40


class Columns:
    """Which columns of one table hold what.

    Attributes:
        names: our field's name to the table's column.
    """

    def __init__(self, found: Iterable[str], place: str, *, needs_image: bool = True) -> None:
        """Raises OpenBlipError when no column names a picture, or none says anything about it."""
        columns = [str(name) for name in found]
        lower = {name.strip().lower(): name for name in reversed(columns)}
        self.place = place
        self.names: dict[str, str] = {}
        for field, aliases in COLUMNS.items():
            known = next((lower[alias] for alias in aliases if alias in lower), None)
            if known is not None:
                self.names[field] = known
        if needs_image and "image" not in self.names:
            raise OpenBlipError(
                f"{place} has no column of pictures: name one image or image_path; it has {shown_columns(columns)}"
            )
        if not {"captions", "question", "label"} & self.names.keys():
            raise OpenBlipError(
                f"{place} says nothing about its pictures: name a column caption, or question and answer; "
                f"it has {shown_columns(columns)}"
            )

    def value(self, row: Mapping[str, Any], field: str) -> Any:
        return row.get(self.names[field]) if field in self.names else None

    def text(self, row: Mapping[str, Any], field: str) -> str:
        value = self.value(row, field)
        return "" if _is_empty(value) else str(value).strip()

    def texts(self, row: Mapping[str, Any], field: str) -> tuple[str, ...]:
        """One text or a list of them, which a CSV writes as JSON."""
        value = self.value(row, field)
        if isinstance(value, str) and value.lstrip().startswith("["):
            with suppress(ValueError):  # "[laughs] what is this" is a caption
                value = json.loads(value)
        values = value if isinstance(value, (list, tuple)) else [value]
        return tuple(str(text).strip() for text in values if not _is_empty(text))

    def sample(self, row: Mapping[str, Any], pictures: tuple[Picture, ...], name: str) -> Sample:
        """The row as a sample.

        Args:
            name: of the picture, which stands in for an image_id.
        """
        return Sample(
            images=pictures,
            image_id=self.text(row, "image_id") or name,
            sample_id=self.text(row, "sample_id"),
            captions=self.texts(row, "captions"),
            question=self.text(row, "question"),
            answers=self.texts(row, "answers"),
            label=self.text(row, "label"),
            kind=self.text(row, "kind"),
        )


class PictureFinder:
    """The pictures that a table names, relative to a folder; rows about one picture share its path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._found: dict[str, Path] = {}

    def find(self, value: object, place: str) -> tuple[Picture, str]:
        """The picture and what the table calls it.

        Raises:
            OpenBlipError: the cell at `place` is empty, an address or something else.
        """
        if isinstance(value, ParquetCell):
            return value, value.name
        if _is_empty(value):
            raise OpenBlipError(f"{place} names no picture: fill it in or leave the row out")
        if not isinstance(value, str):
            raise OpenBlipError(f"{place} has {type(value).__name__} for a picture: a path is needed")
        if value not in self._found:
            if is_address(value):
                raise OpenBlipError(f"{place} has a web address for a picture: download it and name the file")
            # Tables written on Windows: a backslash is part of hardly any name elsewhere.
            path = Path(value.strip() if "/" in value else value.strip().replace("\\", "/"))
            self._found[value] = self.folder / (path.expanduser() if path.parts[:1] == ("~",) else path)
        return self._found[value], value.strip()


def _is_empty(value: object) -> bool:
    # NaN, which pandas writes for nothing, differs from itself.
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def shown_columns(columns: list[str]) -> str:
    """The names of columns in one line, as a message has them."""
    # A header that is none may hold anything, new lines too.
    shown = ", ".join(" ".join(name.split())[:SHOWN_CHARACTERS] for name in columns[:SHOWN_COLUMNS])
    return shown + (" …" if len(columns) > SHOWN_COLUMNS else "") if columns else "none"
