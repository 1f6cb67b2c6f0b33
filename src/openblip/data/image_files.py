"""Opening the pictures of a data set, and telling them apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from openblip.data.sample import Picture
from openblip.errors import ImageError
from openblip.images.decode import load_image

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class BadPicture:
    """A picture that cannot be read, and why."""

    picture: Picture
    problem: str


def open_picture(picture: Picture) -> Image:
    """The picture as RGB. Raises ImageError, which names it, when it cannot be read."""
    if isinstance(picture, Path):
        return load_image(picture)
    content = picture.read_bytes()
    try:
        return load_image(content)
    except ImageError as error:
        raise ImageError(str(picture), str(error).partition(": ")[2] or str(error)) from error


def picture_key(picture: Picture) -> str:
    """What tells a picture from all others on this machine, and from what its file held before."""
    file = picture if isinstance(picture, Path) else picture.archive
    try:
        state = file.stat()
    except (OSError, ValueError):
        # It will be found missing when it is opened; until then it is known by its name.
        return f"{picture}:missing"
    place = "" if isinstance(picture, Path) else f":{picture.place}"
    return f"{file.resolve()}{place}:{state.st_size}:{state.st_mtime_ns}"
