"""Small JPEGs of the segments of a video, kept in a file that nobody else sees: a long video has thousands."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

SIDE = 320
"""Pixels of the longer side."""
QUALITY = 75


@dataclass(frozen=True)
class Thumbnail:
    """Where a JPEG is kept, and its size in pixels."""

    offset: int
    length: int
    width: int
    height: int


class Thumbnails:
    """Keeps images in a temporary file, which goes with this object."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="openblip")  # noqa: SIM115 (closed at our own end)
        self._size = 0

    def __enter__(self) -> Thumbnails:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def keep(self, image: Image.Image) -> Thumbnail:
        small = image.copy()
        small.thumbnail((SIDE, SIDE))
        jpeg = io.BytesIO()
        small.save(jpeg, "JPEG", quality=QUALITY, optimize=True)
        return self.keep_jpeg(jpeg.getvalue(), *small.size)

    def keep_jpeg(self, content: bytes, width: int, height: int) -> Thumbnail:
        """One that was made before."""
        self._file.seek(self._size)
        self._file.write(content)
        kept = Thumbnail(self._size, len(content), width, height)
        self._size += len(content)
        return kept

    def read(self, kept: Thumbnail) -> bytes:
        self._file.seek(kept.offset)
        return self._file.read(kept.length)
