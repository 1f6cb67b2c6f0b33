"""Inputs in tars, as webdataset and img2dataset write them: a row for each image, with the texts beside it as columns.

An image is called what it is called up to its suffix, so `photo.final.jpg` and `photo.draft.jpg` are two; its texts are
`photo.final.txt`, `.json` and `.cls`, somewhere among its neighbours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from openblip.data.sample import PackedFile
from openblip.data.sources.beside import LONGEST_TEXT, TEXTS, is_image, split_name, text_of
from openblip.data.sources.tar_headers import BrokenTarError, Member, read_members
from openblip.errors import OpenBlipError
from openblip.jobs.paths import digest_of, is_excluded
from openblip.jobs.rows import IMAGE, ColumnType, PackedImage, Row, Scan, Table

OTHER = "that are neither images nor texts of one"
ALONE = "texts without an image of their name"
LONG = f"texts of more than {LONGEST_TEXT:,} bytes"
SHOWN_TARS = 3


@dataclass
class PassedOver:
    """Files of tars that belong to no row, and tars that are damaged."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def add(self, what: str, path: Path, member: Member) -> None:
        self.counts[what] += 1
        self.first.setdefault(what, f"{path}/{member.name}")

    def notes(self) -> tuple[str, ...]:
        """A sentence for each reason, and for the first damaged tars."""
        passed = tuple(
            f"passed over: {count:,} {'files ' if what == OTHER else ''}{what}, {self.first[what]} first"
            for what, count in self.counts.items()
        )
        more = len(self.broken) - SHOWN_TARS
        return (*passed, *self.broken[:SHOWN_TARS], *([f"{more:,} more tars are damaged"] if more > 0 else []))


@dataclass(frozen=True)
class TarTable(Table):
    """The images of some tars.

    Attributes:
        exclude: patterns of names in the tars that are left out.
    """

    exclude: tuple[str, ...] = ()

    def rows(self, start: int = 0, *, packed: bool = False) -> Iterator[Row]:
        images = (item for path in self.files for item in self._images(path, PassedOver()))
        for path, image, texts in islice(images, start, None):
            name = f"{path}/{image.name}"
            values = {IMAGE: name}
            for ending, text in texts.items():
                file = _packed(path, text)
                values[ending] = text_of(str(file), file.size, file.read_bytes)
            yield Row(f"{path}, {image.name},", values, packed=_packed(path, image))

    def scan(self) -> Scan:
        passed = PassedOver()
        count = 0
        endings: set[str] = set()
        for path in self.files:
            for _, _, texts in self._images(path, passed):
                count += 1
                endings.update(texts)
        if passed.broken and not count:
            raise OpenBlipError(passed.broken[0])
        columns: dict[str, ColumnType] = dict.fromkeys((IMAGE, *sorted(endings, key=TEXTS.index)), "string")
        return Scan(count, columns, digest_of(self.files, *self.exclude), passed.notes())

    def image_of(self, row: Row) -> PackedImage:
        if row.packed is None:
            raise OpenBlipError("the row names no image")
        return row.packed

    def name_of(self, row: Row) -> str:
        return row.values[IMAGE]

    def _images(self, path: Path, passed: PassedOver) -> Iterator[tuple[Path, Member, dict[str, Member]]]:
        """Each image of a tar with its texts, by suffix; a damaged tar ends early."""
        count = 0
        for images, texts in _neighbours(path, passed):
            used: set[str] = set()
            for key, image in images:
                if not is_excluded(image.name, "", self.exclude):
                    count += 1
                    yield path, image, texts.get(key, {})
                used.add(key)
            for key in texts.keys() - used:
                for text in texts[key].values():
                    passed.add(ALONE, path, text)
        if passed.broken and passed.broken[-1].startswith(f"{path} "):
            passed.broken[-1] += f": {count:,} images of it are used"


def _neighbours(
    path: Path, passed: PassedOver
) -> Iterator[tuple[list[tuple[str, Member]], dict[str, dict[str, Member]]]]:
    """Images that stand together and have the beginning of their names in common, and their texts, by key."""
    images: list[tuple[str, Member]] = []
    texts: dict[str, dict[str, Member]] = {}
    root = ""
    try:
        for member in read_members(path):
            key, ending = split_name(member.name)
            if not key or any(part.startswith(".") and part not in (".", "..") for part in member.name.split("/")):
                passed.add(OTHER, path, member)
                continue
            # In the order of names, a.seg.png stands between a.jpg and a.txt.
            if root and not (key == root or key.startswith(f"{root}.") or root.startswith(f"{key}.")):
                yield images, texts
                images, texts, root = [], {}, ""
            root = min(root, key, key=len) if root else key
            if is_image(ending):
                images.append((key, member))
            elif member.size > LONGEST_TEXT:
                passed.add(LONG, path, member)
            else:
                texts.setdefault(key, {})[ending] = member
    except BrokenTarError as error:
        passed.broken.append(f"{path} {error}")
    yield images, texts


def _packed(path: Path, member: Member) -> PackedFile:
    return PackedFile(path, member.offset, member.size, member.name)
