"""The middle of an image, as CLIP reads it, against transformers' processor and torchvision's rule."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from openblip.images.transform import ImageTransform, centre_crop, fit, normalize

SIDE = 32
MIDDLE = ImageTransform(SIDE, crop=True)


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("size", [(53, 37), (40, 67), (20, 24), (39, 32), (32, 34), (64, 64), (131, 33), (5, 7)])
def test_it_is_what_transformers_cuts_out(size: tuple[int, int]) -> None:
    image = noise(*size)
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    theirs = processor(image, return_tensors="pt").pixel_values
    ours = normalize([centre_crop(image, SIDE, math.floor)], MIDDLE)
    assert (ours - theirs).abs().max() <= 1e-6


@pytest.mark.parametrize(("width", "left"), [(32, 0), (33, 0), (34, 1), (35, 2), (36, 2), (37, 2), (39, 4)])
def test_half_a_pixel_goes_to_the_even_side(width: int, left: int) -> None:
    """As torchvision's CenterCrop, and so CLIP, has it; nothing is resized here."""
    image = noise(width, SIDE)
    assert (fit(image, MIDDLE) == np.asarray(image)[:, left : left + SIDE]).all()


def test_a_very_long_image_costs_little() -> None:
    line = Image.linear_gradient("L").resize((60_000, 3)).convert("RGB")
    middle = fit(line, MIDDLE)
    assert middle.shape == (SIDE, SIDE, 3)
    assert abs(int(middle.mean()) - 127) <= 1
    assert fit(Image.new("RGB", (1, 1), (255, 0, 0)), MIDDLE).tolist() == [[[255, 0, 0]] * SIDE] * SIDE
