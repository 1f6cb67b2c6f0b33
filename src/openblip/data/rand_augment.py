"""RandAugment as BLIP was trained with it (https://arxiv.org/abs/1909.13719): two of ten changes, half not made.

BLIP's code has one strength for all of them, at which the changes of brightness and of sharpness do nothing.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

CHANGES = 2
"""That are drawn of each image, each made with a probability of one half."""
SHEAR, SHIFT, ANGLE = 0.15, 5.0, 15.0
"""The strength: pixels sideways a row, pixels, degrees."""
GREY = (128, 128, 128)
"""Where there is no image any more."""
OPERATIONS = (
    *("identity", "auto_contrast", "brightness", "sharpness", "equalize"),
    *("shear_x", "shear_y", "shift_x", "shift_y", "rotate"),
)
MOVES = OPERATIONS[5:]
"""Which go either way."""


def rand_augment(image: Image, rng: random.Random) -> Image:
    """An RGB image, perhaps changed; equal states of `rng` give equal images."""
    for operation in rng.choices(OPERATIONS, k=CHANGES):
        if rng.random() < 0.5:
            image = change(image, operation, -1 if operation in MOVES and rng.random() < 0.5 else 1)
    return image


def change(image: Image, operation: str, sign: int = 1) -> Image:
    """One of `OPERATIONS`; of the `MOVES`, `sign` is 1 or -1.

    Contrast is stretched as far as the image has room. BLIP's own code turns every channel white whose darkest value is
    not 0, which is one photo in four.
    """
    from PIL import ImageOps

    if operation == "auto_contrast":
        return ImageOps.autocontrast(image)
    if operation == "equalize":
        return ImageOps.equalize(image)
    if operation not in MOVES:
        return image
    shear, shift, angle = sign * SHEAR, sign * SHIFT, math.radians(sign * ANGLE)
    across, down = image.width / 2, image.height / 2
    cosine, sine = math.cos(angle), math.sin(angle)
    moves = {
        "shear_x": (1.0, -shear, 0.0, 0.0, 1.0, 0.0),
        "shear_y": (1.0, 0.0, 0.0, -shear, 1.0, 0.0),
        "shift_x": (1.0, 0.0, shift, 0.0, 1.0, 0.0),
        "shift_y": (1.0, 0.0, 0.0, 0.0, 1.0, shift),
        "rotate": (
            *(cosine, -sine, across - cosine * across + sine * down),
            *(sine, cosine, down - sine * across - cosine * down),
        ),
    }
    return _moved(image, moves[operation])


def _moved(image: Image, matrix: tuple[float, ...]) -> Image:
    """Each pixel (x, y) taken from a x + b y + c and d x + e y + f, between pixels by their distances.

    Args:
        matrix: a, b, c, d, e, f; pixels are counted from 0.
    """
    from PIL import Image, ImageOps

    a, b, c, d, e, f = matrix
    # Pillow counts from the corners of pixels; the edge is mixed with grey, as OpenCV does it.
    places = (a, b, c + 1.5 - (a + b) / 2, d, e, f + 1.5 - (d + e) / 2)
    return ImageOps.expand(image, 1, GREY).transform(
        image.size, Image.Transform.AFFINE, places, Image.Resampling.BILINEAR, fillcolor=GREY
    )
