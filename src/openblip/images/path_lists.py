"""Lists of images as `ls`, `find` and `find -print0` print them: a path or a web address a line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from openblip.images.sources import is_address

PIECE = 1 << 16
"""Bytes that are read at a time."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_lines(file: BinaryIO) -> Iterator[str]:
    """The lines of a list that are not empty, without their line breaks; names may be of bytes that are no text.

    Null characters end lines if the first piece of the file has one.
    """
    rest = file.read(PIECE).removeprefix(BYTE_ORDER_MARK)
    end = b"\0" if b"\0" in rest else b"\n"
    while True:
        piece = file.read(PIECE)
        *lines, rest = (rest + piece).split(end)
        if not piece:
            lines.append(rest)
        yield from (os.fsdecode(line.rstrip(b"\r")) for line in lines if line.strip())
        if not piece:
            return


def listed_path(line: str, folder: Path | None) -> str:
    """The path or address that a line of a list means: from the current folder, or else from the list's own.

    Args:
        folder: that of the list, if it is a file.
    """
    path = line if is_address(line) or os.path.lexists(line) else line.strip()
    if not is_address(path) and not os.path.lexists(path) and folder and os.path.lexists(folder / path):
        return str(folder / path)
    return path
