"""EfficientNet-Lite against the PyPI package efficientnet-lite-pytorch on the same random weights."""

from __future__ import annotations

import copy

import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet as Reference
from torch import Tensor, nn

from openblip.checkpoints.efficientnet_names import efficientnet_from_package
from openblip.errors import CheckpointError
from openblip.nn.efficientnet import EfficientNet, EfficientNetConfig, place_codes, scale_width

SCALES = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2)}


def build(name: str, image_size: int | None, place_width: int = 0) -> tuple[EfficientNet, Reference]:
    """Ours and the package's; None lets the package pad by what it sees, not by a size known beforehand."""
    theirs = Reference.from_name(f"efficientnet-{name}", image_size=image_size)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in theirs.modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * (2 / fan_in) ** 0.5)
            elif isinstance(module, nn.BatchNorm2d):
                shape = module.weight.shape
                module.weight.copy_(1 + 0.2 * torch.randn(shape, generator=generator))
                module.bias.copy_(0.5 * torch.randn(shape, generator=generator))
                module.running_mean.copy_(0.5 * torch.randn(shape, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(shape, generator=generator))
    width_scale, depth_scale = SCALES[name]
    ours = EfficientNet(EfficientNetConfig(image_size or 224, width_scale, depth_scale, place_width))
    ours.load_state_dict(efficientnet_from_package(theirs.state_dict()))
    return ours.eval(), theirs.eval()


def random_pixels(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return (ours - theirs).abs().max().item()


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("size", [33, 64, 97])
@torch.no_grad()
def test_patches_equal_the_package(name: str, size: int) -> None:
    ours, theirs = build(name, size)
    pixels = random_pixels(2, 3, size, size)
    expected = theirs.extract_features(pixels).flatten(2).transpose(1, 2)
    # Unsaturated, and different for different images: else the comparison proves little.
    assert 0.1 < (expected > 0).float().mean() < 0.9 and (expected < 6).float().mean() > 0.8
    assert difference(expected[0], expected[1]) > 0.1
    assert difference(ours(pixels), expected) <= 1e-5
    assert ours.num_patches == expected.shape[1]


@pytest.mark.parametrize("shape", [(65, 96), (50, 31), (1, 130)])
def test_odd_rectangles_and_gradients_equal_the_package(shape: tuple[int, int]) -> None:
    ours, theirs = build("lite0", None)
    pixels = random_pixels(1, 3, *shape)
    output, expected = ours(pixels), theirs.extract_features(pixels).flatten(2).transpose(1, 2)
    assert difference(output, expected) <= 1e-5
    weights = random_pixels(*expected.shape) / expected.numel()
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if not name.startswith("_fc")}
    renamed = efficientnet_from_package(gradients)
    for name, parameter in ours.named_parameters():
        assert difference(parameter.grad, renamed[name]) <= 1e-5 * max(1.0, renamed[name].abs().max().item())


@pytest.mark.parametrize("name", SCALES)
@torch.no_grad()
def test_folded_equals_unfolded(name: str) -> None:
    ours, _ = build(name, 48, place_width=8)
    ours = ours.double()  # so that nothing but the algebra is compared
    folded = copy.deepcopy(ours)
    folded.fold()
    folded.fold()  # a second time changes nothing
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    pixels = random_pixels(2, 3, 48, 48).double()
    assert difference(folded(pixels), ours(pixels)) <= 1e-10
    single = copy.deepcopy(folded).float()(pixels.float())
    assert difference(single.double(), folded(pixels)) <= 1e-3


@torch.no_grad()
def test_places_are_joined_behind_the_features() -> None:
    bare, _ = build("lite0", 96)
    placed, _ = build("lite0", 96, place_width=12)
    pixels = random_pixels(2, 3, 96, 64)
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
