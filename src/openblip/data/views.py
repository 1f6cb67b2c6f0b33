"""The fixed augmented views of an image, whose features are cached."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

from openblip.data.augment import BLIP2, Augmentation, Part, draw_part

if TYPE_CHECKING:
    from PIL.Image import Image

MIRRORED_VIEW = 1
CROPS_FROM = 2


def make_view(image: Image, name: str, view: int, min_area: float, mirror: bool = True) -> Image:
    """One view of an image: 0 is the image, 1 its mirror image, and 2 and up are random crops.

    Args:
        name: the image's file name; with `view` it seeds the crop, so that views never change.
        min_area: the smallest share of the area that a crop keeps (BLIP-2: 0.5).
        mirror: whether half of the crops are mirrored; it does not change the boxes of the crops.
    """
    return image if view == 0 else draw_view(image.size, name, view, min_area, mirror).of(image)


def draw_view(size: tuple[int, int], name: str, view: int, min_area: float, mirror: bool = True) -> Part:
    """The crop that `make_view` takes of an image of this width and height."""
    if view < CROPS_FROM:
        return Part((0, 0, *size), mirrored=view == MIRRORED_VIEW)
    rng = random.Random(hashlib.md5(f"{name}:{view}".encode()).digest())
    return draw_part(size, rng, Augmentation(min_area=min_area, mirror=BLIP2.mirror if mirror else 0.0))
