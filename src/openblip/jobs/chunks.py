"""Blocks of a job that are computed out of order, each a file in the job's folder: it is there whole, or not at all.

A file is named after its first row:

- `512.rows`: the rows of the block, as a part of the journal;
- `512.keys`: 16 bytes a row, the same where the results are the same, before anything is computed; zeros of a row
  whose image cannot be read;
- `512.copies`: rows whose image an earlier block has, each with the row of that image;
- `512.begun`: who is at it, how often a worker died of it, and the rows that workers died of;
- `512.part`: the rows of a block that workers died of, as far as it is done.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openblip.errors import OpenBlipError
from openblip.jobs.journal import Journal, Record, SeenImages, parsed_lines, read_records, record_key
from openblip.jobs.storage import Store

KEY_BYTES = 16
NO_KEY = bytes(KEY_BYTES)


@dataclass(frozen=True)
class Block:
    """Rows that are computed at once."""

    start: int
    stop: int


def blocks_of(start: int, job: range, size: int) -> Iterator[Block]:
    """The blocks of a job from a row on, which may lie within one."""
    while start < job.stop:
        stop = min(job.stop, job.start + ((start - job.start) // size + 1) * size)
        yield Block(start, stop)
        start = stop


@dataclass(frozen=True)
class ChunkFiles:
    """The files of blocks in one place."""

    store: Store

    def put_rows(self, block: Block, journal: bytes) -> None:
        """Keep a block that is done, and let go of what was needed for it."""
        self.store.write(f"{block.start}.rows", journal)
        self.store.remove([f"{block.start}.{kind}" for kind in ("keys", "copies", "begun", "part")])

    def rows(self, block: Block) -> list[Record] | None:
        """The rows of a block; None if it is not done, or its file is damaged."""
        content = self.store.read(f"{block.start}.rows")
        if content is None:
            return None
        lines = list(parsed_lines(content))
        records = [line for line in lines if "row" in line]
        whole = [record["row"] for record in records] == list(range(block.start, block.stop))
        return records if whole and lines[-1].get("done") == block.stop else None

    def done(self) -> set[int]:
        """First rows of the blocks that are done."""
        return {int(name.partition(".")[0]) for name in self.store.names() if name.endswith(".rows")}

    def put_keys(self, block: Block, keys: bytes) -> None:
        self.store.write(f"{block.start}.keys", keys + zlib.crc32(keys).to_bytes(4, "big"))

    def keys(self, block: Block) -> bytes | None:
        content = self.store.read(f"{block.start}.keys") or b""
        keys = content[:-4]
        whole = len(keys) == KEY_BYTES * (block.stop - block.start)
        return keys if whole and zlib.crc32(keys).to_bytes(4, "big") == content[-4:] else None

    def put_copies(self, block: Block, copies: Mapping[int, int]) -> None:
        self.put_json(block, "copies", list(copies.items()))

    def copies(self, block: Block) -> dict[int, int]:
        return dict(self.json(block, "copies") or ())

    def put_json(self, block: Block, kind: str, value: Any) -> None:
        self.store.write(f"{block.start}.{kind}", json.dumps(value).encode())

    def json(self, block: Block, kind: str) -> Any:
        content = self.store.read(f"{block.start}.{kind}")
        return None if content is None else json.loads(content)

    def put_part(self, block: Block, journal: bytes) -> None:
        self.store.write(f"{block.start}.part", journal)

    def part(self, block: Block) -> bytes:
        return self.store.read(f"{block.start}.part") or b""

    def move_into(self, journal: Journal, blocks: Iterable[Block]) -> None:
        """Take over the blocks that are done, up to the first that is not."""
        for block in blocks:
            if block.start != journal.next:
                continue
            records = self.rows(block)
            if records is None:
                return
            journal.add(records)


def find_copies(journal: Path, chunks: ChunkFiles, blocks: Iterable[Block]) -> Iterator[tuple[Block, dict[int, int]]]:
    """Each block with those of its rows whose image an earlier block has. All blocks have keys, or are done."""
    seen = SeenImages((key, record["row"]) for record in read_records(journal) if (key := record_key(record)))
    for block in blocks:
        copies = {}
        for row, key in zip(range(block.start, block.stop), _keys(chunks, block), strict=True):
            if key is not None and (earlier := seen.find_or_add(key, row)) < block.start:
                copies[row] = earlier
        yield block, copies


def _keys(chunks: ChunkFiles, block: Block) -> Iterator[bytes | None]:
    records = chunks.rows(block)
    if records is not None:
        yield from map(record_key, records)
        return
    keys = chunks.keys(block)
    if keys is None:
        raise OpenBlipError(f"{block.start}.keys of the job is gone: give the command again")
    for at in range(0, len(keys), KEY_BYTES):
        key = keys[at : at + KEY_BYTES]
        yield None if key == NO_KEY else key
