"""Plan the images, views and texts of each batch, as a pure function of recipe, epoch and step.

There is no state from batch to batch, so a resumed run has exactly the same batches as an uninterrupted one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from openblip.data.pairs import DataSource, ImageText
from openblip.data.views import MIRRORED_VIEW
from openblip.errors import OptionError
from openblip.training.parallel.processes import ALONE, World


@dataclass(frozen=True)
class BatchRow:
    """An image with its texts, chosen for a batch.

    Attributes:
        source: index of its data source.
        view: which cached view of the image to use.
        rng: chooses its text, and its crop where views are not cached.
        number: index of the image among all images of the run.
    """

    source: int
    pair: ImageText
    view: int
    rng: random.Random
    number: int = 0

    def mirrored(self) -> BatchRow:
        """The row with the texts of the mirror image."""
        return replace(self, pair=self.pair.mirrored())


class BatchPlan:
    """Every epoch has every image of every source, `repeat` times, in a new order.

    All processes plan the same batches, and each takes its own rows of them.
    """

    def __init__(
        self,
        sources: Sequence[DataSource],
        images: Sequence[Sequence[ImageText]],
        batch_size: int,
        seed: int,
        world: World = ALONE,
    ) -> None:
        """Raises OptionError if the processes cannot share a batch evenly."""
        if batch_size % world.size:
            raise OptionError(
                f"a batch of {batch_size} images cannot be shared by {world.size} processes: "
                f"make batch_size a multiple of {world.size}"
            )
        self.sources = sources
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.world = world

    @property
    def steps(self) -> int:
        """Batches of an epoch, without a smaller last batch: ITC needs full batches."""
        rows = sum(source.repeat * len(group) for source, group in zip(self.sources, self.images, strict=True))
        return rows // self.batch_size

    def batches(self, epoch: int, skip: int = 0) -> Iterator[list[BatchRow]]:
        """This process' rows of the batches of an epoch, without the first `skip` batches."""
        order = [
            (source, row, time)
            for source, group in enumerate(self.images)
            for time in range(self.sources[source].repeat)
            for row in range(len(group))
        ]
        random.Random(f"{self.seed}:{epoch}").shuffle(order)
        for step in range(skip, self.steps):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size][self.world.rows(self.batch_size)]
            yield [
                self._draw(source, row, f"{self.seed}:{epoch}:{source}:{row}:{time}") for source, row, time in chosen
            ]

    def _draw(self, source: int, row: int, seed: str) -> BatchRow:
        rng = random.Random(seed)
        settings = self.sources[source]
        views = [view for view in range(settings.views) if settings.mirror or view != MIRRORED_VIEW]
        number = sum(map(len, self.images[:source])) + row
        view = rng.choice(views)
        pair = self.images[source][row].with_fewer_words(settings.word_dropout, rng)
        return BatchRow(source, pair, view, rng, number)
