"""The journal by itself, and the table of images that were there before."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from typing import Any

import pytest

from openblip.jobs.journal import Journal, Record, SeenImages, count_done, read_records


def chunk(*rows: int, **fields: Any) -> list[Record]:
    return [{"row": row, "hash": f"{row:x}", **(fields or {"result": {"n": row}})} for row in rows]


def test_every_length_of_a_cut_journal_is_taken_up_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    journal = Journal(path)
    ends = [0]
    for rows in ((0, 1), (2,), (3, 4, 5)):
        journal.add(chunk(*rows))
        ends.append(path.stat().st_size)
    journal.close()
    content = path.read_bytes()
    for size in range(0, len(content) + 1, 7):
        path.write_bytes(content[:size])
        whole = max(number for number, end in enumerate(ends) if end <= size)
        assert count_done(path, 0) == (0, 2, 3, 6)[whole]
        journal = Journal(path)
        assert journal.next == (0, 2, 3, 6)[whole] and path.read_bytes() == content[: ends[whole]]
        for rows in ((0, 1), (2,), (3, 4, 5))[whole:]:
            journal.add(chunk(*rows))
        journal.close()
        assert path.read_bytes() == content


def test_a_disk_that_takes_a_part_leaves_whole_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "rows.jsonl")
    journal.add(chunk(0, 1))
    before = journal.path.read_bytes()

    class FullDisk:
        def __init__(self, file: Any) -> None:
            self.file, self.room = file, 20

        def write(self, content: memoryview) -> int:
            if not self.room:
                raise OSError(errno.ENOSPC, "No space left on device")
            taken = self.file.write(content[: self.room])
            self.room = 0
            return int(taken)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    full = FullDisk(journal._file)
    monkeypatch.setattr(journal, "_file", full)
    with pytest.raises(OSError, match=r"No space left on device: .*rows\.jsonl"):
        journal.add(chunk(2, 3))
    assert (journal.path.read_bytes(), journal.next) == (before, 2)
    monkeypatch.setattr(journal, "_file", full.file)
    journal.add(chunk(2, 3))
    assert [record["row"] for record in journal.records()] == [0, 1, 2, 3]
    journal.close()


def test_a_second_try_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    journal = Journal(path, 100)
    journal.add(chunk(100, 101, error="bad"))
    journal.add([{"row": 102, "same": 101}, *chunk(103)])
    assert journal.errors == {100, 101, 102}
    journal.begin_retry()
    journal.add(chunk(100))
    journal.add(chunk(101, error="still bad"))
    journal.close()
    journal = Journal(path, 100)
    assert (journal.retry, journal.errors, journal.next) == ([102], {101, 102}, 104)
    journal.add(chunk(102))
    assert (journal.retry, journal.errors) == (None, {101})
    assert [record.get("error") for record in journal.records()] == [None, "still bad", None, None]
    journal.close()
    assert len(list(read_records(path))) == 7


def test_seen_images_are_told_apart_and_found() -> None:
    digests = [hashlib.sha256(bytes([n % 256, n // 256])).digest() for n in range(5000)]
    seen = SeenImages()
    assert [seen.find_or_add(digest, row) for row, digest in enumerate(digests)] == list(range(5000))
    assert [seen.find_or_add(digest, 9999) for digest in digests] == list(range(5000))
