"""Stream the rows of many tars: shared among processes and their workers, shuffled, and resumable.

Only headers are read, and only those in the shuffle buffer are kept.
"""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from openblip.data.sample import Sample
from openblip.data.sources.tars import TarRow, Tell, stream_rows
from openblip.errors import OpenBlipError, OptionError

SHUFFLED = 10_000
"""Default size of the shuffle buffer, in rows: about one tar, some megabytes of headers."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Share:
    """The part of a stream that one reader gets: one of `workers` in one of `world` processes."""

    rank: int = 0
    world: int = 1
    worker: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.rank < self.world and 0 <= self.worker < self.workers):
            raise OptionError(
                f"there is no worker {self.worker} of {self.workers} in process {self.rank} of {self.world}: "
                "ranks and workers are counted from 0"
            )

    @property
    def number(self) -> int:
        return self.rank * self.workers + self.worker

    @property
    def count(self) -> int:
        return self.world * self.workers

    @classmethod
    def here(cls) -> Share:
        """The share of the caller: from torchrun's RANK and WORLD_SIZE, and from the DataLoader's worker."""
        from torch.utils.data import get_worker_info

        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")), worker, workers)


@dataclass(frozen=True)
class Position:
    """How far a reader is: the epoch, and the number of rows of its share that it has passed, used or left out."""

    epoch: int = 0
    row: int = 0


class TarStream:
    """The rows of one reader, each once per epoch.

    If there are enough tars for all readers, each reader gets whole tars; otherwise the rows are dealt out one by one.
    Together, the readers give each row exactly once.

    Attributes:
        position: of the next row. Save it with a checkpoint, and give it to a stream of the same tars, share, seed and
            shuffle, which then reads the headers of the earlier rows of the epoch again, but not their files.
        skipped: a sentence for each tar and row that could not be used.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        share: Share | None = None,
        seed: int | str | None = None,
        position: Position | None = None,
        shuffle: int = SHUFFLED,
    ) -> None:
        """Reads nothing yet.

        Args:
            share: by default all rows.
            seed: shuffles tars and rows, differently in every epoch; None keeps the order on disk.
            shuffle: size of the shuffle buffer, in rows (only headers are kept).

        Raises:
            OptionError: there is no tar, or `shuffle` is less than 1.
        """
        if not paths:
            raise OptionError("a stream needs at least one tar: check the pattern")
        if shuffle < 1:
            raise OptionError(f"shuffle is {shuffle}: it must be at least 1")
        self.paths = tuple(paths)
        self.share = share or Share()
        self.seed, self.shuffle = seed, shuffle
        self.position = position or Position()
        self.skipped: list[str] = []

    def __iter__(self) -> Iterator[Sample]:
        """The rows from `position` to the end of the epoch; after that, `position` is the start of the next epoch."""

        def tell(path: Path, trouble: str) -> None:
            self.skipped.append(f"{path} {trouble}")

        for row in self.rows(tell, tell):
            try:
                sample = row.sample()
            except OpenBlipError as error:
                archive = row.image.archive if row.image is not None else ""
                self.skipped.append(f"{archive}: row {row.key} is left out: {error}")
                continue
            yield sample

    def rows(self, tell: Tell, note: Tell | None = None) -> Iterator[TarRow]:
        """The same rows; their texts are not read.

        Args:
            tell: called with each tar that cannot be read to its end, and why.
            note: called with each tar with files that belong to no row; by default that is logged.
        """
        epoch = self.position.epoch
        rows = self._in_order(epoch, tell, note)
        if self.seed is not None:
            rows = shuffled(rows, self.shuffle, random.Random(f"{self.seed}:{epoch}:{self.share.number}"))
        for row in islice(rows, self.position.row, None):
            # Before the yield: a caller that saves the position then has already seen this row.
            self.position = Position(epoch, self.position.row + 1)
            yield row
        self.position = Position(epoch + 1)

    def _in_order(self, epoch: int, tell: Tell, note: Tell | None) -> Iterator[TarRow]:
        paths = list(self.paths)
        if self.seed is not None:
            random.Random(f"{self.seed}:{epoch}").shuffle(paths)
        number, count = self.share.number, self.share.count
        if len(paths) >= count:
            for path in paths[number::count]:
                yield from stream_rows(path, tell, note)
        else:
            every = (row for path in paths for row in stream_rows(path, tell, note))
            yield from islice(every, number, None, count)


def shuffled(items: Iterable[Item], size: int, rng: random.Random) -> Iterator[Item]:
    """The items, shuffled with a buffer of `size` items."""
    kept: list[Item] = []
    for item in items:
        if len(kept) < size:
            kept.append(item)
            continue
        place = rng.randrange(size)
        chosen, kept[place] = kept[place], item
        yield chosen
    rng.shuffle(kept)
    while kept:
        yield kept.pop()


def in_turn(streams: Iterable[Iterator[Item]]) -> Iterator[Item]:
    """One item of each stream in turn, until all streams have ended."""
    live = deque(streams)
    while live:
        stream = live.popleft()
        for item in stream:
            live.append(stream)
            yield item
            break
