"""Batches of tars that are read as training goes, alone or mixed with sources whose images are known.

What a process sees of an epoch is a function of the recipe, the epoch, its rank and how many there are: a run that is
resumed reads the headers of what it saw of its epoch once more, and no image and no text of it.
"""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import TypeAlias

from openblip.data.image_files import BadImage, OnBadImage
from openblip.data.pairs import DataSource, ImageText, pair_of
from openblip.data.sample import ImageFile, PackedFile
from openblip.data.sources.annotations import is_held_out
from openblip.data.sources.stream import Position, Share, TarStream, in_turn
from openblip.data.sources.tars import TarRow
from openblip.errors import ImageError, OpenBlipError, OptionError
from openblip.images.transform import ImageTransform
from openblip.training.input.batches import BatchRow
from openblip.training.input.loader import Batch, BatchLoader, LoadedRow, load_row, prefetch_batches, skip_or_raise
from openblip.training.parallel.processes import World
from openblip.training.recipe_keys import Recipe

Row: TypeAlias = "TarRow | ImageText"
Report = Callable[[Path, str], None]
"""Called with a tar and what is wrong with it."""


class RowSource(ABC):
    """Rows of one data source without end; each process has its own.

    Attributes:
        size: rows that an epoch shows; 0 is not known.
        images: those that are known.
    """

    source: DataSource
    size: int
    images: Sequence[ImageText] = ()

    @abstractmethod
    def rows(self, seed: str, world: World, report: Report, noted: Report) -> Iterator[Row]:
        """Pass after pass, each in a new order."""


class InMemoryImages(RowSource):
    """Images that are in memory."""

    def __init__(self, source: DataSource, images: Sequence[ImageText]) -> None:
        self.source, self.images = source, images
        self.size = len(images) * source.repeat

    def rows(self, seed: str, world: World, report: Report, noted: Report) -> Iterator[Row]:
        for turn in count():
            order = list(range(len(self.images)))
            random.Random(f"{seed}:{turn}").shuffle(order)
            # Counted over all passes, so that every process has rows, however few there are.
            first = (world.rank - turn * len(order)) % world.size
            yield from (self.images[place] for place in order[first :: world.size])


class StreamedTars(RowSource):
    """Tars whose headers are read as their turn comes."""

    def __init__(self, source: DataSource, paths: Sequence[Path]) -> None:
        self.source, self.paths = source, paths
        self.size = source.rows * source.repeat

    def rows(self, seed: str, world: World, report: Report, noted: Report) -> Iterator[Row]:
        empty = False
        for turn in count():
            # All rows for a process whose own tars have none: a broken one is no reason to stop.
            shares = [Share()] if empty else self.shares(world)
            place = Position(turn)
            room = max(1, self.source.shuffle // len(shares))
            streams = [TarStream(self.paths, share, seed, place, room).rows(report, noted) for share in shares]
            found = False
            for row in in_turn(streams):
                image = row.image
                if image is not None and not (self.source.held_out and is_held_out(image, self.source.held_out)):
                    found = True
                    yield row
            if empty and not found:
                raise OpenBlipError(f"the data source {self.source.name!r} has no rows: check its tars")
            empty = not found

    def shares(self, world: World) -> list[Share]:
        """This process' readers, with a tar for each where there are as many."""
        readers = max(1, min(self.source.readers, len(self.paths) // world.size))
        return [Share(world.rank, world.size, reader, readers) for reader in range(readers)]


@dataclass(frozen=True)
class StreamRow:
    """A row of a process in an epoch, with the generator of its texts and crop."""

    source: int
    row: Row
    rng: random.Random

    @property
    def image(self) -> ImageFile:
        image = self.row.image
        if image is None:
            raise ImageError(str(self.row), "it has no image")
        return image


class StreamLoader(BatchLoader):
    """Images of tars as they come, cropped and mirrored anew each time."""

    def __init__(
        self,
        recipe: Recipe,
        sources: Sequence[RowSource],
        transform: ImageTransform,
        usable: Callable[[ImageText], bool],
        world: World,
    ) -> None:
        """
        Args:
            usable: whether what an image has to say is of use to the stage.

        Raises:
            OptionError: the rows make no batch, a source has none, or processes cannot share a batch.
        """
        tars = [[path.name for path in source.paths] for source in sources if isinstance(source, StreamedTars)]
        identity = {"tars": str(tars), "processes": str(world.size)}
        super().__init__(batches_of(recipe, sources), [source.images for source in sources], identity)
        if recipe.batch_size % world.size:
            raise OptionError(f"make batch_size a multiple of {world.size}, the number of processes")
        self.sources, self.transform, self.usable, self.world = sources, transform, usable, world
        self.seed, self.own = recipe.seed, recipe.batch_size // world.size
        self.skip_bad = recipe.on_bad_image is OnBadImage.SKIP

    def batches(self, epoch: int, skip: int) -> Iterator[Batch]:
        rows = islice(self.rows(epoch), skip * self.own, None)
        return prefetch_batches(rows, self._load, self.own, self.transform, self._skip)

    def rows(self, epoch: int) -> Iterator[StreamRow]:
        """This process' rows of an epoch, and more, without end; nothing but headers is read."""
        rng = random.Random(f"{self.seed}:{epoch}:{self.world.rank}")
        sizes = [source.size for source in self.sources]
        rows = [
            source.rows(f"{self.seed}:{epoch}:{number}", self.world, self._skip_tar, self._note_tar)
            for number, source in enumerate(self.sources)
        ]
        for place in count():
            number = rng.choices(range(len(sizes)), sizes)[0] if len(sizes) > 1 else 0
            yield StreamRow(number, next(rows[number]), random.Random(f"{self.seed}:{epoch}:{self.world.rank}:{place}"))

    def _load(self, place: StreamRow) -> LoadedRow:
        source = self.sources[place.source].source
        image = place.image
        pair = place.row if isinstance(place.row, ImageText) else _read(place.row, source)
        if not self.usable(pair):
            raise ImageError(str(image), "says nothing that this stage learns from")
        pair = pair.with_fewer_words(source.word_dropout, place.rng)
        row = BatchRow(place.source, pair, 0, place.rng, _number(image))
        return load_row(row, source, self.transform)

    def _skip(self, place: StreamRow, error: ImageError) -> None:
        skip_or_raise(self._note, place.image, error, self.skip_bad)

    def _skip_tar(self, path: Path, trouble: str) -> None:
        if not self.skip_bad:
            raise OpenBlipError(f"{path} {trouble}")
        self._note_tar(path, trouble)

    def _note_tar(self, path: Path, trouble: str) -> None:
        self._note(BadImage(path, trouble))


def batches_of(recipe: Recipe, sources: Sequence[RowSource]) -> int:
    """Batches of an epoch: as many as the recipe says, or as the rows make."""
    if recipe.steps_per_epoch:
        return recipe.steps_per_epoch * recipe.accumulate
    return sum(source.size for source in sources) // recipe.batch_size


def _read(row: TarRow, source: DataSource) -> ImageText:
    """What a row says; whatever is wrong with it is wrong with its image."""
    try:
        return pair_of(row.sample(), source)
    except ImageError:
        raise
    except OpenBlipError as error:
        raise ImageError(str(row.image), str(error)) from error


def _number(image: ImageFile) -> int:
    """The same for the same image in all processes, and no other's."""
    place = f"{image}:{image.place}" if isinstance(image, PackedFile) else str(image)
    return int.from_bytes(hashlib.sha256(place.encode("utf-8", "backslashreplace")).digest()[:8], "big") >> 1
