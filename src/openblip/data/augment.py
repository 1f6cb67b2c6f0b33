"""Augmentation of training images: a random crop, mirrored half of the time. BLIP-2 uses no RandAugment."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from openblip.errors import OptionError

if TYPE_CHECKING:
    from PIL.Image import Image

CROP_TRIES = 10


@dataclass(frozen=True)
class Augmentation:
    """How much a training image may differ from the original; the defaults are BLIP-2's.

    Attributes:
        min_area, max_area: limits of the share of the area that a crop keeps.
        min_ratio, max_ratio: limits of a crop's width divided by its height.
        mirror: probability of mirroring.
    """

    min_area: float = 0.5
    max_area: float = 1.0
    min_ratio: float = 3 / 4
    max_ratio: float = 4 / 3
    mirror: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.min_area <= self.max_area <= 1:
            raise OptionError(
                f"a crop keeps {self.min_area} to {self.max_area} of an image: give shares above 0, the smaller first"
            )
        if not 0 < self.min_ratio <= self.max_ratio:
            raise OptionError(f"the ratios {self.min_ratio} to {self.max_ratio} must be above 0, the smaller first")


BLIP2 = Augmentation()


@dataclass(frozen=True)
class Part:
    """A crop of an image: its box (left, top, right, bottom), and whether the crop is mirrored."""

    box: tuple[int, int, int, int]
    mirrored: bool

    def of(self, image: Image) -> Image:
        from PIL import ImageOps

        crop = image.crop(self.box)
        return ImageOps.mirror(crop) if self.mirrored else crop


def augment(image: Image, rng: random.Random, settings: Augmentation = BLIP2) -> Image:
    """A random crop of an image, perhaps mirrored, not yet resized; equal states of `rng` give equal crops."""
    return draw_part(image.size, rng, settings).of(image)


def draw_part(size: tuple[int, int], rng: random.Random, settings: Augmentation = BLIP2) -> Part:
    """The crop that `augment` takes of an image of this width and height."""
    return Part(crop_box(size, rng, settings), rng.random() < settings.mirror)


def crop_box(size: tuple[int, int], rng: random.Random, settings: Augmentation = BLIP2) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a crop, as torchvision's RandomResizedCrop chooses it.

    It tries ten times to draw an area and a ratio (uniform in its logarithm) that fit into the image. If none fits, it
    takes the middle of the image, with the nearest ratio allowed.

    Args:
        size: width and height of the image.
    """
    width, height = size
    logarithms = math.log(settings.min_ratio), math.log(settings.max_ratio)
    for _ in range(CROP_TRIES):
        area = width * height * rng.uniform(settings.min_area, settings.max_area)
        ratio = math.exp(rng.uniform(*logarithms))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, top = rng.randint(0, width - crop_width), rng.randint(0, height - crop_height)
            return left, top, left + crop_width, top + crop_height
    crop_width = min(width, max(1, round(height * settings.max_ratio)))
    crop_height = min(height, max(1, round(width / settings.min_ratio)))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height
