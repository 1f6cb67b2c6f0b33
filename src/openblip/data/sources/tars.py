"""Tar files of images with texts beside them, as webdataset and img2dataset write them.

`000123.jpg`, `000123.txt` and `000123.json` in a tar are one row. The headers are read once; images are read from the
tar when they are needed, so rows can be read in any order, and nothing is unpacked. A broken tar gives the rows before
the break.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TypeAlias

from openblip.data.sample import PackedFile, Sample
from openblip.data.sources.beside import TEXTS, is_image, sample_of, split_name, text_of
from openblip.data.sources.records import tell_skipped
from openblip.data.sources.tar_headers import BrokenTarError, read_members
from openblip.errors import OpenBlipError

Tell: TypeAlias = Callable[[Path, str], None]
"""Called with a tar and the predicate of a sentence about it ("is truncated")."""
ALONE = "texts without an image of their name"
FURTHER = "images beside another one of their row"
Members: TypeAlias = "dict[str, PackedFile]"
"""The files of a row, by suffix."""


@dataclass(frozen=True, slots=True)
class TarRow:
    """The files of one row.

    Attributes:
        key: their common name; members: images and texts by suffix, in lower case.
    """

    key: str
    members: Members

    @property
    def image(self) -> PackedFile | None:
        return next((file for ending, file in self.members.items() if is_image(ending)), None)

    def sample(self) -> Sample:
        """The row as a sample; its texts are read now.

        Raises:
            OpenBlipError: there is no image, or its texts cannot be read.
        """
        image = self.image
        if image is None:
            raise OpenBlipError(f"{self.key} has no image")
        texts = {
            ending: text_of(file.name, file.size, file.read_bytes)
            for ending, file in self.members.items()
            if ending in TEXTS
        }
        sample = sample_of(image, self.key, texts)
        return replace(sample, sample_id=sample.sample_id or self.key)


@dataclass(frozen=True)
class Shard:
    """One tar and what is in it.

    Attributes:
        rows: in the order of the tar, each with an image.
        trouble: a sentence about what is wrong with the tar; empty if it is intact.
        note: a sentence about files that belong to no row; empty if there are none.
    """

    path: Path
    rows: tuple[TarRow, ...] = field(repr=False)
    trouble: str = ""
    note: str = ""


def index_shard(path: Path) -> Shard:
    """Read the headers of a tar. Never raises because of its contents: `trouble` says what is wrong."""
    grouped: dict[str, Members] = {}
    passed = _PassedOver()
    last = trouble = ""
    try:
        for key, ending, file in _row_files(path):
            grouped.setdefault(key, {})[ending] = file
            last = key
    except BrokenTarError as error:
        trouble = str(error)
        if error.lost:
            _drop(grouped, last)
    rows = tuple(_rows(grouped, passed))
    broken = f"{path} {_told(trouble, len(rows))}" if trouble or not rows else ""
    return Shard(path, rows, broken, f"{path} {passed}" if passed else "")


def stream_rows(path: Path, tell: Tell, note: Tell | None = None) -> Iterator[TarRow]:
    """Rows of a tar while its headers are read; headers are not kept.

    The files of a row have to be adjacent, as webdataset and img2dataset write them. Never raises because of the
    contents of the file.

    Args:
        tell: called at the end with what is wrong with the tar.
        note: called at the end with the files that belong to no row; by default that is logged.
    """
    group: dict[str, Members] = {}
    passed = _PassedOver()
    root = last = trouble = ""
    count = 0
    try:
        for key, ending, file in _row_files(path):
            # `a.jpg` and `a.2.jpg` may belong to one row: only both names together show it.
            if group and not (key == root or key.startswith(f"{root}.") or root.startswith(f"{key}.")):
                for row in _rows(group, passed):
                    count += 1
                    yield row
                group = {}
            root = min(root, key, key=len) if group else key
            group.setdefault(key, {})[ending] = file
            last = key
    except BrokenTarError as error:
        trouble = str(error)
        if error.lost:
            _drop(group, last)
    for row in _rows(group, passed):
        count += 1
        yield row
    if trouble or not count:
        tell(path, _told(trouble, count))
    if passed and note is not None:
        note(path, str(passed))
    elif passed:
        tell_skipped([f"{path} {passed}"], None)


class _PassedOver:
    """Counts images and texts that belong to no row."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, what: str, names: Sequence[str]) -> None:
        self._counts[what] += len(names)
        if names:
            self._first.setdefault(what, names[0])

    def __bool__(self) -> bool:
        return bool(self._first)

    def __str__(self) -> str:
        shown = (f"{what} ({self._counts[what]}, {first} first)" for what, first in self._first.items())
        return f"has files that are left out: {', '.join(shown)}"


def _rows(grouped: dict[str, Members], passed: _PassedOver) -> Iterator[TarRow]:
    """A row for each image, except for additional images of a row that have no text of their own.

    In webdataset, `a.seg.png` is part of the row of `a.jpg`; `IMG.2020.jpg` is the image of `IMG.2020.txt`.
    """
    with_image = {key for key, members in grouped.items() if any(map(is_image, members))}
    for key, members in grouped.items():
        texts = [file.name for ending, file in members.items() if ending in TEXTS]
        images = [file.name for ending, file in members.items() if ending not in TEXTS]
        if not images:
            passed.add(ALONE, texts)
        elif not texts and not with_image.isdisjoint(_shorter(key)):
            passed.add(FURTHER, images)
        else:
            passed.add(FURTHER, images[1:])
            yield TarRow(key, members)


def _drop(grouped: dict[str, Members], last: str) -> None:
    """Leave out the row of the last file, which may be incomplete."""
    lost = {last, *_shorter(last)}
    for key in [key for key in grouped if key in lost or key.startswith(f"{last}.")]:
        del grouped[key]


def _shorter(key: str) -> list[str]:
    """The keys of rows that a file may belong to: `a/b.c` and `a/b` for `a/b.c.d`."""
    first = key.rfind("/") + 1
    return [key[:place] for place in range(first + 1, len(key)) if key[place] == "."]


def _row_files(path: Path) -> Iterator[tuple[str, str, PackedFile]]:
    """Key, suffix and file of each image and text."""
    for member in read_members(path):
        key, ending = split_name(member.name)
        if key and not _is_hidden(member.name):
            yield key, ending, PackedFile(path, member.offset, member.size, PurePosixPath(member.name).name)


def _told(trouble: str, rows: int) -> str:
    return f"{trouble or 'has no images'}: {rows} rows of it are used"


def read_tars(paths: Path | Iterable[Path], skipped: list[str] | None = None) -> list[Sample]:
    """All rows of some tars; a sentence about everything that could not be used goes to `skipped`, or is logged."""
    samples: list[Sample] = []
    left_out: list[str] = []
    for path in [paths] if isinstance(paths, Path) else paths:
        shard = index_shard(path)
        left_out += filter(None, (shard.trouble, shard.note))
        for row in shard.rows:
            try:
                samples.append(row.sample())
            except OpenBlipError as error:
                left_out.append(f"{path}: row {row.key} is left out: {error}")
    tell_skipped(left_out, skipped)
    return samples


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))
