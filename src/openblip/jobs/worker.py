"""The process that has the model: it goes from rows to results, chunk by chunk.

It is a process of its own so that an image that kills it costs one row, not the run. Its parent writes what it sends.

Rows lie in blocks of equal size, and no batch reaches over the end of a block: which images are computed together
depends on the rows of their block alone, and on which of them are copies of earlier ones. So the results are the same
bytes whoever computes a block, and whatever was computed before it.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeAlias

from openblip.errors import ImageError, OpenBlipError
from openblip.images.prefetch import anything, read_ahead
from openblip.images.sources import describe_source, open_encoded
from openblip.jobs import object_storage
from openblip.jobs.journal import Record, SeenImages, image_key, read_records, record_key
from openblip.jobs.rows import PackedImage, Row, Table
from openblip.jobs.verbs import Engine, Texts, Verb

BLOCK_BATCHES = 64
"""Batches of a block in which no image is a copy."""
_Item: TypeAlias = "tuple[int, str | PackedImage, Texts]"
"""The number of a row, its image, and the texts that belong to it alone."""
KILLED = "the process that reads it was killed"


@dataclass(frozen=True)
class Work:
    """What a worker has to do.

    Attributes:
        job: all rows of the job, counted from 0; its blocks begin at the first.
        start, stop: those of them to do.
        again: the only rows to do, in order; None: all of them.
        loading: keywords of `openblip.load`.
        careful: chunks at the beginning for which nothing is read ahead.
        alone: do the images of the first chunk one by one.
        deadly: rows that kill the process, which are errors.
        copies: of rows whose image another block has: the number of that row, which is lower.
    """

    table: Table
    verb: Verb
    loading: dict[str, Any]
    batch_size: int
    journal: Path
    job: range
    start: int
    stop: int
    again: tuple[int, ...] | None = None
    careful: int = 0
    alone: bool = False
    deadly: frozenset[int] = frozenset()
    copies: Mapping[int, int] = field(default_factory=dict)

    @property
    def block(self) -> int:
        """Rows of a block."""
        return block_rows(self.batch_size)

    def is_block_end(self, row: int) -> bool:
        """Whether the next row begins a block. The end of the job is none: there is nothing to be kept apart."""
        return self.again is None and row + 1 < self.job.stop and (row + 1 - self.job.start) % self.block == 0

    def waits_after(self, message: str) -> bool:
        """Whether the worker waits until its parent has kept what a message says: the next image may kill both."""
        return message == "alone" or (message == "chunk" and self.careful > 0)


def block_rows(batch_size: int) -> int:
    return BLOCK_BATCHES * batch_size


@dataclass(frozen=True, slots=True)
class _ReadRow:
    """A row after its image's file was read.

    Attributes:
        content: the file; None for a row with an error.
    """

    row: int
    texts: Texts
    content: bytes | None = None
    digest: bytes = b""
    error: str = ""


def work(parent: Connection) -> None:
    """Load a model with the keywords that are sent first, and send ("ready",) as soon as there is a Work for it.

    For this and each further Work, send ("chunk", records) and ("alone", row) until ("end",). Where
    `Work.waits_after` says so, wait for an answer.

    An error is sent as ("failed", error), and ends the process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent ends this one
    threading.Thread(target=_end_with_parent, name="openblip parent", daemon=True).start()
    with suppress(BrokenPipeError, ConnectionResetError, EOFError):  # the parent is gone
        loading: dict[str, Any] = parent.recv()
        try:
            import openblip
            from openblip.images.decode import silence_decoders

            silence_decoders()
            # Without a cache of images: which of them are encoded together would depend on what came before.
            model = openblip.load(**loading, image_cache=0)
            plan: Work = parent.recv()
            engine = plan.verb.start(model, plan.batch_size)
            parent.send(("ready",))
            cursor = Cursor(plan.table)
            while True:
                for message in _Chunks(plan, engine, cursor).messages():
                    parent.send(message)
                    if plan.waits_after(message[0]):
                        parent.recv()
                parent.send(("end",))
                plan = parent.recv()
        except (OpenBlipError, OSError, MemoryError, RuntimeError) as error:
            if isinstance(error, BrokenPipeError | ConnectionResetError):
                raise
            parent.send(("failed", error))


def _end_with_parent() -> None:
    """A parent that was killed needs no results: its model must not stay in memory beside that of the next one."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


class Cursor:
    """Reads the rows of a table here and there, without beginning anew for rows that lie behind."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._next = 0
        self._rows: Iterator[Row] | None = None

    def rows(self, start: int, stop: int) -> Iterator[tuple[int, Row]]:
        """The rows from `start` on, each with its number."""
        if self._rows is None or start < self._next or (self.table.seeks and start != self._next):
            self._rows, self._next = self.table.rows(start, packed=True), start
        while self._next < stop and (row := next(self._rows, None)) is not None:
            self._next += 1
            if self._next > start:
                yield self._next - 1, row


def read_keys(plan: Work, cursor: Cursor) -> Iterator[bytes | None]:
    """What decides the result of each row; None where there is no image, or none that can be read."""
    for read in _read_rows(plan, cursor):
        yield None if read.content is None else image_key(read.digest.hex(), read.texts)


def _read_rows(plan: Work, cursor: Cursor) -> Iterator[_ReadRow]:
    """Rows with the files of their images, the next ones being read meanwhile."""
    for batch in read_ahead(_items(plan, cursor), _read, plan.batch_size, anything):
        for item, found in batch:
            yield _failed(item, found) if isinstance(found, ImageError) else found


def _items(plan: Work, cursor: Cursor) -> Iterator[_Item | _ReadRow]:
    """Rows with the paths of their images, or with what is wrong with them."""
    wanted = None if plan.again is None else iter(plan.again)
    number = None if wanted is None else next(wanted, None)
    for at, row in cursor.rows(plan.start if number is None else number, plan.stop):
        if wanted is not None:
            if number is None:
                return
            if at != number:
                continue
            number = next(wanted, None)
        if at in plan.copies:
            yield _ReadRow(at, ())
            continue
        try:
            image = plan.table.image_of(row)
            yield at, image, plan.verb.texts(row.values, plan.table.name_of(row))
        except OpenBlipError as error:
            yield _ReadRow(at, (), error=str(error))


class _Chunks:
    def __init__(self, plan: Work, engine: Engine, cursor: Cursor) -> None:
        self.plan = plan
        self.engine = engine
        self.seen = SeenImages(_known(plan))
        # One iterator for all chunks: what was read ahead belongs to the next one.
        self.rows = _read_rows(plan, cursor)
        self.at_end = False

    def messages(self) -> Iterator[tuple[Any, ...]]:
        careful = self.plan.careful
        if self.plan.alone:
            yield from self._one_by_one()
            careful -= 1
        while not self.at_end:
            yield from self._segment(one_batch=careful > 0)
            careful -= 1

    def _segment(self, one_batch: bool) -> Iterator[tuple[Any, ...]]:
        """Chunks of one run of the engine, each up to the last new image of a batch.

        Where a chunk ends depends on the rows behind the chunk before it alone: a run that was killed has the same
        batches as one that was not. The last batch of a block is filled with its last image, rather than the engine
        being started anew for each block, which would wait for images to be decoded and labels to be read.
        """
        plan = self.plan
        pending: deque[Record | None] = deque()  # None: an image that fills a batch

        def images() -> Iterator[tuple[bytes, Texts]]:
            taken = rows = 0
            for read in self.rows:
                record, content = self._record(read)
                pending.append(record)
                rows += 1
                if content is not None:
                    taken += 1
                    last = content, read.texts
                    yield last
                block_ends = plan.is_block_end(read.row)
                while block_ends and 0 < taken < plan.batch_size:
                    taken += 1
                    pending.append(None)
                    yield last
                if taken == plan.batch_size:
                    if one_batch:
                        return
                    taken = rows = 0
                # Where image after image is a copy of an earlier one, no batch gets full.
                if rows >= plan.block and (block_ends or plan.again is not None):
                    return
            self.at_end = True

        chunk: list[Record] = []
        for done, result in enumerate(self.engine(images()), start=1):
            while (record := pending.popleft()) is not None and _is_complete(record):
                chunk.append(record)
            if record is not None:
                chunk.append(_complete(record, result))
            if done % plan.batch_size == 0:
                yield "chunk", chunk
                chunk = []
        chunk += (record for record in pending if record is not None)
        if chunk:
            yield "chunk", chunk

    def _one_by_one(self) -> Iterator[tuple[Any, ...]]:
        """The chunk that killed the process or that the model refused, with a message before each image.

        Raises:
            OpenBlipError: the model refuses all of them: not a row is at fault, but the command.
        """
        chunk: list[Record] = []
        refusals: list[OpenBlipError] = []
        taken = 0
        for read in self.rows:
            record, content = self._record(read)
            if content is not None:
                yield "alone", read.row
                taken += 1
                try:
                    (result,) = self.engine(iter([(content, read.texts)]))
                    record = _complete(record, result)
                except OpenBlipError as error:
                    refusals.append(error)
                    record["error"] = str(error)
            chunk.append(record)
            if taken == self.plan.batch_size or self.plan.is_block_end(read.row) or len(chunk) >= self.plan.block:
                break
        else:
            self.at_end = True
        if refusals and len(refusals) == taken:
            raise refusals[0]
        if chunk:
            yield "chunk", chunk

    def _record(self, read: _ReadRow) -> tuple[Record, bytes | None]:
        """A row's record, and its image if there is something to compute."""
        record: Record = {"row": read.row}
        if read.row in self.plan.copies:
            return record | {"same": self.plan.copies[read.row]}, None
        if read.content is None:
            return record | {"error": read.error}, None
        earlier = self.seen.find_or_add(image_key(read.digest.hex(), read.texts), read.row)
        record["hash"] = read.digest.hex()
        if read.texts:
            record["texts"] = list(read.texts)
        if earlier != read.row:
            return record | {"same": earlier}, None
        if read.row in self.plan.deadly:
            return record | {"error": KILLED}, None
        return record, read.content


def _known(plan: Work) -> Iterator[tuple[bytes, int]]:
    """Images that were computed already. Those with errors are computed again in a second try."""
    for record in read_records(plan.journal):
        key = record_key(record)
        if key is not None and "same" not in record and not (plan.again is not None and "error" in record):
            yield key, record["row"]


def _read(item: _Item | _ReadRow) -> _ReadRow:
    """Read the file of an image. Raises ImageError."""
    if isinstance(item, _ReadRow):
        return item
    row, image, texts = item
    if isinstance(image, str) and object_storage.is_stored(image):
        content = object_storage.read_image(image)
    elif isinstance(image, str):
        with open_encoded(image, describe_source(image)) as file:
            content = file.read()
    else:
        content = image.read_bytes()
    return _ReadRow(row, texts, content, hashlib.sha256(content).digest())


def _failed(item: _Item | _ReadRow, error: ImageError) -> _ReadRow:
    if isinstance(item, _ReadRow):
        return replace(item, error=error.problem)
    return _ReadRow(item[0], item[2], error=error.problem)


def _is_complete(record: Record) -> bool:
    return "error" in record or "same" in record


def _complete(record: Record, result: dict[str, Any] | ImageError) -> Record:
    return record | ({"error": result.problem} if isinstance(result, ImageError) else {"result": result})
