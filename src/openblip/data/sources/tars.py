"""Tar files of pictures with their texts beside them, as webdataset and img2dataset write them.

`000123.jpg`, `000123.txt` and `000123.json` of a tar are one row. Headers are read once, pictures where they lie: any
row can be had at any time, and nothing is unpacked. A tar that is broken gives the rows before the break.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from openblip.data.sample import PackedFile, Sample
from openblip.data.sources.folders import caption_lines
from openblip.data.sources.records import Columns
from openblip.data.sources.tar_headers import BrokenTarError, read_members
from openblip.errors import OpenBlipError
from openblip.images.sources import IMAGE_SUFFIXES

LOG = logging.getLogger("openblip.data")

TEXTS = ("txt", "json", "cls")
LONGEST_TEXT = 2**20
"""Bytes of captions or of JSON beside a picture; what is longer is none."""
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True, slots=True)
class TarRow:
    """The files of one row.

    Attributes:
        key: their common name, up to the first dot; members: pictures and texts by what follows it, in small letters.
    """

    key: str
    members: dict[str, PackedFile]

    @property
    def picture(self) -> PackedFile | None:
        return next((file for ending, file in self.members.items() if _is_picture(ending)), None)

    def sample(self) -> Sample:
        """The row, its texts read now.

        Raises:
            OpenBlipError: there is no picture, or its texts cannot be read.
        """
        picture = self.picture
        if picture is None:
            raise OpenBlipError(f"{self.key} has no picture")
        told = Sample((picture,), image_id=self.key, sample_id=self.key)
        if "json" in self.members:
            told = _from_json(self._text("json"), picture, self.key)
        captions = caption_lines(self._text("txt")) if "txt" in self.members else told.captions
        label = self._text("cls").strip() if "cls" in self.members else told.label
        return Sample(
            told.images,
            told.image_id,
            told.sample_id or self.key,
            captions or told.captions,
            told.question,
            told.answers,
            label,
            kind=told.kind,
        )

    def _text(self, ending: str) -> str:
        file = self.members[ending]
        if file.size > LONGEST_TEXT:
            raise OpenBlipError(f"{file.name} has {file.size} bytes, which no caption has")
        return file.read_bytes().decode("utf-8-sig", errors="replace")


@dataclass(frozen=True)
class Shard:
    """One tar and what is in it.

    Attributes:
        rows: in the tar's order, each with a picture.
        trouble: what is wrong with the tar, one sentence; empty when nothing is.
    """

    path: Path
    rows: tuple[TarRow, ...] = field(repr=False)
    trouble: str = ""


def index_shard(path: Path) -> Shard:
    """Read a tar's headers. Never raises for what is in the file: `trouble` says what is wrong with it."""
    grouped: dict[str, dict[str, PackedFile]] = {}
    trouble = ""
    try:
        for key, ending, file in _row_files(path):
            grouped.setdefault(key, {})[ending] = file
    except BrokenTarError as error:
        trouble = str(error)
        if error.lost and grouped:
            grouped.popitem()  # nobody knows whether it is whole
    rows = tuple(row for key, members in grouped.items() if (row := TarRow(key, members)).picture is not None)
    return Shard(path, rows, f"{path} {_told(trouble, len(rows))}" if trouble or not rows else "")


def stream_rows(path: Path, tell: Callable[[Path, str], None]) -> Iterator[TarRow]:
    """Rows of a tar as its headers are read, of which none are kept.

    The files of a row have to stand one after the other, as webdataset and img2dataset write them. Never raises for
    what is in the file.

    Args:
        tell: gets the tar and what is wrong with it, at its end.
    """
    key, members, count, trouble = "", dict[str, PackedFile](), 0, ""
    try:
        for found, ending, file in _row_files(path):
            if found != key and (row := TarRow(key, members)).picture is not None:
                count += 1
                yield row
            if found != key:
                key, members = found, {}
            members[ending] = file
    except BrokenTarError as error:
        trouble = str(error)
        if error.lost:
            members = {}  # nobody knows whether it is whole
    if (row := TarRow(key, members)).picture is not None:
        count += 1
        yield row
    if trouble or not count:
        tell(path, _told(trouble, count))


def _row_files(path: Path) -> Iterator[tuple[str, str, PackedFile]]:
    """Row, ending and place of each file that says something."""
    for member in read_members(path):
        key, ending = _split(member.name)
        if key and (ending in TEXTS or _is_picture(ending)) and not _is_hidden(member.name):
            yield key, ending, PackedFile(path, member.offset, member.size, PurePosixPath(member.name).name)


def _told(trouble: str, rows: int) -> str:
    return f"{trouble or 'has no pictures'}: {rows} rows of it are used"


def read_tars(paths: Sequence[Path], skipped: list[str] | None = None) -> list[Sample]:
    """All rows of some tars; a sentence for whatever could not be used goes to `skipped`, or is logged."""
    samples: list[Sample] = []
    left_out: list[str] = []
    for path in paths:
        shard = index_shard(path)
        if shard.trouble:
            left_out.append(shard.trouble)
        for row in shard.rows:
            try:
                samples.append(row.sample())
            except OpenBlipError as error:
                left_out.append(f"{path}: row {row.key} is left out: {error}")
    tell_skipped(left_out, skipped)
    return samples


def tell_skipped(sentences: Sequence[str], skipped: list[str] | None) -> None:
    """Add the sentences to the caller's list; log them where it gave none."""
    if skipped is not None:
        skipped += sentences
        return
    for sentence in sentences:
        LOG.warning("%s", sentence)


def expand_pattern(pattern: str, folder: Path) -> list[Path]:
    """Files by a pattern: `{00000..00017}` counts, `*`, `?` and `[...]` match what is there, in order.

    Counted files are given whether they exist or not.

    Raises:
        OpenBlipError: nothing matches.
    """
    texts = [pattern]
    while any(BRACES.search(text) for text in texts):
        texts = [made for text in texts for made in _count(text)]
    paths: list[Path] = []
    for text in texts:
        path = Path(text).expanduser()
        anchor = Path(path.anchor) if path.is_absolute() else folder
        relative = str(path.relative_to(anchor)) if path.is_absolute() else str(path)
        is_literal = (anchor / relative).exists() or not any(mark in relative for mark in "*?[")
        paths += [anchor / relative] if is_literal else sorted(anchor.glob(relative))
    if not paths:
        raise OpenBlipError(f"no file matches {pattern} in {folder}: check the pattern")
    return paths


def _count(text: str) -> list[str]:
    found = BRACES.search(text)
    if found is None:
        return [text]
    first, last = found.groups()
    numbers = range(int(first), int(last) + 1)
    return [f"{text[: found.start()]}{number:0{len(first)}d}{text[found.end() :]}" for number in numbers]


def _split(name: str) -> tuple[str, str]:
    """`a/000123.seg.PNG` is `a/000123` and `seg.png`."""
    folder, slash, file = name.rpartition("/")
    stem, _, ending = file.partition(".")
    return (folder + slash + stem if stem else ""), ending.lower()


def _is_picture(ending: str) -> bool:
    return f".{ending}" in IMAGE_SUFFIXES


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in name.split("/"))


def _from_json(text: str, picture: PackedFile, key: str) -> Sample:
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OpenBlipError(f"its JSON cannot be read ({error})") from error
    if isinstance(content, list):  # LAION as BLIP filtered it: nothing but captions
        captions = tuple(caption for caption in content if isinstance(caption, str))
        return Sample((picture,), image_id=key, sample_id=key, captions=captions)
    if not isinstance(content, dict):
        raise OpenBlipError("its JSON is neither an object nor a list")
    try:
        columns = Columns(content, key, needs_image=False)
    except OpenBlipError:
        return Sample((picture,), image_id=key, sample_id=key)  # its text stands beside it, or nowhere
    return columns.sample(content, (picture,), key)
