"""The random crop of a training image."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from openblip.data.augment import Augmentation, augment, crop_box
from openblip.errors import OptionError

GRADIENT = Image.linear_gradient("L").convert("RGB").rotate(90)


@settings(max_examples=300, deadline=None)
@given(width=st.integers(1, 900), height=st.integers(1, 900), seed=st.integers(0, 10**6))
def test_a_crop_lies_inside_and_keeps_its_share(width: int, height: int, seed: int) -> None:
    left, top, right, bottom = crop_box((width, height), random.Random(seed))
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    if min(width, height) > 50 and 3 / 4 < width / height < 4 / 3:
        share = (right - left) * (bottom - top) / (width * height)
        assert 0.48 <= share <= 1 and 0.73 < (right - left) / (bottom - top) < 1.37


def test_equal_draws_give_equal_images_and_half_are_mirrored() -> None:
    draws = [augment(GRADIENT, random.Random(seed)).tobytes() for seed in range(50)]
    assert draws == [augment(GRADIENT, random.Random(seed)).tobytes() for seed in range(50)]
    assert len(set(draws)) > 45
    parts = [augment(GRADIENT, random.Random(seed)) for seed in range(200)]
    mirrored = [part.getpixel((0, 0))[0] > part.getpixel((part.width - 1, 0))[0] for part in parts]
    assert 70 < sum(mirrored) < 130
    whole = Augmentation(min_area=1.0, max_area=1.0, min_ratio=1.0, max_ratio=1.0, mirror=1.0)
    assert augment(GRADIENT, random.Random(0), whole).tobytes() == ImageOps.mirror(GRADIENT).tobytes()


def test_areas_spread_over_the_whole_range() -> None:
    def share(seed: int) -> float:
        left, top, right, bottom = crop_box((1000, 1000), random.Random(seed), Augmentation(0.2, 0.6))
        return (right - left) * (bottom - top) / 1e6

    shares = [share(seed) for seed in range(1000)]
    assert 0.195 < min(shares) < 0.21 and 0.59 < max(shares) < 0.605
    assert sum(shares) / 1000 == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize("settings", [{"min_area": 0.0}, {"min_area": 0.9, "max_area": 0.5}, {"min_ratio": -1.0}])
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(OptionError):
        Augmentation(**settings)
