"""Turn a row of any table into a `Sample`; columns are found by their usual names."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from openblip.data.sample import ImageFile, Sample
from openblip.data.sources.cells import encodable, is_empty, shown_columns, to_id, to_text, to_texts
from openblip.data.sources.conversations import read_turns
from openblip.data.sources.json_rows import parse_json
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
        *("caption_str", "tags"),
    ),
    "question": ("question",),
    "answers": ("answers", "answer"),
    "label": ("label", "class"),
    "split": ("split",),
    "image_id": ("image_id", "imageid"),
    "sample_id": ("question_id", "questionid", "sample_id", "instance_id", "id"),
    "kind": ("question_type", "kind", "type"),
    "turns": ("conversations", "messages"),
    "error": ("error",),
}
"""Names that a column for each of our fields may have, most likely first; case does not matter."""

SAYS = frozenset(("captions", "question", "label", "turns"))
"""A row needs at least one of these fields, or a column whose name is a question."""
NO_ERRORS = frozenset(("", "0", "false", "no", "none", "null"))
"""What stands in a column of errors where there was none."""


def known_columns(found: Iterable[object]) -> dict[str, str]:
    """Our fields that the table has, each with the name of its column."""
    lower = {str(name).strip().lower(): str(name) for name in reversed([*found])}
    columns = {
        field: next((lower[alias] for alias in aliases if alias in lower), None) for field, aliases in COLUMNS.items()
    }
    if columns["second_image"] == columns["image"]:
        columns["second_image"] = None
    return {field: column for field, column in columns.items() if column is not None}


def asked_columns(found: Iterable[object]) -> list[str]:
    """The columns whose names are questions, as `openblip run ask` writes several; their cells are answers."""
    return [str(name) for name in found if str(name).strip().endswith("?") and len(str(name).strip()) > 1]


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
        asked: columns that are named as the question that their cells answer.
        question: what is asked where there is no column of questions; texts are answers to it then.
    """

    def __init__(self, found: Iterable[str], place: str, *, needs_image: bool = True, question: str = "") -> None:
        """Raises OpenBlipError if there is no column of images, or no column of texts or labels."""
        columns = [str(name) for name in found]
        self.names = known_columns(columns)
        self.asked = [] if "question" in self.names else asked_columns(columns)
        self.question = question
        if needs_image and not {"image", "image_id"} & self.names.keys():
            raise OpenBlipError(
                f"{place} has no column of images: name one image or image_path; it has {shown_columns(columns)}"
            )
        captions, sample_id = (self.names.get(field, "").strip().lower() for field in ("captions", "sample_id"))
        if captions == "text" and sample_id == "question_id" and "question" not in self.names:
            self.names["question"] = self.names.pop("captions")  # as LLaVA's lists of questions call it
        if question and not {"question", "answers"} & self.names.keys() and "captions" in self.names:
            self.names["answers"] = self.names.pop("captions")
        if "answers" in self.names and not (SAYS & self.names.keys() or self.asked or question):
            raise OpenBlipError(
                f"{place} has answers, but no questions: name a column question, or give the one question of all rows "
                "(--question, or question in a recipe)"
            )
        if not (SAYS & self.names.keys() or self.asked or question):
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

    def failed(self, row: Mapping[str, Any]) -> bool:
        """Whether the row reports an error, as those of our own commands do."""
        value = self.value(row, "error")
        return not is_empty(value) and str(value).strip().lower() not in NO_ERRORS

    def sample(self, row: Mapping[str, Any], images: tuple[ImageFile, ...], name: str, place: str) -> Sample:
        """The row as a sample, without its conversation and without columns that are named as questions.

        Args:
            name: name of the image, used if the row has no image_id.
            place: where the row is, for error messages.

        Raises:
            OpenBlipError: a cell does not hold texts.
        """
        question, answers = self.text(row, "question", place), self.texts(row, "answers", place)
        return Sample(
            images=images,
            image_id=self.id(row, "image_id", place) or name,
            sample_id=self.id(row, "sample_id", place),
            captions=self.texts(row, "captions", place),
            question=question or (self.question if "question" not in self.names else ""),
            answers=answers,
            label=self.text(row, "label", place),
            kind=self.text(row, "kind", place),
        )

    def samples(self, row: Mapping[str, Any], images: tuple[ImageFile, ...], name: str, place: str) -> list[Sample]:
        """All that the row says: one sample, or one for each turn of its conversation and for each question that is
        the name of a column. Arguments and errors as for `sample`.
        """
        whole = self.sample(row, images, name, place)
        found = []
        for number, (question, answer) in enumerate(self._asked(row, place)):
            sample_id = f"{whole.sample_id}-{number}" if whole.sample_id and number else whole.sample_id
            texts = (answer,)
            if question:
                found.append(Sample(images, whole.image_id, sample_id, question=question, answers=texts))
            else:
                found.append(Sample(images, whole.image_id, sample_id, captions=texts))
        if not found or (SAYS - {"turns"}) & self.names.keys() or self.question:
            found.insert(0, whole)
        return found

    def _asked(self, row: Mapping[str, Any], place: str) -> Iterator[tuple[str, str]]:
        turns = self.value(row, "turns")
        if isinstance(turns, str) and not is_empty(turns):
            turns = parse_json(turns, f"{place} column {self.names['turns']},")
        if not is_empty(turns):
            yield from read_turns(turns, place)
        for name in self.asked:
            if answer := to_text(row.get(name), place, name.strip()):
                yield name.strip(), answer


class ImageFinder:
    """Finds the images that a table names, relative to a folder; rows about one image share its path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._found: dict[str, Path] = {}

    @property
    def names(self) -> dict[Path, str]:
        """The paths of all images that were looked for, each with its name in the table."""
        return {path: name.strip() for name, path in self._found.items()}

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
