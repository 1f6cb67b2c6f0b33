"""From any kind of pixels of Pillow's to RGB of 8 bits, in strips: large images need little beside themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from openblip.errors import ImageError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

_DEEP_GREY_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_STRIP_PIXELS = 2**18


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """A new RGB image: transparency over white, deeper greys scaled to 8 bits, all else as Pillow converts it.

    Raises ImageError, which calls the image `name`, when it holds NaN or infinite pixels.
    """
    from PIL import Image

    if image.mode in _DEEP_GREY_MODES:
        black, span = _grey_range(image, name)
        return _in_strips(image, lambda strip: Image.fromarray(_to_8_bits(strip, black, span)).convert("RGB"))
    return _in_strips(image, _over_white if image.has_transparency_data else lambda strip: strip.convert("RGB"))


def _in_strips(image: Image.Image, work: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """What `work` makes of each strip of a large image, put together: what it needs beside is that of one strip."""
    from PIL import Image

    strips = list(_strips(image))
    if len(strips) == 1:
        return work(image)
    whole = Image.new("RGB", image.size)
    for box in strips:
        whole.paste(work(image.crop(box)), box)
    return whole


def _strips(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    return ((0, top, width, min(top + rows, height)) for top in range(0, height, rows))


def _over_white(image: Image.Image) -> Image.Image:
    """Dropping alpha, as a plain convert("RGB") does, shows whatever colour an editor left under it."""
    from PIL import Image

    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image.convert("RGBA"))
    return canvas.convert("RGB")


def _grey_range(image: Image.Image, name: str) -> tuple[float, float]:
    """What is black in a deep grey image, and by how much white is more.

    16-bit files use their whole range by definition. 32-bit integers and floats do not say theirs: integers
    that fit 8 or 16 bits and floats that fit 0 to 1 or 0 to 255 are taken as such, all others are stretched
    from the smallest to the largest.
    """
    import numpy as np

    if image.mode.startswith("I;16"):
        return 0.0, 65535.0
    low, high = math.inf, -math.inf
    for box in _strips(image):
        values = np.asarray(image.crop(box))
        if not np.isfinite(values).all():
            raise ImageError(name, "holds pixels that are not numbers (NaN or infinite); replace them first")
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    ranges = (1.0, 255.0) if image.mode == "F" else (255.0, 65535.0)
    black, white = next(((0.0, top) for top in ranges if low >= 0 and high <= top), (low, high))
    return black, white - black or 1.0  # one value everywhere: black


def _to_8_bits(image: Image.Image, black: float, span: float) -> np.ndarray[Any, Any]:
    """Deep grey [H,W] -> uint8 [H,W], never clipped."""
    import numpy as np

    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        return np.rint(values.astype(np.float32) / 257).astype(np.uint8)
    return np.rint((values.astype(np.float64) - black) * 255 / span).astype(np.uint8)
