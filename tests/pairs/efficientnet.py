"""EfficientNet-Lite of the package efficientnet-lite-pytorch and ours with the same random weights."""

from __future__ import annotations

import torch
from efficientnet_lite_pytorch import EfficientNet as Reference
from torch import nn

from openblip.checkpoints.names.efficientnet import efficientnet_from_package
from openblip.nn.efficientnet import EfficientNet, EfficientNetConfig
from tests.pairs.gaps import difference, random

SIZES = [33, 64, 97]
SHAPES = [(65, 96), (50, 31), (1, 130)]
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


@torch.no_grad()
def patch_gap(name: str, size: int) -> float:
    """The largest difference of patches of two square images."""
    ours, theirs = build(name, size)
    pixels = random(2, 3, size, size)
    expected = theirs.extract_features(pixels).flatten(2).transpose(1, 2)
    # Unsaturated, and different for different images: else the comparison proves little.
    assert 0.1 < (expected > 0).float().mean() < 0.9 and (expected < 6).float().mean() > 0.8
    assert difference(expected[0], expected[1]) > 0.1
    assert ours.num_patches == expected.shape[1]
    return difference(ours(pixels), expected)


def rectangle_gaps(shape: tuple[int, int]) -> tuple[float, float]:
    """Of the patches of an odd rectangle, and of gradients, relative to a parameter's largest where this exceeds 1."""
    ours, theirs = build("lite0", None)
    pixels = random(1, 3, *shape)
    output, expected = ours(pixels), theirs.extract_features(pixels).flatten(2).transpose(1, 2)
    weights = random(*expected.shape) / expected.numel()
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if not name.startswith("_fc")}
    renamed = efficientnet_from_package(gradients)
    worst = 0.0
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        gap = difference(parameter.grad, renamed[name])
        worst = max(worst, gap / max(1.0, renamed[name].abs().max().item()))
    return difference(output, expected), worst
