"""People's own data as one source: what `finetune` and `evaluate` are told on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from openblip.data.sample import Sample
from openblip.data.sources.open import DataSource, find_missing, read_source
from openblip.data.sources.records import tell_skipped
from openblip.errors import OpenBlipError


@dataclass(frozen=True)
class OwnData:
    """A file or folder of images and texts.

    Attributes:
        table: what `DataSource.table` may be.
        images: the folder of the images, if it is not the folder of the table.
        split, annotations, question: as of `DataSource`.
    """

    table: Path
    images: Path | None = None
    split: str | None = None
    annotations: Path | None = None
    question: str | None = None

    def source(self) -> DataSource:
        """As a source of a recipe, with absolute paths."""
        return DataSource(
            name="own",
            table=str(self.table.absolute()),
            images=None if self.images is None else str(self.images.absolute()),
            split=self.split,
            annotations=None if self.annotations is None else str(self.annotations.absolute()),
            question=self.question,
            clean=False,
        )

    def read(self, skipped: list[str] | None = None) -> list[Sample]:
        """All rows; how many images are missing is logged.

        Args:
            skipped: see `read_source`.

        Raises:
            OpenBlipError: the data is missing, empty or not understood, or none of its images is there.
        """
        rows = read_source(self.source(), Path(), skipped)
        found = find_missing(rows)
        if found.missing and found.missing == found.checked:
            raise OpenBlipError(
                f"none of the {found.checked:,} images of {self.table} is there ({found.first[0]} first): give their "
                "folder (--images)"
            )
        if found.missing:
            missing = f"{found.missing:,} of {found.checked:,} images are missing ({found.first[0]} first)"
            tell_skipped([f"{self.table}: {missing}"], None)
        return rows
