"""The fixed set of augmented views of an image whose features are cached."""

from __future__ import annotations

import hashlib
import math
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

MIRRORED_VIEW = 1


def make_view(image: Image, name: str, view: int, min_area: float) -> Image:
    """View 0 is the image, 1 its mirror image, 2 and up random crops, mirrored half of the time.

    Args:
        name: the image's file name; with `view` it seeds the crop, so that views never change.
        min_area: the smallest share of the area that a crop keeps (BLIP-2: 0.5).
    """
    from PIL import ImageOps

    if view == 0:
        return image
    if view == MIRRORED_VIEW:
        return ImageOps.mirror(image)
    return random_view(image, random.Random(hashlib.md5(f"{name}:{view}".encode()).digest()), min_area)


def random_view(image: Image, draw: random.Random, min_area: float, mirror: bool = True) -> Image:
    """A random crop of at least `min_area` of the image, mirrored half of the time if it may be."""
    from PIL import ImageOps

    width, height = image.size
    area = width * height * draw.uniform(min_area, 1.0)
    ratio = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
    crop_width = min(width, max(1, round(math.sqrt(area * ratio))))
    crop_height = min(height, max(1, round(math.sqrt(area / ratio))))
    left, top = draw.randint(0, width - crop_width), draw.randint(0, height - crop_height)
    crop = image.crop((left, top, left + crop_width, top + crop_height))
    return ImageOps.mirror(crop) if draw.random() < 0.5 and mirror else crop
