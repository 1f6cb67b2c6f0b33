"""Open the images of a data set, and identify them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from openblip.data.sample import ImageFile
from openblip.errors import ImageError
from openblip.images.decode import load_image

if TYPE_CHECKING:
    from PIL.Image import Image


class OnBadImage(Enum):
    """What to do if an image cannot be read: list it and continue without it, or stop."""

    SKIP = "skip"
    STOP = "stop"


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be read, and why."""

    image: ImageFile
    problem: str


def open_image(image: ImageFile) -> Image:
    """The image as RGB. Raises ImageError, which names the image, if it cannot be read."""
    if isinstance(image, Path):
        return load_image(image)
    content = image.read_bytes()
    try:
        return load_image(content)
    except ImageError as error:
        raise ImageError(str(image), str(error).partition(": ")[2] or str(error)) from error


def image_key(image: ImageFile) -> str:
    """A key that changes with the image's path, size and time of change."""
    file = image if isinstance(image, Path) else image.archive
    try:
        state = file.stat()
    except (OSError, ValueError):
        # Opening it will report the problem; until then its name is its key.
        return f"{image}:missing"
    place = "" if isinstance(image, Path) else f":{image.place}"
    return f"{file.resolve()}{place}:{state.st_size}:{state.st_mtime_ns}"
