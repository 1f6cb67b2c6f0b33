"""The feature cache: resumed after a kill, keyed by what features depend on, equal to direct computation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from openblip.data.features import FeatureCache, ViewPlan, cache_features, fingerprint
from openblip.data.views import make_view
from openblip.errors import ImageError, OpenBlipError
from openblip.images import ImageTransform, load_image, to_pixels
from openblip.nn.efficientnet import EfficientNet, EfficientNetConfig

TRANSFORM = ImageTransform(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PLAN = ViewPlan(count=3, min_area=0.5)


def encode(pixels: Tensor) -> Tensor:
    """Four patches of six channels: cheap, and different for every view."""
    return torch.nn.functional.avg_pool2d(torch.cat([pixels, pixels**2], 1), 16).flatten(2).transpose(1, 2)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    draw = np.random.default_rng(0)
    paths = []
    for number in range(40):
        path = tmp_path / f"{number:02d}.png"
        Image.fromarray(draw.integers(0, 255, (30 + number, 50, 3), dtype=np.uint8)).save(path)
        paths.append(path)
    return paths


def build(photos: list[Path], folder: Path, count: int | None = None) -> FeatureCache:
    """The cache; with `count`, killed once so many batches were encoded."""
    calls = 0

    def counted(pixels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == count:
            raise KeyboardInterrupt
        return encode(pixels)

    return cache_features(photos, folder, counted, TRANSFORM, PLAN, batch_size=2)


def test_cached_views_equal_direct_ones(photos: list[Path], tmp_path: Path) -> None:
    cache = build(photos, tmp_path / "cache")
    names = [photos[7].name, photos[31].name, photos[7].name]
    found = cache.patches(names, [0, 2, 1])
    views = [
        make_view(load_image(path), path.name, view, PLAN.min_area)
        for path, view in ((photos[7], 0), (photos[31], 2), (photos[7], 1))
    ]
    torch.testing.assert_close(found, encode(to_pixels(views, TRANSFORM)), rtol=1e-3, atol=1e-3)
    assert found.dtype == torch.float32


def test_a_killed_run_goes_on_to_the_same_features(photos: list[Path], tmp_path: Path) -> None:
    whole = build(photos, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        build(photos, tmp_path / "killed", count=19)
    assert int((tmp_path / "killed/done").read_text()) == 32
    resumed = build(photos, tmp_path / "killed")
    np.testing.assert_array_equal(whole.array, resumed.array)


def test_other_images_in_the_same_folder_are_refused(photos: list[Path], tmp_path: Path) -> None:
    build(photos, tmp_path / "cache")
    with pytest.raises(OpenBlipError, match="features of other images"):
        build(photos[1:], tmp_path / "cache")


def test_a_broken_image_is_named(photos: list[Path], tmp_path: Path) -> None:
    photos[3].write_bytes(b"not an image")
    with pytest.raises(ImageError, match=r"03\.png"):
        build(photos, tmp_path / "cache")


def test_fingerprint_changes_with_all_that_matters() -> None:
    torch.manual_seed(0)
    encoder = EfficientNet(EfficientNetConfig(64))
    mark = fingerprint(encoder, TRANSFORM, PLAN)
    assert mark == fingerprint(encoder, TRANSFORM, PLAN)
    others = {
        fingerprint(encoder, ImageTransform(64, TRANSFORM.mean, TRANSFORM.std), PLAN),
        fingerprint(encoder, TRANSFORM, ViewPlan(2, 0.5)),
        fingerprint(encoder, TRANSFORM, ViewPlan(3, 0.6)),
    }
    with torch.no_grad():
        encoder.head.norm.bias[0] += 1e-3
    others.add(fingerprint(encoder, TRANSFORM, PLAN))
    assert mark not in others
    assert len(others) == 4


def test_crops_are_repeatable_and_large_enough() -> None:
    image = Image.fromarray(np.arange(120 * 90 * 3, dtype=np.uint32).astype(np.uint8).reshape(90, 120, 3))
    for view in range(2, 12):
        crop = make_view(image, "a.jpg", view, 0.5)
        assert crop.tobytes() == make_view(image, "a.jpg", view, 0.5).tobytes()
        assert crop.width * crop.height >= 0.35 * 120 * 90  # clipped at the border, never tiny
    assert make_view(image, "a.jpg", 2, 0.5).tobytes() != make_view(image, "b.jpg", 2, 0.5).tobytes()
    assert make_view(image, "a.jpg", 0, 0.5) is image
    assert make_view(make_view(image, "a.jpg", 1, 0.5), "a.jpg", 1, 0.5).tobytes() == image.tobytes()
