"""Rows of many tars, one after the other: shared out among processes and their workers, and taken up where one stopped.

Of the tars only headers are read, and kept of these what lies in a buffer from which rows are drawn in another order.
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
"""Rows to draw from: about those of a tar, some megabytes of headers."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Share:
    """Which part of a stream is one reader's: that of a worker among `workers` of a process among `world`."""

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
        """That of the caller: torchrun's RANK and WORLD_SIZE, and the DataLoader's worker it runs in."""
        from torch.utils.data import get_worker_info

        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")), worker, workers)


@dataclass(frozen=True)
class Position:
    """How far a reader has come: rows of its share of an epoch that it has passed, whether given out or left out."""

    epoch: int = 0
    row: int = 0


class TarStream:
    """One reader's rows of an epoch, once each.

    Whole tars are shared out where there are enough of them for all readers; else rows are, one by one. Together the
    readers give each row exactly once.

    Attributes:
        position: of the next row; keep it with a checkpoint, and give it to a stream of the same tars, share, seed and
            shuffle. It then reads the headers of the epoch's rows before once more, but none of their files.
        skipped: a sentence for each tar and each row that could not be used.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        share: Share | None = None,
        seed: int | str | None = None,
        position: Position | None = None,
        shuffle: int = SHUFFLED,
    ) -> None:
        """Nothing is read yet.

        Args:
            share: by default all rows.
            seed: draws the order of tars and of rows, anew in every epoch; None keeps that on the disk.
            shuffle: rows whose headers are in memory, to draw the next one from.

        Raises:
            OptionError: there is no tar, or no room for a row.
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
        """The rows from `position` to the end of its epoch; then `position` is at the beginning of the next."""

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
        """The same, with none of their texts read.

        Args:
            tell: gets each tar that cannot be read to its end, and why.
            note: gets each tar with files that belong to no row; by default that is logged.
        """
        epoch = self.position.epoch
        rows = self._in_order(epoch, tell, note)
        if self.seed is not None:
            rows = shuffled(rows, self.shuffle, random.Random(f"{self.seed}:{epoch}:{self.share.number}"))
        for row in islice(rows, self.position.row, None):
            # Before the row is given out: whoever keeps the position then has seen this row.
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
    """The items in another order, with no more than `size` of them in memory."""
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
    """An item of each stream in turn, until all have ended."""
    live = deque(streams)
    while live:
        stream = live.popleft()
        for item in stream:
            live.append(stream)
            yield item
            break
