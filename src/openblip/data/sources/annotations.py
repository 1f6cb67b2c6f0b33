"""Our annotation files: one JSON object per line, with an image and its captions, or a question about it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openblip.data.sample import ImageFile
from openblip.data.sources.cells import to_text, to_texts
from openblip.data.sources.json_rows import read_values
from openblip.data.sources.records import ImageFinder
from openblip.errors import OpenBlipError


@dataclass(frozen=True)
class Captioned:
    """An image and its captions."""

    image: Path
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Questioned:
    """A question about an image; several answers are the parts of one answer."""

    image: Path
    question: str
    answers: tuple[str, ...]
    kind: str = ""

    @property
    def answer(self) -> str:
        return ", ".join(self.answers)


def read_captions(path: Path, split: str | None = None, images: Path | None = None) -> list[Captioned]:
    """Read lines with `image`, `captions` and `split`; image paths are relative to `images` or the file's folder.

    Raises:
        OpenBlipError: the file is missing, or a line, which the message names, is malformed.
    """
    finder = ImageFinder(images or path.parent)
    return [
        Captioned(finder.path(row["image"], place), to_texts(row["captions"], place, "captions"))
        for place, row in _rows(path, ("image", "captions"))
        if split is None or row.get("split") == split
    ]


def read_questions(path: Path, images: Path | None = None) -> list[Questioned]:
    """Read lines with `image`, `question`, `answers` and optionally `type`; paths as for `read_captions`.

    Raises:
        OpenBlipError: the file is missing, or a line, which the message names, is malformed.
    """
    finder = ImageFinder(images or path.parent)
    return [
        Questioned(
            finder.path(row["image"], place),
            to_text(row["question"], place, "question"),
            to_texts(row["answers"], place, "answers"),
            to_text(row.get("type"), place, "type"),
        )
        for place, row in _rows(path, ("image", "question", "answers"))
    ]


def is_held_out(image: ImageFile, one_in: int) -> bool:
    """Whether an image belongs to the held-out `1 / one_in` of a set that has no official split.

    A hash of the file's stem decides, so the result is the same on any machine, in any order and for any subset, and
    all questions about one image are on the same side.
    """
    return int(hashlib.md5(Path(image.name).stem.encode()).hexdigest(), 16) % one_in == 0


def _rows(path: Path, required: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.exists():
        raise OpenBlipError(f"no annotation file at {path}: point data_root at the folder that has it")
    for place, row in read_values(path):
        if not isinstance(row, dict):
            raise OpenBlipError(f"{place} is no JSON object: write {{...}} a line")
        missing = [name for name in required if name not in row]
        if missing:
            raise OpenBlipError(f"{place} has no {' and no '.join(missing)}")
        yield place, row
