"""`Sample`, the row that every data set is read into: about one image, several images or a video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from openblip.data.sources.parquet import ParquetCell
from openblip.errors import ImageError

LARGEST_FILE = 2**28
"""Largest packed file that is read, in bytes; usual images are a thousand times smaller."""


@dataclass(frozen=True)
class PackedFile:
    """A file stored uncompressed inside a larger file, as in a tar.

    Attributes:
        archive: the larger file, whose bytes from `offset` to `offset + size` are this file.
        name: the name of this file in the archive.
    """

    archive: Path
    offset: int
    size: int
    name: str

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"

    @property
    def place(self) -> str:
        """Its position in the archive, which no other file has."""
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
"""An image in a file, in a tar or in a Parquet table. Each kind has a `name` and `read_bytes()`."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of a data set as its annotation file has it; the texts are not cleaned yet.

    Fields that a data set does not have are empty.

    Attributes:
        images: usually one; two for NLVR2, none for a video.
        image_id: identifies the image or the video in its data set; rows about one image share it.
        sample_id: identifies the row in its data set, for example the id of a question.
        captions: what people wrote about the image; for pairs of text and label (NLVR2, SNLI-VE) the one sentence.
        question: a question about the image.
        answers: the answer of each person, with repetitions (VQA: ten).
        label: the class (ImageNet), "entailment", "neutral" or "contradiction" (SNLI-VE), "True" or "False" (NLVR2).
        choices: the answers to choose from, for multiple choice (A-OKVQA).
        kind: the type of the question, if the data set has types.
        video: the video file.
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
