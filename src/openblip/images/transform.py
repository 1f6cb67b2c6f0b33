"""RGB image -> the square of pixels that a network reads.

`to_pixels` is the evaluation transform of BLIP-2 (LAVIS' `blip_image_eval`): `squash`, then `normalise`. All may be
called from many threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from openblip.errors import ImageError, OptionError
from openblip.images.decode import loaded
from openblip.images.rgb import to_rgb
from openblip.images.sources import ImageSource, describe_source

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

CLIP_TRANSFORM_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_TRANSFORM_STD = (0.26862954, 0.26130258, 0.27577711)
STD_RANGE = (1e-3, 10)


@dataclass(frozen=True)
class ImageTransform:
    """How a checkpoint wants its images: side in pixels, mean and deviation of red, green, blue in 0..1."""

    image_size: int
    mean: tuple[float, float, float] = CLIP_TRANSFORM_MEAN
    std: tuple[float, float, float] = CLIP_TRANSFORM_STD

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise OptionError(f"image_size must be at least 1, not {self.image_size}.")
        for name, values, low, high in (("mean", self.mean, 0, 1), ("std", self.std, *STD_RANGE)):
            if (
                not isinstance(values, tuple)
                or len(values) != 3
                or not all(_is_between(value, low, high) for value in values)
            ):
                raise OptionError(
                    f"{name} is {str(values)[:100]}: it has to hold three numbers from {low} to {high}, "
                    "of pixels from 0 to 1"
                )


def _is_between(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def load_squashed(source: ImageSource, size: int, name: str | None = None) -> np.ndarray[Any, Any]:
    """`load_image`, then `squash`: uint8 [S,S,3]. Many threads at it wait for one another rather than for memory.

    Args:
        name: of the image in errors; by default what `describe_source` says.
    """
    with loaded(source, describe_source(source) if name is None else name) as image:
        return squash(image, size)


def to_pixels(images: Sequence[Image.Image], transform: ImageTransform) -> torch.Tensor:
    """Squashes images to the square the model was trained on and normalises them.

    Bicubic on 8-bit pixels with Pillow, the aspect ratio not kept: LAVIS' evaluation transform, and bit for
    bit that of transformers' PIL image processor.

    Args:
        images: PIL images, as `load_image` returns them.

    Returns:
        float32 [B,3,S,S] on the CPU.
    """
    return normalise([squash(image, transform.image_size) for image in images], transform)


def squash(image: Image.Image, size: int) -> np.ndarray[Any, Any]:
    """The first half of `to_pixels`, for one image: uint8 [S,S,3]. Nearly all of its work, and all Pillow's."""
    import numpy as np
    from PIL import Image

    if not isinstance(image, Image.Image):
        raise ImageError(describe_source(image), "is not loaded yet; pass it through load_image first")
    rgb = image if image.mode == "RGB" else to_rgb(image, describe_source(image))
    return np.asarray(rgb.resize((size, size), Image.Resampling.BICUBIC))


def normalise(squashed: Sequence[np.ndarray[Any, Any]], transform: ImageTransform) -> torch.Tensor:
    """The second half of `to_pixels`: uint8 [S,S,3] each to float32 [B,3,S,S]."""
    import numpy as np
    import torch

    size = transform.image_size
    planes = np.empty((len(squashed), 3, size, size), dtype=np.uint8)
    for row, image in zip(planes, squashed, strict=True):
        row[:] = image.transpose(2, 0, 1)
    pixels = torch.from_numpy(planes).to(torch.float32)
    mean = torch.tensor(transform.mean, dtype=torch.float32).view(3, 1, 1)
    std = torch.tensor(transform.std, dtype=torch.float32).view(3, 1, 1)
    return pixels.div_(255).sub_(mean).div_(std)
