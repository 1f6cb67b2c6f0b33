"""The one shape in which every data set comes: a row about an image, or about several, or about a video."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from openblip.data.sources.parquet import ParquetCell
from openblip.errors import ImageError

LARGEST_FILE = 2**28
"""Bytes of a packed file that are read into memory at once; images have a thousandth of it."""


@dataclass(frozen=True)
class PackedFile:
    """A file inside a larger one that holds it uncompressed, as tar does.

    Attributes:
        archive: the larger file; the packed one is its bytes from `offset` to `offset + size`.
        name: what the packed file is called.
    """

    archive: Path
    offset: int
    size: int
    name: str

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"

    @property
    def place(self) -> str:
        """Where in the archive it is; no other one is there."""
        return f"{self.offset}:{self.size}"

    def read_bytes(self) -> bytes:
        """Raises ImageError when the archive is gone or shorter than it was, or the file is larger than any image."""
        if self.size > LARGEST_FILE:
            raise ImageError(str(self), f"has {self.size} bytes: no more than {LARGEST_FILE} are read")
        try:
            with self.archive.open("rb") as file:
                file.seek(self.offset)
                content = file.read(self.size)
        except OSError as error:
            raise ImageError(str(self), error.strerror or str(error)) from error
        if len(content) < self.size:
            raise ImageError(str(self), "the archive ends within this file: it is truncated")
        return content


ImageFile: TypeAlias = "Path | PackedFile | ParquetCell"
"""Where an image is. All kinds have a `name` and `read_bytes()`."""


def image_names(images: Sequence[ImageFile]) -> list[str]:
    """A name for each image that no other one of them has: its path below the folder that holds them all.

    Images of one folder are called by their file names; `a/1.jpg` and `b/1.jpg` stay apart. The names do not
    change when the whole folder moves.
    """
    folders = {str(_container(image).parent) for image in images}
    common = os.path.commonpath([os.path.abspath(folder) for folder in folders]) if folders else ""
    below = {folder: os.path.relpath(os.path.abspath(folder), common).replace(os.sep, "/") for folder in folders}

    def name_of(image: ImageFile) -> str:
        container = _container(image)
        folder = below[str(container.parent)]
        path = container.name if folder == "." else f"{folder}/{container.name}"
        return path if isinstance(image, Path) else f"{path}/{image.name}"

    return [name_of(image) for image in images]


def _container(image: ImageFile) -> Path:
    return image if isinstance(image, Path) else image.archive


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a data set, as its annotation file has it, texts not yet cleaned.

    What a kind of data set does not have stays empty.

    Attributes:
        images: what the row is about: mostly one image, two for NLVR2, none for a video.
        image_id: names the image (or the video) within its set; rows about one image share it.
        sample_id: names the row within its set: a question's id, say.
        captions: what people wrote about the image; for pairs of text and label (NLVR2, SNLI-VE) the one sentence.
        question: what is asked about it.
        answers: what each of the people asked answered, repeats and all (VQA: ten).
        label: the class (ImageNet), "entailment" and its like (SNLI-VE), "True" or "False" (NLVR2).
        choices: the answers to choose from, where the set offers some (A-OKVQA).
        kind: what sort of question it is, where the set says so.
        video: the film file.
    """

    images: tuple[ImageFile, ...] = ()
    image_id: str = ""
    sample_id: str = ""
    captions: tuple[str, ...] = ()
    question: str = ""
    answers: tuple[str, ...] = ()
    label: str = ""
    choices: tuple[str, ...] = ()
    kind: str = ""
    video: Path | None = None

    @property
    def image(self) -> ImageFile:
        """The only image. Raises ImageError when the row has none or several."""
        if len(self.images) != 1:
            raise ImageError(f"row {self.sample_id or self.image_id}", f"it has {len(self.images)} images, not one")
        return self.images[0]
