"""Rows of many tars, one after the other: shared out among processes and their workers, and taken up where one stopped.

Every tar's headers are read as its turn comes, and its rows are in an order of their own, so that shuffling needs no
buffer and any row can be the first.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from openblip.data.samples import Sample
from openblip.data.tars import Shard, TarRow, index_shard
from openblip.errors import OpenBlipError, OptionError


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
    """How far a reader has come: rows that it has passed, whether given out or left out, of its share of an epoch."""

    epoch: int = 0
    shard: int = 0
    row: int = 0


class TarStream:
    """One reader's rows of an epoch, once each.

    Whole tars are shared out where there are enough of them for all readers; else every tar's rows are, one by one.
    Together the readers give each row exactly once.

    Attributes:
        position: of the next row; keep it with a checkpoint, and give it to a stream of the same tars, share and seed.
        skipped: a sentence for each tar and each row that could not be used.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        share: Share | None = None,
        seed: int | None = None,
        position: Position | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            share: by default all rows.
            seed: draws the order of tars and of the rows in each, anew in every epoch; None keeps that on the disk.
        """
        if not paths:
            raise OptionError("a stream needs at least one tar: check the pattern")
        self.paths = tuple(paths)
        self.share = share or Share()
        self.seed = seed
        self.position = position or Position()
        self.skipped: list[str] = []

    def __iter__(self) -> Iterator[Sample]:
        """The rows from `position` to the end of its epoch; then `position` is at the beginning of the next."""
        epoch = self.position.epoch
        shards = self._shards(epoch)
        for number in range(self.position.shard, len(shards)):
            shard = index_shard(shards[number])
            if shard.trouble and not self.position.row:
                self.skipped.append(shard.trouble)
            rows = self._rows(shard, epoch)
            while self.position.row < len(rows):
                row = rows[self.position.row]
                # Before the row is given out: whoever keeps the position then has seen this row.
                self.position = Position(epoch, number, self.position.row + 1)
                try:
                    sample = row.sample()
                except OpenBlipError as error:
                    self.skipped.append(f"{shard.path}: row {row.key} is left out: {error}")
                    continue
                yield sample
            self.position = Position(epoch, number + 1)
        self.position = Position(epoch + 1)

    @property
    def _by_row(self) -> bool:
        return len(self.paths) < self.share.count

    def _shards(self, epoch: int) -> list[Path]:
        paths = list(self.paths)
        if self.seed is not None:
            random.Random(f"{self.seed}:{epoch}").shuffle(paths)
        return paths if self._by_row else paths[self.share.number :: self.share.count]

    def _rows(self, shard: Shard, epoch: int) -> list[TarRow]:
        rows = list(shard.rows)
        if self.seed is not None:
            random.Random(f"{self.seed}:{epoch}:{shard.path.name}").shuffle(rows)
        return rows[self.share.number :: self.share.count] if self._by_row else rows
