"""The fixed set of augmented views of an image whose features are cached."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

from openblip.data.augment import BLIP2, Augmentation, augment

if TYPE_CHECKING:
    from PIL.Image import Image

MIRRORED_VIEW = 1
CROPS_FROM = 2


def make_view(image: Image, name: str, view: int, min_area: float, mirror: bool = True) -> Image:
    """View 0 is the image, 1 its mirror image, 2 and up random crops, mirrored half of the time or never.

    Args:
        name: the image's file name; with `view` it seeds the crop, so that views never change.
        min_area: the smallest share of the area that a crop keeps (BLIP-2: 0.5).
        mirror: whether half of the crops are mirrored; it does not change which parts they are of.
    """
    from PIL import ImageOps

    if view == 0:
        return image
    if view == MIRRORED_VIEW:
        return ImageOps.mirror(image)
    draw = random.Random(hashlib.md5(f"{name}:{view}".encode()).digest())
    return augment(image, draw, Augmentation(min_area=min_area, mirror=BLIP2.mirror if mirror else 0.0))
