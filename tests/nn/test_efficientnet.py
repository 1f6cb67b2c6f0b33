"""EfficientNet-Lite against the PyPI package efficientnet-lite-pytorch on the same random weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from openblip.checkpoints.names.efficientnet import efficientnet_from_package
from openblip.errors import CheckpointError
from openblip.nn.efficientnet import MOST_TOGETHER, EfficientNetConfig, place_codes, scale_width
from tests.pairs.efficientnet import SCALES, SHAPES, SIZES, build, patch_gap, rectangle_gaps
from tests.pairs.gaps import difference, random


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("size", SIZES)
def test_patches_equal_the_package(name: str, size: int) -> None:
    assert patch_gap(name, size) <= 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_odd_rectangles_and_gradients_equal_the_package(shape: tuple[int, int]) -> None:
    forward, gradient = rectangle_gaps(shape)
    assert forward <= 1e-5
    assert gradient <= 1e-5


@pytest.mark.parametrize("name", SCALES)
@torch.no_grad()
def test_folded_equals_unfolded(name: str) -> None:
    ours, _ = build(name, 48, place_width=8)
    ours = ours.double()  # so that nothing but the algebra is compared
    folded = copy.deepcopy(ours)
    folded.fold()
    folded.fold()  # a second time changes nothing
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    pixels = random(2, 3, 48, 48).double()
    assert difference(folded(pixels), ours(pixels)) <= 1e-10
    single = copy.deepcopy(folded).float()(pixels.float())
    assert difference(single.double(), folded(pixels)) <= 1e-3


@torch.no_grad()
def test_a_batch_is_its_images_one_by_one_in_any_layout() -> None:
    ours, _ = build("lite0", 64, place_width=8)
    unfolded = copy.deepcopy(ours.double())
    ours.fold()
    pixels = random(2 * MOST_TOGETHER + 1, 3, 64, 96).double()
    together = ours(pixels)
    assert together.shape == (len(pixels), 2 * 3, ours.width) and together.is_contiguous()
    for other in (
        torch.cat([ours(image[None]) for image in pixels]),
        ours(pixels.contiguous(memory_format=torch.channels_last)),
        unfolded(pixels),
    ):
        assert difference(together, other) <= 1e-10
    assert ours(pixels[:0]).shape == (0, 6, ours.width)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_inference_fuses_and_may_be_in_half_precision(dtype: torch.dtype, limit: float) -> None:
    ours, _ = build("lite0", 64, place_width=8)
    ours.fold()
    pixels = random(2, 3, 64, 96)
    with torch.no_grad():
        plain = ours(pixels)
    ours.compute_in(dtype)
    with torch.inference_mode():
        found = ours(pixels)
    assert found.dtype == torch.float32
    assert torch.equal(found[..., -8:], plain[..., -8:])  # places are not rounded
    assert (found - plain).norm() <= limit * plain.norm()
    assert dtype == torch.float32 or not torch.equal(found, plain)


def test_places_first_seen_in_inference_serve_training() -> None:
    ours, _ = build("lite0", 160, place_width=16)
    pixels = random(1, 3, 160, 160)
    with torch.inference_mode():
        ours(pixels)
    (ours(pixels) ** 2).sum().backward()
    assert ours.stem.conv.weight.grad is not None


@torch.no_grad()
def test_places_are_joined_behind_the_features() -> None:
    bare, _ = build("lite0", 96)
    placed, _ = build("lite0", 96, place_width=12)
    pixels = random(2, 3, 96, 64)
    patches = placed(pixels)
    assert patches.shape == (2, 3 * 2, placed.width) and placed.width == bare.width + 12
    assert torch.equal(patches[..., :-12], bare(pixels))
    assert torch.equal(patches[0, :, -12:], patches[1, :, -12:])
    codes = place_codes(5, 7, 12)[0]
    assert torch.cdist(codes, codes).fill_diagonal_(1).min() > 0.05
    grid = codes.view(5, 7, 12)
    # the first half says which row, the second which column
    assert torch.equal(grid[:, :1, :6].expand(-1, 7, -1), grid[..., :6])
    assert torch.equal(grid[:1, :, 6:].expand(5, -1, -1), grid[..., 6:])
    with pytest.raises(ValueError, match="multiple of 4"):
        EfficientNetConfig(place_width=6)


def test_widths_round_to_eights() -> None:
    # 18 rounds to 16, a ninth below: so up to 24 (the official rule, 10 % at most)
    assert [scale_width(width, 1.1) for width in (16, 24, 40, 80, 112, 192, 320)] == [
        16,
        24,
        48,
        88,
        120,
        208,
        352,
    ]
    assert scale_width(18, 1.0) == 24


def test_names_that_do_not_fit_are_refused() -> None:
    for stranger in ("_blocks.0._se_reduce.weight", "head.weight", "weight"):
        with pytest.raises(CheckpointError, match=stranger):
            efficientnet_from_package({stranger: torch.ones(1)})
