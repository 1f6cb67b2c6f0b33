"""RGB image -> the square of pixels that a network reads.

`to_pixels` is the evaluation transform of a model: `fit` to a square, whole (LAVIS' `blip_image_eval`) or the middle
(its `clip_image_eval`), then `normalize`. All may be called from many threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
LONGEST = 16
"""Times its shorter side that are resized of an image whose middle is cut out."""


@dataclass(frozen=True)
class ImageTransform:
    """How a checkpoint wants its images.

    Attributes:
        image_size: side of the square in pixels.
        mean, std: mean and deviation of red, green and blue, in 0..1.
        crop: the shorter side becomes `image_size` and the middle is cut out; otherwise the whole image is squashed to
            the square.
    """

    image_size: int
    mean: tuple[float, float, float] = CLIP_TRANSFORM_MEAN
    std: tuple[float, float, float] = CLIP_TRANSFORM_STD
    crop: bool = False

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


def load_square(source: ImageSource, transform: ImageTransform, name: str | None = None) -> np.ndarray[Any, Any]:
    """`load_image`, then `fit`: uint8 [S,S,3]. Many threads at it wait for one another rather than for memory.

    Args:
        name: of the image in errors; by default what `describe_source` says.
    """
    with loaded(source, describe_source(source) if name is None else name) as image:
        return fit(image, transform)


def to_pixels(images: Sequence[Image.Image], transform: ImageTransform) -> torch.Tensor:
    """Brings images to the square that the model was trained on and normalizes them.

    Bicubic on 8-bit pixels with Pillow: LAVIS' evaluation transforms, and bit for bit those of transformers' PIL image
    processors, but that the middle that CLIP's cuts out may lie one pixel beside theirs, which rounds half pixels down.

    Args:
        images: PIL images, as `load_image` returns them.

    Returns:
        float32 [B,3,S,S] on the CPU.
    """
    return normalize([fit(image, transform) for image in images], transform)


def fit(image: Image.Image, transform: ImageTransform) -> np.ndarray[Any, Any]:
    """The first half of `to_pixels`, for one image: uint8 [S,S,3]. Nearly all of its work, and all Pillow's."""
    return (centre_crop if transform.crop else squash)(image, transform.image_size)


def squash(image: Image.Image, size: int) -> np.ndarray[Any, Any]:
    """The whole image as a square, its aspect ratio not kept: uint8 [S,S,3]."""
    import numpy as np
    from PIL import Image

    return np.asarray(_rgb(image).resize((size, size), Image.Resampling.BICUBIC))


def centre_crop(image: Image.Image, size: int, corner: Callable[[float], int] = round) -> np.ndarray[Any, Any]:
    """The middle of the image, whose shorter side becomes `size`: uint8 [S,S,3].

    Args:
        corner: what becomes of half a pixel on either side; CLIP's own transform rounds it to the even side.
    """
    import numpy as np
    from PIL import Image

    rgb = _rgb(image)
    shorter = min(rgb.size)
    # The ends of a very long image are never seen, and resized they could fill any memory.
    inset = [max(0, (side - LONGEST * shorter) // 2) for side in rgb.size]
    if any(inset):
        rgb = rgb.crop((inset[0], inset[1], rgb.width - inset[0], rgb.height - inset[1]))
    # The longer side is cut off, not rounded, as CLIP's own transform does.
    width, height = (int(size * side / shorter) for side in rgb.size)
    left, top = (corner((side - size) / 2) for side in (width, height))
    resized = rgb.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def _rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if not isinstance(image, Image.Image):
        raise ImageError(describe_source(image), "is not loaded yet; pass it through load_image first")
    return image if image.mode == "RGB" else to_rgb(image, describe_source(image))


def normalize(fitted: Sequence[np.ndarray[Any, Any]], transform: ImageTransform) -> torch.Tensor:
    """The second half of `to_pixels`: uint8 [S,S,3] each to float32 [B,3,S,S]."""
    import numpy as np
    import torch

    size = transform.image_size
    planes = np.empty((len(fitted), 3, size, size), dtype=np.uint8)
    for row, image in zip(planes, fitted, strict=True):
        row[:] = image.transpose(2, 0, 1)
    pixels = torch.from_numpy(planes).to(torch.float32)
    mean = torch.tensor(transform.mean, dtype=torch.float32).view(3, 1, 1)
    std = torch.tensor(transform.std, dtype=torch.float32).view(3, 1, 1)
    return pixels.div_(255).sub_(mean).div_(std)
