"""Bringing an index up to date: what is new is encoded, all else only noted."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openblip.errors import ImageError
from openblip.images.sources import describe_source
from openblip.search.files import Named, Seen, by_content, by_path, gone_from, is_same, read_hashed, state_of
from openblip.search.found import Changes
from openblip.search.store import Entry, Store

if TYPE_CHECKING:
    from torch import Tensor

KEPT, SECONDS = 256, 30.0
"""Photos, and seconds, after which what was encoded is put on the disk."""


@dataclass(frozen=True)
class Hashed:
    """A file that is not as the index knows it, with its content's SHA-256."""

    seen: Seen
    sha256: bytes


class Update:
    """One run over named files.

    Args:
        store: held by this process.
        model: gives the model; asked for when there is something to encode.
        progress: called with (done, in all).
    """

    def __init__(
        self, store: Store, model: Callable[[], Any], batch_size: int, progress: Callable[[int, int], None]
    ) -> None:
        self.store = store
        self.model = model
        self.batch_size = batch_size
        self.progress = progress
        self.changes = Changes()
        entries = store.entries()
        self.latest, old = by_path(entries)
        self.contents = by_content(self.latest)
        self.stale = [entry.number for entry in old]
        self.next = 1 + max((entry.number for entry in entries), default=-1)
        self.encoded: list[tuple[Entry, Tensor]] = []
        self.copies: list[tuple[Hashed, Entry]] = []
        self.again: list[Hashed] = []
        self.broken: dict[bytes, str] = {}
        self.kept_at = time.monotonic()
        self.done = 0

    def run(self, named: Named) -> Changes:
        """Raises whatever keeps the model from working, or the index from being written; what was done is kept."""
        try:
            waiting = list(self._waiting(named))
            total = len(waiting)
            self.progress(0, total)
            self._encode(waiting, total)
            for one in self.again:
                self._know_again(one)
            for entry in gone_from(self.latest.values(), named):
                self.stale.append(entry.number)
                self.changes.gone += 1
        finally:
            self._keep()
            self.store.remove(sorted(set(self.stale)))
        self.progress(total, total)
        return self.changes

    def _waiting(self, named: Named) -> Iterator[Seen]:
        """Files that are not as they were."""
        for path in named.files:
            try:
                seen = state_of(path)
            except ImageError as error:
                self._fail(path, error)
                continue
            if path in self.latest and is_same(self.latest[path], seen):
                self.changes.same += 1
            else:
                yield seen

    def _encode(self, waiting: list[Seen], total: int) -> None:
        ahead: deque[Hashed] = deque()
        coming: set[bytes] = set()

        def sources() -> Iterator[bytes | str]:
            """What has to be encoded; it is taken in this thread, some of it ahead of the results."""
            for seen in waiting:
                try:
                    sha256, content = read_hashed(seen)
                except ImageError as error:
                    self._fail(seen.path, error)
                    self.done += 1
                    continue
                one = Hashed(seen, sha256)
                if sha256 in self.contents:
                    self._copy(one)
                    self.done += 1
                elif sha256 in coming:
                    self.again.append(one)
                else:
                    coming.add(sha256)
                    ahead.append(one)
                    yield seen.path if content is None else content

        work = sources()
        first = next(work, None)
        if first is None:
            return  # the model is not needed
        for embedded in self.model().embed_images_many(_after(first, work), batch_size=self.batch_size):
            one = ahead.popleft()
            if embedded.error is not None:
                self.broken[one.sha256] = embedded.error.problem
                self._fail(one.seen.path, embedded.error)
            else:
                self.encoded.append((self._entry(one), embedded.embeds))
                self._count(one)
            if len(self.encoded) >= KEPT or time.monotonic() - self.kept_at > SECONDS:
                self._keep()
            self.done += 1
            self.progress(self.done, total)

    def _know_again(self, one: Hashed) -> None:
        """A file with the content of one that was encoded in this run."""
        if one.sha256 in self.broken:
            self._fail(one.seen.path, ImageError(one.seen.path, self.broken[one.sha256]))
            return
        self._keep()
        self._copy(one)

    def _copy(self, one: Hashed) -> None:
        """A file whose content is in the index: it is the same file touched, it has moved, or it is a copy."""
        known = self.contents[one.sha256]
        own = self.latest.get(one.seen.path)
        gone = (entry for entry in known if entry.path in self.latest and not os.path.lexists(entry.path))
        moved = None if own in known else next(gone, None)
        if own in known:
            self.changes.same += 1
        elif moved is not None:
            self.changes.moved += 1
            self.stale.append(moved.number)
            del self.latest[moved.path]
        else:
            self.changes.copied += 1
        # The vectors of a row that goes are there until the end of this run.
        self.copies.append((one, moved or known[0]))
        if own is not None:
            self.stale.append(own.number)
        if len(self.copies) >= KEPT:
            self._keep()

    def _count(self, one: Hashed) -> None:
        own = self.latest.get(one.seen.path)
        if own is None:
            self.changes.new += 1
        else:
            self.changes.changed += 1
            self.stale.append(own.number)

    def _fail(self, path: str, error: ImageError) -> None:
        self.changes.errors.append(ImageError(describe_source(path), error.problem))
        if path in self.latest:  # what is there now cannot be searched
            self.stale.append(self.latest[path].number)

    def _entry(self, one: Hashed) -> Entry:
        self.next += 1
        return Entry(self.next - 1, one.seen.path, one.seen.size, one.seen.mtime_ns, one.sha256)

    def _keep(self) -> None:
        """Put on the disk what was encoded, and what was found to be known."""
        import torch

        encoded, self.encoded = self.encoded, []
        copies, self.copies = self.copies, []
        self.kept_at = time.monotonic()
        if encoded:
            entries = [entry for entry, _ in encoded]
            self.store.append(entries, torch.stack([vectors for _, vectors in encoded]))
            for entry in entries:
                self.contents.setdefault(entry.sha256, []).append(entry)
        if copies:
            numbers, vectors = self.store.take(sorted({source.number for _, source in copies}))
            rows = {number: row for row, number in enumerate(numbers)}
            there = [(self._entry(one), rows[source.number]) for one, source in copies if source.number in rows]
            self.store.append([entry for entry, _ in there], vectors[[row for _, row in there]])


def _after(first: bytes | str, rest: Iterator[bytes | str]) -> Iterator[bytes | str]:
    yield first
    yield from rest
