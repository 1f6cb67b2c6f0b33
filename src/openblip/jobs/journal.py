"""What a job has done so far, in a file that is right after any kill, and on a disk that is full.

Each line is a JSON object, a tab and its CRC-32. Lines of rows, then a line that ends their chunk: a chunk that is not
whole is cut off when the file is opened, and computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from openblip.errors import OpenBlipError
from openblip.saving import naming

Record: TypeAlias = dict[str, Any]
"""One row: `row`, and `result`, `error`, or `same`, the number of an earlier row with the same image. `hash` is the
SHA-256 of the image's file; `texts` are those that belong to this row alone."""

sync = getattr(os, "fdatasync", os.fsync)


class Journal:
    """The rows from `start` on.

    Args:
        path: the file, which is made if it is not there.

    Attributes:
        next: the first row that was never tried.
        errors: rows whose result is an error.
        retry: rows that an unfinished second try has still to do, or None.

    Raises:
        OpenBlipError: the file is of another job.
        OSError: it cannot be written; `filename` is set.
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        self.path = path
        self.start = start
        self.next = start
        self.errors: set[int] = set()
        self.retry: list[int] | None = None
        self._offsets = array("Q")
        with naming(path):
            self._file = path.open("a+b", buffering=0)
        try:
            self._size = self._read()
            with naming(path):
                self._file.truncate(self._size)
        except BaseException:
            self._file.close()
            raise

    def __len__(self) -> int:
        """Rows that have a result or an error."""
        return self.next - self.start

    def add(self, records: Sequence[Record]) -> None:
        """Put a chunk on the disk. Raises OSError, with `filename`, if there is no room."""
        again = self.retry is not None
        last = records[-1]["row"]
        lines = [_line(record) for record in records]
        offsets = [self._size]
        for line in lines:
            offsets.append(offsets[-1] + len(line))
        self._append(b"".join([*lines, _line({"again" if again else "done": last + 1})]))
        for record, offset in zip(records, offsets, strict=False):
            self._place(record, offset)
        self._end_chunk(last + 1, again)

    def begin_retry(self) -> None:
        """From now on, rows with errors are tried again."""
        self._append(_line({"retry": len(self.errors)}))
        self.retry = sorted(self.errors)

    def end_retry(self) -> None:
        self.retry = None

    def records(self) -> Iterator[Record]:
        """The rows in order, each with its latest result or error."""
        with self.path.open("rb") as file:
            for number in range(self.start, self.next):
                yield self._resolved(file, number)

    def record(self, number: int) -> Record:
        """One row, as in `records`."""
        with self.path.open("rb") as file:
            return self._resolved(file, number)

    def close(self) -> None:
        self._file.close()

    def _resolved(self, file: Any, number: int) -> Record:
        record = self._at(file, number)
        while "same" in record:
            record = self._at(file, record["same"])
        return record

    def _at(self, file: Any, number: int) -> Record:
        file.seek(self._offsets[number - self.start])
        record = _parsed(file.readline())
        if record is None:
            raise OpenBlipError(f"{self.path} changed while it was read: give the command again")
        return record

    def _read(self) -> int:
        """Take over all whole chunks; where they end."""
        size = 0
        chunk: list[tuple[Record, int]] = []
        for offset, line in _lines(self.path):
            record = _parsed(line)
            if record is None:
                break
            if "row" in record:
                chunk.append((record, offset))
                continue
            for one, place in chunk:
                self._place(one, place)
            chunk.clear()
            if "retry" in record:
                self.retry = sorted(self.errors)
            else:
                self._end_chunk(record.get("again") or record["done"], "again" in record)
            size = offset + len(line)
        return size

    def _place(self, record: Record, offset: int) -> None:
        number = record["row"]
        index = number - self.start
        if not 0 <= index <= len(self._offsets):
            raise OpenBlipError(f"{self.path} is of another job: delete its folder to begin anew")
        if index == len(self._offsets):
            self._offsets.append(offset)
        else:
            self._offsets[index] = offset
        if "error" in record or record.get("same") in self.errors:
            self.errors.add(number)
        else:
            self.errors.discard(number)

    def _end_chunk(self, end: int, again: bool) -> None:
        if not again:
            self.next = end
        elif self.retry is not None:
            self.retry = self.retry[bisect_right(self.retry, end - 1) :] or None

    def _append(self, content: bytes) -> None:
        rest = memoryview(content)
        with naming(self.path):
            try:
                while rest:  # a disk that is full takes a part first, and complains at the next piece
                    rest = rest[self._file.write(rest) or 0 :]
                sync(self._file.fileno())
            except OSError:
                self._file.truncate(self._size)
                raise
        self._size += len(content)


def count_done(path: Path, start: int) -> int:
    """Rows of whole chunks; for a look at a journal that another process may be writing to."""
    done = start
    for _, line in _lines(path):
        record = _parsed(line)
        if record is None:
            break
        done = record.get("done", done)
    return done - start


def read_records(path: Path) -> Iterator[Record]:
    """The lines of rows in the order in which they were written, up to the first that is damaged."""
    for _, line in _lines(path):
        record = _parsed(line)
        if record is None:
            return
        if "row" in record:
            yield record


def parsed_lines(content: bytes) -> Iterator[Record]:
    """The objects of a part of a journal, up to the first line that is damaged."""
    for line in content.splitlines(keepends=True):
        record = _parsed(line)
        if record is None:
            return
        yield record


def image_key(digest: str, texts: Sequence[str]) -> bytes:
    """What decides the result of a row: the SHA-256 of its image's file, in hex, and the texts that are its own."""
    return hashlib.sha256(json.dumps([digest, *texts]).encode()).digest()


def record_key(record: Record) -> bytes | None:
    """The key of a row that was done; None if its image could not be read, or another block has it."""
    return image_key(record["hash"], record.get("texts", ())) if "hash" in record else None


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    offset = 0
    with path.open("rb") as file:
        for line in file:
            yield offset, line
            offset += len(line)


def _line(record: Record) -> bytes:
    content = json.dumps(record, separators=(",", ":")).encode()
    return b"%s\t%08x\n" % (content, zlib.crc32(content))


def _parsed(line: bytes) -> Record | None:
    """The object of a line; None if the line is not whole, or damaged."""
    content, tab, crc = line.rpartition(b"\t")
    if not tab or crc != b"%08x\n" % zlib.crc32(content):
        return None
    return dict(json.loads(content))


class SeenImages:
    """Numbers of rows by a digest of what decides their result: 20 to 30 bytes a row, rather than a dict's 200.

    Of each digest, 96 bits are kept: among ten million images, two have the same once in 10^15 jobs.
    """

    FIRST_SLOTS = 1024
    FREE = 2**32 - 1

    def __init__(self, known: Iterable[tuple[bytes, int]] = ()) -> None:
        self._clear(self.FIRST_SLOTS)
        for digest, row in known:
            self.find_or_add(digest, row)

    def find_or_add(self, digest: bytes, row: int) -> int:
        """The row that has this digest already; otherwise `row`, which has it from now on."""
        high, low = int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:12], "big")
        found = self._put(high, low, row)
        if 5 * self._count > 4 * len(self._rows):
            old = zip(self._high, self._low, self._rows, strict=True)
            self._clear(len(self._rows) * 3 // 2)
            for one in old:
                if one[2] != self.FREE:
                    self._put(*one)
        return found

    def _clear(self, slots: int) -> None:
        self._count = 0
        self._high = array("Q", [0]) * slots
        self._low = array("I", [0]) * slots
        self._rows = array("I", [self.FREE]) * slots

    def _put(self, high: int, low: int, row: int) -> int:
        slots = len(self._rows)
        slot = high % slots
        while (found := self._rows[slot]) != self.FREE:
            if self._high[slot] == high and self._low[slot] == low:
                return found
            slot = (slot + 1) % slots
        self._high[slot], self._low[slot], self._rows[slot] = high, low, row
        self._count += 1
        return row
