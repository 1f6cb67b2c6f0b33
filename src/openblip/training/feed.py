"""What a step looks at: batches in order, with their pictures read, or their features looked up, ahead of the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch

from openblip.data.augment import Augmentation, augment
from openblip.data.features import FeatureStore
from openblip.data.pairs import DataSource
from openblip.data.pictures import BadPicture, open_picture
from openblip.errors import ImageError, OpenBlipError
from openblip.images import ImageTransform, normalise, squash
from openblip.pipeline import anything, read_ahead
from openblip.training.batches import BatchPlan, Drawn
from openblip.training.tasks import Views

MIRRORED = 0.5
"""Share of pictures that are, where they may be."""


class Feed(ABC):
    """The batches of a plan with what is seen of them."""

    def __init__(self, plan: BatchPlan) -> None:
        self.plan = plan

    @abstractmethod
    def batches(self, epoch: int, skip: int) -> Iterator[tuple[list[Drawn], Views | None]]:
        """This process' rows of the batches of an epoch from number `skip` on; views are on the CPU."""


class TextFeed(Feed):
    """For a task that sees nothing."""

    def batches(self, epoch: int, skip: int) -> Iterator[tuple[list[Drawn], Views | None]]:
        for batch in self.plan.batches(epoch, skip):
            yield batch, None


class CachedFeed(Feed):
    """Features from disk, one store a data source."""

    def __init__(self, plan: BatchPlan, stores: Sequence[FeatureStore]) -> None:
        super().__init__(plan)
        self.stores = stores

    def batches(self, epoch: int, skip: int) -> Iterator[tuple[list[Drawn], Views | None]]:
        for batch in self.plan.batches(epoch, skip):
            rows = [self.stores[drawn.source].patches([drawn.image.image], [drawn.view]) for drawn in batch]
            yield batch, Views(patches=torch.cat(rows))


class PictureFeed(Feed):
    """Pictures from disk, cropped and mirrored anew each time they are drawn.

    Attributes:
        bad: pictures that could not be read. Another one of the same batch stands in for each of them: the batch
            stays as large as those of other processes, and the same when the step is done again.
    """

    def __init__(
        self, plan: BatchPlan, sources: Sequence[DataSource], transform: ImageTransform, skip_bad: bool = True
    ) -> None:
        super().__init__(plan)
        self.sources, self.transform, self.skip_bad = sources, transform, skip_bad
        self.bad: list[BadPicture] = []

    def batches(self, epoch: int, skip: int) -> Iterator[tuple[list[Drawn], Views | None]]:
        own = self.plan.batch_size // self.plan.world.size
        drawn = chain.from_iterable(self.plan.batches(epoch, skip))
        for rows in read_ahead(drawn, self._look, own, in_threads=anything):
            good = [row for row, (_, found) in enumerate(rows) if not isinstance(found, ImageError)]
            for each, found in rows:
                if isinstance(found, ImageError):
                    self._note(each, found)
            if not good:
                raise OpenBlipError(
                    f"none of {len(rows)} pictures of a batch can be read ({rows[0][1]}): check the data source's paths"
                )
            chosen = [row if row in good else good[row % len(good)] for row in range(len(rows))]
            squashed = [rows[row][1] for row in chosen]
            pixels = normalise([found for found in squashed if not isinstance(found, ImageError)], self.transform)
            yield [rows[row][0] for row in chosen], Views(pixels=pixels)

    def _look(self, drawn: Drawn) -> np.ndarray[Any, Any]:
        source = self.sources[drawn.source]
        image = open_picture(drawn.image.image)
        if source.augment:
            settings = Augmentation(min_area=source.min_area, mirror=MIRRORED if source.mirror else 0.0)
            image = augment(image, drawn.draw, settings)
        return squash(image, self.transform.image_size)

    def _note(self, drawn: Drawn, error: ImageError) -> None:
        if not self.skip_bad:
            raise error
        bad = BadPicture(drawn.image.image, str(error))
        if bad not in self.bad:
            self.bad.append(bad)
