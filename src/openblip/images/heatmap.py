"""A heatmap over an image, for people to look at."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from openblip.errors import OptionError
from openblip.images.decode import load_image
from openblip.images.sources import ImageSource

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

OPACITY = 0.55
"""Of the map, where it is highest; where it is 0, the image shows through."""
STOPS = ((0, (0, 0, 130)), (0.35, (0, 190, 255)), (0.65, (255, 230, 0)), (1, (210, 0, 0)))
"""Colours from 0 to 1."""


def draw_heatmap(image: Image.Image, heatmap: Tensor) -> Image.Image:
    """The image in grey tones under a map of it, blue where the map is low and red where it is high.

    Args:
        heatmap: [H, W] numbers from 0 to 1, stretched over the whole image.

    Raises:
        OptionError: the map has no two dimensions.
    """
    import numpy as np
    from PIL import Image

    if heatmap.ndim != 2 or not heatmap.numel():
        raise OptionError(f"the heatmap has the shape {list(heatmap.shape)}: give [rows, columns]")
    small = Image.fromarray(heatmap.float().clamp(0, 1).numpy(), mode="F")
    heat = np.asarray(small.resize(image.size, Image.Resampling.BICUBIC)).clip(0, 1)
    places = [place for place, _ in STOPS]
    colours = np.stack([np.interp(heat, places, [rgb[band] for _, rgb in STOPS]) for band in range(3)], axis=-1)
    grey = np.asarray(image.convert("L").convert("RGB"), dtype=np.float32)
    share = (0.15 + 0.85 * heat[..., None]) * OPACITY
    return Image.fromarray((grey * (1 - share) + colours * share).round().astype(np.uint8))


def save_heatmap(source: ImageSource, heatmap: Tensor, path: Path) -> None:
    """Draw a heatmap over an image into a file, whose ending says the format; its folder is made if it is missing.

    Raises:
        ImageError: the image cannot be read.
        OptionError: the file's ending is of no format, or it cannot be written.
    """
    drawn = draw_heatmap(load_image(source), heatmap)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.save(path)
    except (OSError, ValueError) as error:
        raise OptionError(f"the heatmap cannot be written to {path} ({error}): give a file such as heat.png") from error
