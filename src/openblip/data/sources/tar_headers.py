"""Read the headers of a tar one by one, without keeping them: names, offsets and sizes of its files.

Python's tarfile keeps every header, reads as many bytes as a header claims, and recurses for each long name, so a
malicious tar can exhaust memory or the stack. This reader needs no more memory than one header. It writes no files, so
names such as `../x` are harmless, and it skips links.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

BLOCK = 512
LONGEST_HEADER = 2**20
"""Largest long name or list of attributes, in bytes; usual ones have a few hundred."""
FILES = (b"0", b"\0", b"7")
WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")
"""Links, devices, folders and pipes."""
GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Member:
    """A file of a tar: its bytes from `offset` to `offset + size`. Unprintable characters of its name are escaped."""

    name: str
    offset: int
    size: int


class BrokenTarError(Exception):
    """What is wrong with a tar, as the predicate of a sentence about it ("is truncated").

    Attributes:
        lost: whether files are missing, or the last one may be incomplete.
    """

    def __init__(self, trouble: str, lost: bool = True) -> None:
        super().__init__(trouble)
        self.lost = lost


def read_members(path: Path) -> Iterator[Member]:
    """The files of a tar, in order. Raises BrokenTarError after the last intact file."""
    try:
        if path.exists() and not path.is_file():
            raise BrokenTarError("is a folder or a device, not a file")  # reading a pipe could block forever
        with path.open("rb") as file:
            yield from _members(file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise BrokenTarError(f"cannot be read ({error.strerror or error})") from error


def _members(file: BinaryIO, length: int) -> Iterator[Member]:
    offset = 0
    long_name: str | None = None
    attributes: dict[str, str] = {}
    while True:
        header = _block(file, offset)
        if not header:
            if not offset:
                raise BrokenTarError("is no tar, or broken (empty file)")
            raise BrokenTarError("has no end mark, more may have been to come", lost=False)
        if header.count(0) == len(header):
            return
        try:
            name, size, kind = _parse(header)
            size = int(attributes.get("size", size))
        except ValueError as error:
            raise BrokenTarError(_explain(header, offset, length, str(error))) from None
        start = offset + BLOCK
        if kind == b"S":  # a sparse file: more blocks list its holes
            more = header[482]
            while more:
                block = _block(file, start)
                more, start = block[504] if len(block) == BLOCK else 0, start + BLOCK
        if kind in WITHOUT_CONTENT:
            size = 0
        offset = start + -(-size // BLOCK) * BLOCK
        if size < 0 or offset > length:
            raise BrokenTarError("is cut short")
        if kind in (b"L", b"x", b"X"):
            if size > LONGEST_HEADER:
                raise BrokenTarError(f"is damaged at byte {start} of {length}")
            content = _read(file, start, size)
            if kind == b"L":
                long_name = _text(content)
                continue
            try:
                attributes = _attributes(content)
            except ValueError:
                raise BrokenTarError(f"is damaged at byte {start} of {length}") from None
            continue
        if kind in (b"K", b"g"):
            continue
        has_holes = any(key.startswith("GNU.sparse") for key in attributes)
        name = attributes.get("path") or long_name or name
        long_name, attributes = None, {}
        if kind in FILES and not has_holes and not name.endswith("/"):
            yield Member(_shown(name), start, size)


def _parse(header: bytes) -> tuple[str, int, bytes]:
    """Name, size and kind. Raises ValueError when it is no header."""
    if len(header) < BLOCK:
        raise ValueError("unexpected end")
    checksum = _number(header[148:156])
    rest = header[:148] + b" " * 8 + header[156:]
    if checksum != sum(rest) and checksum != sum(byte - 256 * (byte > 127) for byte in rest):
        raise ValueError("bad checksum")
    name = _text(header[:100])
    if header[257:263] == b"ustar\0" and header[345]:
        name = f"{_text(header[345:500])}/{name}"
    return name, _number(header[124:136]), header[156:157]


def _number(field: bytes) -> int:
    """A number in octal digits, or in binary if the first bit is set."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip()
    if digits.strip(b"01234567"):
        raise ValueError("a size that is no number")
    return int(digits or b"0", 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _shown(name: str) -> str:
    """The name with unprintable characters escaped."""
    if name.isprintable():
        return name
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name)


def _attributes(content: bytes) -> dict[str, str]:
    """Attributes such as `29 path=a long name.jpg\\n`. Raises ValueError if they are malformed."""
    found: dict[str, str] = {}
    place = 0
    while place < len(content) and content[place]:
        digits, space, _ = content[place : place + 20].partition(b" ")
        end = place + int(digits)
        record = content[place + len(digits) + 1 : end]
        key, equals, value = record.partition(b"=")
        if not space or not equals or end > len(content) or not record.endswith(b"\n"):
            raise ValueError("a list of attributes that is none")
        found[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
        place = end
    return found


def _explain(header: bytes, offset: int, length: int, reason: str) -> str:
    if offset and len(header) == BLOCK:
        return f"is damaged at byte {offset} of {length}"
    if offset:
        return "is cut short"
    if header.startswith(GZIP):
        return "is compressed, which allows no reading in any order; unpack it with gunzip first"
    return f"is no tar, or broken ({reason})"


def _block(file: BinaryIO, offset: int) -> bytes:
    return _read(file, offset, BLOCK)


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)
