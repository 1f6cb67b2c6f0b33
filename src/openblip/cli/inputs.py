"""What commands take as images: beside files, folders and addresses also lists, tables, tars and standard input."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TypeAlias, cast

from openblip.cli.report import say
from openblip.errors import ImageError, OpenBlipError, OptionError
from openblip.images.path_lists import listed_path, read_lines
from openblip.images.sources import MAX_FILE_BYTES, describe_source, find_images, is_address

Image: TypeAlias = "str | IO[bytes]"
"""A path, an address, or what is packed somewhere: an open file with a name, which is read when its turn comes."""

STDIN = "-"
LISTS = frozenset({".txt", ".lst", ".list"})
TABLES = frozenset({".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet"})
TARS = frozenset({".tar"})
PAGED = frozenset({".tif", ".tiff"})
HEADER_BYTES = 32
SIGNATURES = (
    *(b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\1\0", b"qoif", b"\xff\x0a"),
    *(b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"P1\n", b"P2\n", b"P3\n", b"P4\n", b"P5\n", b"P6\n"),
)
"""Beginnings of image files; WebP, AVIF and HEIC say what they are a few bytes later."""


def find_inputs(inputs: Sequence[str], *, recursive: bool = False, repeats: bool = False) -> list[Image]:
    """As `find_images`, and the images of lists (one path a line), of tables, of tars, and of `-`, standard input.

    Args:
        repeats: an image that is named again is there again.

    Raises:
        ImageError, OpenBlipError: an input that gives no image.
    """
    if repeats:
        return [image for text in inputs for image in _images_in(text, recursive)]
    found: dict[str, Image] = {}
    for text in inputs:
        for image in _images_in(text, recursive):
            # Several images of standard input have one name, several spellings of a path mean one image.
            name = image if isinstance(image, str) else image.name
            key = name if is_address(name) else os.path.normcase(os.path.abspath(name))
            found.setdefault(key, image)
    return list(found.values())


def name_of(image: Image) -> str:
    """What an image is called in results."""
    return image if isinstance(image, str) else image.name


def packed_image(name: str, read: Callable[[], bytes]) -> IO[bytes]:
    """An open file that reads its bytes when it is asked for them."""
    return cast("IO[bytes]", _Packed(name, read))


class _Packed:
    """Read once, from its beginning, as images are."""

    def __init__(self, name: str, content: Callable[[], bytes]) -> None:
        self.name = name
        self._content = content

    def read(self, size: int = -1) -> bytes:
        content = self._content()
        return content if size < 0 else content[:size]


def _images_in(text: str, recursive: bool) -> Iterator[Image]:
    if text == STDIN:
        yield from _standard_input()
        return
    path = Path(text)
    kind = path.suffix.lower()
    if kind in PAGED and not is_address(text) and path.is_file():
        _tell_of_pages(path)
    if is_address(text) or kind not in LISTS | TABLES | TARS or not path.is_file() or _is_image(path):
        yield from find_images([text], recursive=recursive)
    elif kind in LISTS:
        yield from _listed(list(read_lines(io.BytesIO(path.read_bytes()))), str(path), path.parent)
    elif kind in TABLES:
        yield from _in_table(path)
    else:
        yield from _in_tar(path)


def _tell_of_pages(path: Path) -> None:
    from openblip.images.documents import count_pages

    pages = count_pages(str(path))
    if pages > 1:
        say(f"{path} has {pages:,} pages, of which the first is used: openblip analyze reads all of them")


def _standard_input() -> Iterator[Image]:
    if sys.stdin is None:
        raise OptionError("there is no standard input to read: give files, or a list of them")
    if sys.stdin.isatty():
        say("reading paths of images from the terminal, one a line, up to Ctrl-D (on Windows Ctrl-Z and Enter)")
    # Where another program runs commands, its standard input may be of text.
    whole = isinstance(sys.stdin, io.TextIOWrapper)
    content = sys.stdin.buffer.read(MAX_FILE_BYTES + 1) if whole else os.fsencode(sys.stdin.read(MAX_FILE_BYTES + 1))
    if len(content) > MAX_FILE_BYTES:
        raise OptionError(f"standard input holds more than {MAX_FILE_BYTES} bytes, or does not end: give files")
    if _begins_as_image(content[:HEADER_BYTES]):
        yield packed_image(STDIN, lambda: content)
    else:
        yield from _listed(list(read_lines(io.BytesIO(content))), "standard input", None)


def _is_image(path: Path) -> bool:
    with path.open("rb") as file:
        return _begins_as_image(file.read(HEADER_BYTES))


def _begins_as_image(head: bytes) -> bool:
    packed = head[4:8] == b"ftyp" or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
    return packed or head.startswith(SIGNATURES)


def _listed(lines: Sequence[str], place: str, folder: Path | None) -> Iterator[str]:
    """The images of a list: from the folder that the command runs in, or else from the list's own."""
    paths = []
    there = False
    for line in lines:
        path = listed_path(line, folder)
        there = there or is_address(path) or os.path.lexists(path)
        paths.append(path)
    if not paths:
        raise OptionError(f"{place} names no image: it has to have the path of one in each line")
    if not there:
        raise OptionError(
            f"{place} names no image that is there, {describe_source(paths[0])} for one: it has to have the path of an "
            "image in each line, and nothing else"
        )
    yield from paths


def _in_table(path: Path) -> Iterator[Image]:
    from openblip.data.sources.cells import shown_columns
    from openblip.data.sources.records import COLUMNS, ImageFinder
    from openblip.data.sources.tables import read_rows

    finder = ImageFinder(path.parent)
    empty = True
    for place, row in read_rows(path):
        empty = False
        lower = {str(name).strip().lower(): name for name in reversed(row)}
        column = next((lower[alias] for alias in COLUMNS["image"] if alias in lower), None)
        if column is None:
            raise OpenBlipError(
                f"{place} has no column of images: name one image or image_path; it has "
                f"{shown_columns([str(name) for name in row])}"
            )
        value = row[column]
        if isinstance(value, str) and is_address(value):
            yield value
            continue
        image, _ = finder.find(value, place)
        yield str(image) if isinstance(image, Path) else packed_image(str(image), image.read_bytes)
    if empty:
        raise OpenBlipError(f"{path} has no rows: check that it is the right file")


def _in_tar(path: Path) -> Iterator[Image]:
    from openblip.data.sources.tars import index_shard

    shard = index_shard(path)
    if not shard.rows:
        raise ImageError(str(path), "there is no image in this tar; pass another one")
    if shard.trouble:
        say(shard.trouble)
    for row in shard.rows:
        if row.image is not None:
            yield packed_image(str(row.image), row.image.read_bytes)
