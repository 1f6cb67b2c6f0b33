"""What runs on the machines of a cluster: a process that computes the blocks whose numbers it gets.

It has no model: that is in a process of its own, as on a single machine, so that an image that kills it costs one row.
A block whose process was killed itself twice, as by a system without memory, is done again with care, and what is done
of it is kept: then it is clear which image it is.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from openblip.errors import OpenBlipError
from openblip.jobs.chunks import KEY_BYTES, NO_KEY, Block, ChunkFiles
from openblip.jobs.journal import Journal, Record
from openblip.jobs.supervisor import Supervisor
from openblip.jobs.worker import Cursor, Work, read_keys

Numbers: TypeAlias = "Mapping[str, Any]"
"""Columns of first rows and ends of blocks, as NumPy arrays."""
Receipts: TypeAlias = "dict[str, Any]"
"""The same, and a column `failed` of sentences."""

CAREFUL, ALONE, LAST = 2, 3, 6
"""Deaths of a block's workers after which the next is careful, then does images alone, then gives up."""


@dataclass(frozen=True)
class ClusterWork:
    """What all workers know.

    Attributes:
        run: tells the deaths of this run's workers from those of a run that was killed as a whole.
        folder: that paths are relative to.
        threads: of the processor, for each worker; None: as many as its library likes.
    """

    work: Work
    chunks: ChunkFiles
    run: str
    folder: str
    threads: int | None = None

    def enter(self) -> None:
        """Go to the folder, where it is on this machine, too."""
        with suppress(OSError):
            os.chdir(self.folder)


@dataclass(frozen=True)
class Begun:
    """What is known of a block that a worker began.

    Attributes:
        deaths: how often a worker began it, or its next batch.
        alone: the row whose image was done alone.
        deadly: rows that killed a worker.
    """

    run: str
    deaths: int = 0
    alone: int | None = None
    deadly: list[int] = field(default_factory=list)
    pid: int = 0
    host: str = ""


class KeyReader:
    """Says of each row of a block what decides its result, so that images that are there twice are computed once."""

    def __init__(self, shared: ClusterWork) -> None:
        shared.enter()
        self.shared = shared
        self._cursor = Cursor(shared.work.table)

    def __call__(self, numbers: Numbers) -> Receipts:
        return _receipts(numbers, self._read)

    def _read(self, block: Block) -> None:
        plan = replace(self.shared.work, start=block.start, stop=block.stop)
        keys = (NO_KEY if key is None else key[:KEY_BYTES] for key in read_keys(plan, self._cursor))
        self.shared.chunks.put_keys(block, b"".join(keys))


class BlockWorker:
    """Computes blocks. Its model stays loaded from one to the next."""

    def __init__(self, shared: ClusterWork) -> None:
        if shared.threads is not None:
            # Ray gives each worker one thread, or as many as the processors that are reserved for it.
            os.environ["OMP_NUM_THREADS"] = str(shared.threads)
        # A process that is started imports the program of the one that starts it: Ray's takes seconds and memory.
        sys.modules["__main__"].__dict__.pop("__file__", None)
        shared.enter()
        self.shared = shared
        self._supervisor = Supervisor()
        self._folder = tempfile.TemporaryDirectory(prefix="openblip-")

    def __call__(self, numbers: Numbers) -> Receipts:
        return _receipts(numbers, self._compute)

    def _compute(self, block: Block) -> None:
        chunks = self.shared.chunks
        if chunks.rows(block) is not None:
            return
        begun = self._begin(block)
        watched = begun.deaths > CAREFUL
        path = Path(self._folder.name) / "rows.jsonl"
        path.write_bytes(chunks.part(block) if watched else b"")
        journal = Journal(path, block.start)
        base = replace(
            self.shared.work,
            journal=path,
            start=journal.next,
            stop=block.stop,
            copies=chunks.copies(block),
            careful=block.stop - block.start if watched else 0,
            alone=begun.deaths > ALONE,
            deadly=frozenset(begun.deadly),
        )

        def write(records: list[Record]) -> Work:
            journal.add(records)
            if watched:
                chunks.put_part(block, path.read_bytes())
                self._note(block, replace(begun, deaths=ALONE, alone=None))
            return replace(base, start=journal.next, alone=False)

        def begin_alone(row: int) -> None:
            self._note(block, replace(begun, deaths=ALONE, alone=row))

        try:
            if journal.next < block.stop:
                self._supervisor.work_until_done(base, write, begin_alone if watched else None)
        except BaseException:
            self._supervisor.stop()
            raise
        finally:
            journal.close()
        chunks.put_rows(block, path.read_bytes())

    def _begin(self, block: Block) -> Begun:
        """Note that this worker is at a block. Raises OpenBlipError if too many have died of it."""
        found = self.shared.chunks.json(block, "begun")
        begun = Begun(**found) if found else Begun(self.shared.run)
        if begun.run != self.shared.run:
            begun = Begun(self.shared.run)
        if begun.alone is not None:
            begun = replace(begun, deaths=ALONE, alone=None, deadly=[*begun.deadly, begun.alone])
        if begun.deaths >= LAST:
            raise OpenBlipError(
                f"rows {block.start:,} to {block.stop - 1:,} ended their worker again and again, at last on "
                f"{begun.host}: check the memory of the machines, and give the command again"
            )
        begun = replace(begun, deaths=begun.deaths + 1)
        self._note(block, begun)
        return begun

    def _note(self, block: Block, begun: Begun) -> None:
        self.shared.chunks.put_json(block, "begun", vars(replace(begun, pid=os.getpid(), host=socket.gethostname())))


def _receipts(numbers: Numbers, do: Any) -> Receipts:
    """Do all blocks. Errors are told rather than raised: a cluster would try them again, without end."""
    failed = []
    for start, stop in zip(numbers["start"].tolist(), numbers["stop"].tolist(), strict=True):
        try:
            do(Block(start, stop))
            failed.append("")
        except (OpenBlipError, OSError, MemoryError, RuntimeError) as error:
            failed.append(f"{error}" or type(error).__name__)
    return {"start": numbers["start"], "stop": numbers["stop"], "failed": failed}
