"""Load batches in order; images are decoded, or features read, ahead of the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch

from openblip.data.augment import BLIP2, Augmentation, draw_part
from openblip.data.feature_store import FeatureStore
from openblip.data.image_files import BadImage, open_image
from openblip.data.pairs import DataSource, ImageText
from openblip.data.sample import ImageFile
from openblip.data.views import CROPS_FROM, MIRRORED_VIEW, draw_view
from openblip.errors import ImageError, OpenBlipError
from openblip.images.prefetch import anything, read_ahead
from openblip.images.transform import ImageTransform, fit, normalize
from openblip.training.input.batches import BatchPlan, BatchRow
from openblip.training.tasks.task import Views

PATIENCE = 20
"""After this many batches without a readable image, the paths must be wrong."""

Source = TypeVar("Source")
Batch = tuple[list[BatchRow], Views | None]
LoadedRow = tuple[BatchRow, "list[np.ndarray[Any, Any]]"]
"""A row with its resized images, each [S, S, 3] uint8: one, or two of a claim about two."""


class BatchLoader(ABC):
    """Batches with their pixels or features.

    Attributes:
        steps: batches of an epoch.
        images: the images of each data source that are known before the first step.
        identity: what else identifies the data, for checkpoints.
    """

    def __init__(
        self, steps: int, images: Sequence[Sequence[ImageText]], identity: Mapping[str, str] | None = None
    ) -> None:
        self.steps, self.images, self.identity = steps, images, identity or {}
        self._bad: list[BadImage] = []
        self._known: set[str] = set()

    @abstractmethod
    def batches(self, epoch: int, skip: int) -> Iterator[Batch]:
        """This process' rows of the batches of an epoch, without the first `skip` batches; views are on the CPU."""

    def take_unreadable(self) -> list[BadImage]:
        """Images and tars that could not be read since the last call, without duplicates."""
        bad, self._bad = self._bad, []
        return bad

    def _note(self, bad: BadImage) -> None:
        if str(bad.image) not in self._known:
            self._known.add(str(bad.image))
            self._bad.append(bad)


class PlannedLoader(BatchLoader):
    """Loads the batches of a plan, which knows all images."""

    def __init__(self, plan: BatchPlan) -> None:
        super().__init__(plan.steps, plan.images)
        self.plan = plan


class TextLoader(PlannedLoader):
    """Loads batches for a task without images."""

    def batches(self, epoch: int, skip: int) -> Iterator[Batch]:
        for batch in self.plan.batches(epoch, skip):
            yield batch, None


class FeatureLoader(PlannedLoader):
    """Loads features from disk, with one store for each data source."""

    def __init__(self, plan: BatchPlan, stores: Sequence[FeatureStore]) -> None:
        super().__init__(plan)
        self.stores = stores
        self._mirrored: dict[tuple[int, ImageFile, int], bool] = {}

    def batches(self, epoch: int, skip: int) -> Iterator[Batch]:
        for batch in self.plan.batches(epoch, skip):
            features = [self.stores[row.source].patches([row.pair.image], [row.view]) for row in batch]
            yield [self._with_texts_of_view(row) for row in batch], Views(patches=torch.cat(features))

    def _with_texts_of_view(self, row: BatchRow) -> BatchRow:
        """The row with the texts of the mirror image, if its features are of the mirror image."""
        if row.view == 0:
            return row
        mirrored = row.mirrored()
        return mirrored if mirrored.pair != row.pair and self._is_mirrored(row) else row

    def _is_mirrored(self, row: BatchRow) -> bool:
        """Whether the view is mirrored. For crops, this depends on the image's size, so the image is opened."""
        image, source = row.pair.image, self.plan.sources[row.source]
        if row.view < CROPS_FROM or not source.mirror:
            return row.view == MIRRORED_VIEW
        place = row.source, image, row.view
        if place not in self._mirrored:
            try:
                size = open_image(image).size
            except ImageError:  # deleted since its features were computed: no reason to end the run
                return False
            self._mirrored[place] = draw_view(size, image.name, row.view, source.min_area).mirrored
        return self._mirrored[place]


class ImageLoader(PlannedLoader):
    """Loads images from disk, and crops and mirrors them differently each time."""

    def __init__(
        self, plan: BatchPlan, sources: Sequence[DataSource], transform: ImageTransform, skip_bad: bool = True
    ) -> None:
        super().__init__(plan)
        self.sources, self.transform, self.skip_bad = sources, transform, skip_bad

    def batches(self, epoch: int, skip: int) -> Iterator[Batch]:
        own = self.plan.batch_size // self.plan.world.size
        rows = chain.from_iterable(self.plan.batches(epoch, skip))
        return prefetch_batches(rows, self._load, own, self.transform, self._skip)

    def _load(self, row: BatchRow) -> LoadedRow:
        return load_row(row, self.sources[row.source], self.transform)

    def _skip(self, row: BatchRow, error: ImageError) -> None:
        bad = next((image for image in row.pair.images if str(image) == error.source), row.pair.image)
        skip_or_raise(self._note, bad, error, self.skip_bad)


def load_row(row: BatchRow, source: DataSource, transform: ImageTransform) -> LoadedRow:
    """A row with its images, cropped and mirrored by the row's generator, and with the texts for them.

    Two images change places half of the time, and sides in their text with them, as in LAVIS: they are the sides of the
    pair there, so that mirroring one of the images changes no text.

    Raises ImageError if an image cannot be read.
    """
    images, mirrored = [open_image(image) for image in row.pair.images], False
    if source.augment:
        settings = Augmentation(source.min_area, mirror=BLIP2.mirror if source.mirror else 0.0)
        parts = [draw_part(image.size, row.rng, settings) for image in images]
        images = [part.of(image) for part, image in zip(parts, images, strict=True)]
        mirrored = parts[0].mirrored
        if len(images) == 2:
            mirrored = source.mirror and row.rng.random() < 0.5
            images = images[::-1] if mirrored else images
    return row.mirrored() if mirrored else row, [fit(image, transform) for image in images]


def skip_or_raise(note: Callable[[BadImage], None], image: ImageFile, error: OpenBlipError, skip_bad: bool) -> None:
    """Record a bad image, or raise its error, as the recipe says."""
    if not skip_bad:
        raise error
    note(BadImage(image, str(error)))


def prefetch_batches(
    sources: Iterable[Source],
    load: Callable[[Source], LoadedRow],
    batch_size: int,
    transform: ImageTransform,
    skip_or_raise: Callable[[Source, ImageError], None],
) -> Iterator[Batch]:
    """Batches of rows, their images read in threads ahead of the model.

    An image that cannot be read is replaced by another one of its batch, or of the next batch with a readable image: so
    a batch is as large as those of other processes, and the same when the step is repeated.

    Args:
        leave_out: gets what could not be read, before the batch that it is missing from is given out.

    Raises:
        OpenBlipError: no image of many batches in a row, or of all batches, can be read.
    """
    waiting: list[list[LoadedRow | None]] = []
    problem = ""
    for batch in read_ahead(sources, load, batch_size, in_threads=anything):
        for source, found in batch:
            if isinstance(found, ImageError):
                problem = problem or str(found)
                skip_or_raise(source, found)
        waiting.append([None if isinstance(found, ImageError) else found for _, found in batch])
        good = [found for found in waiting[-1] if found is not None]
        if not good and len(waiting) == PATIENCE:
            break
        for rows in waiting if good else []:
            filled = [found or _stand_in(good[place % len(good)], rows) for place, found in enumerate(rows)]
            pixels = normalize([image for _, images in filled for image in images], transform)
            yield [row for row, _ in filled], Views(pixels=pixels)
        if good:
            waiting, problem = [], ""
    if waiting:
        raise OpenBlipError(
            f"none of {len(waiting) * batch_size} images in a row can be read ({problem}): "
            "check the data source's paths"
        )


def _stand_in(found: LoadedRow, batch: Sequence[LoadedRow | None]) -> LoadedRow:
    """A row as a replacement; from another batch, with a copy of its generator, so that batch's texts do not change."""
    row, pixels = found
    return found if any(each is found for each in batch) else (replace(row, rng=copy(row.rng)), pixels)
