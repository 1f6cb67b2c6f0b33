"""Pages of a TIFF file: its images but for reduced copies and masks of others, read one at a time."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, BinaryIO

from openblip.errors import ImageError
from openblip.images.decode import explain, identified, loaded

if TYPE_CHECKING:
    from PIL import Image

SUBFILE_TYPE, REDUCED_OR_MASK = 254, 0b101
MOST_TAGS = 4096
"""Of one image; files have fewer than a hundred."""


class TiffPages:
    """A TIFF file of several pages. Threads may share it.

    Args:
        stream: the file, which stays open for as long as this is used.
        frames: which of its images are pages, see `find_frames`.
        name: of the file in errors.
    """

    kind = "tiff"

    def __init__(self, stream: BinaryIO, frames: list[int], name: str) -> None:
        from PIL import Image

        Image.init()
        self.name = name
        self._frames = frames
        self._image = identified(stream)
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._frames)

    @contextmanager
    def page(self, index: int, dpi: float) -> Iterator[Image.Image]:
        """One page in its own resolution, as RGB. Raises ImageError when it cannot be read."""
        name = page_name(self.name, index)
        with self._lock:
            if self._image is None:
                raise ImageError(name, "cannot be read; save the TIFF again in an image editor")
            try:
                self._image.seek(self._frames[index])
            except Exception as error:  # Pillow raises whatever its parser ran into
                raise ImageError(name, explain(error)) from error
            with loaded(self._image, name) as image:
                yield image


def page_name(name: str, index: int) -> str:
    """What errors call a page, which is counted from 0 here and from 1 by people."""
    return f"{name}, page {index + 1}"


def find_frames(stream: BinaryIO) -> list[int]:
    """Numbers of the images in a TIFF file that are pages, by its directories alone; [] if it is no TIFF.

    A reduced copy of an image and a mask for one (NewSubfileType, TIFF 6.0, section 8) are no pages. Where the file is
    cut short, the first directory that cannot be read is the last page, for its error to be told.
    """
    stream.seek(0)
    order = {b"II": "<", b"MM": ">"}.get(stream.read(2))
    version = stream.read(2)
    if order is None or len(version) < 2:
        return []
    number = struct.unpack(order + "H", version)[0]
    if number not in (42, 43):
        return []
    # A BigTIFF (43) says next how wide its offsets are: always 8 bytes.
    big = number == 43
    if big:
        stream.read(4)
    frames, places, place = [], set[int](), _read(stream, order + ("Q" if big else "I"))
    while place and place not in places:
        kind, place_of_next = _directory(stream, place, order, big)
        if not kind & REDUCED_OR_MASK:
            frames.append(len(places))
        places.add(place)
        place = place_of_next
    return frames or ([0] if places else [])


def _directory(stream: BinaryIO, place: int, order: str, big: bool) -> tuple[int, int | None]:
    """The NewSubfileType of an image, and the place of the next one's directory; 0 and None if it cannot be read."""
    count, entry, offset = (order + form for form in (("Q", "HHQQ", "Q") if big else ("H", "HHII", "I")))
    stream.seek(place)
    tags = _read(stream, count)
    if tags is None or not 0 < tags <= MOST_TAGS:
        return 0, None
    size = tags * struct.calcsize(entry)
    body = stream.read(size)
    if len(body) < size:
        return 0, None
    values = {tag: value for tag, _, _, value in struct.iter_unpack(entry, body)}
    # A LONG, at the beginning of a field that may be wider.
    field = struct.pack(offset, values.get(SUBFILE_TYPE, 0))
    return int(struct.unpack(order + "I", field[:4])[0]), _read(stream, offset)


def _read(stream: BinaryIO, form: str) -> int | None:
    content = stream.read(struct.calcsize(form))
    return struct.unpack(form, content)[0] if len(content) == struct.calcsize(form) else None
