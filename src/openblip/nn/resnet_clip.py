"""CLIP's ResNet (https://arxiv.org/abs/2103.00020, section 2.4).

It differs from the usual one by a stem of three convolutions, strides that are average pools, and attention instead of
the last average.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.nn.config_checks import check_heads, check_settings
from openblip.nn.quant.linear import Conv2d, Linear
from openblip.nn.recompute import run_layer

STAGES = 4
EXPANSION = 4
"""Channels of a bottleneck's output for each of its inner ones."""
STRIDE = 32
"""Pixels of an image, along one side, for each place of the last grid."""
NORM_EPS = 1e-5


@dataclass(frozen=True)
class ClipResNetConfig:
    """Sizes of one of CLIP's ResNets.

    Attributes:
        image_size: side of the square images, in pixels; a multiple of 32.
        width: channels of the first stage's bottlenecks; each further stage has twice as many.
        depths: bottlenecks of the four stages: (3, 4, 6, 3) for RN50.
        num_heads: of the attention that pools the last grid.
        output_width: channels of the one vector that an image becomes.
    """

    image_size: int
    width: int
    depths: tuple[int, ...]
    num_heads: int
    output_width: int
    kind: ClassVar[str] = "clip_resnet"

    def __post_init__(self) -> None:
        check_settings(self)
        if not isinstance(self.depths, tuple) or not all(type(depth) is int and depth > 0 for depth in self.depths):
            raise ValueError(f"depths is {str(self.depths)[:100]}, not whole numbers above 0")
        if len(self.depths) != STAGES or max(self.depths) > 1_000:
            raise ValueError(f"depths is {str(self.depths)[:100]}: give the sizes of four stages")
        if self.image_size % STRIDE:
            raise ValueError(f"image_size {self.image_size} is no multiple of {STRIDE}")
        check_heads("attention pool", self.grid_width, self.num_heads)

    def build(self) -> ClipResNet:
        return ClipResNet(self)

    @property
    def grid(self) -> int:
        """Places of the last grid along one side."""
        return self.image_size // STRIDE

    @property
    def grid_width(self) -> int:
        """Channels of the last grid."""
        return self.width * EXPANSION * 2**3


class ConvNorm(nn.Module):
    """A convolution of odd size that keeps the grid, up to its stride, and batch normalization."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.conv(x))
        return normed

    def train(self, mode: bool = True) -> ConvNorm:
        """Its statistics are those of the data it was pretrained on, also where its weights learn."""
        super().train(mode)
        self.norm.eval()
        return self


class Bottleneck(nn.Module):
    """Three convolutions beside a shortcut; a stride is an average pool, before the last and in the shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = ConvNorm(inputs, width, 1)
        self.conv2 = ConvNorm(width, width, 3)
        self.conv3 = ConvNorm(width, width * EXPANSION, 1)
        changes = stride > 1 or inputs != width * EXPANSION
        self.shortcut = ConvNorm(inputs, width * EXPANSION, 1) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv2(F.relu(self.conv1(x))))
        if self.stride > 1:
            x, y = F.avg_pool2d(x, self.stride), F.avg_pool2d(y, self.stride)
        return F.relu(self.conv3(y) + (x if self.shortcut is None else self.shortcut(x)))


class AttentionPool(nn.Module):
    """One vector of a grid: its mean asks, and the mean and all places answer."""

    def __init__(self, config: ClipResNetConfig) -> None:
        super().__init__()
        width = config.grid_width
        self.num_heads = config.num_heads
        self.positions = nn.Parameter(torch.randn(1 + config.grid**2, width) / width**0.5)
        self.query = Linear(width, width)
        self.key = Linear(width, width)
        self.value = Linear(width, width)
        self.out = nn.Linear(width, config.output_width)

    def forward(self, grid: Tensor) -> Tensor:
        """[B, C, H, W] to [B, output width]."""
        places = grid.flatten(2).transpose(1, 2)
        x = torch.cat((places.mean(dim=1, keepdim=True), places), dim=1) + self.positions
        query, key, value = (
            projection(one).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection, one in ((self.query, x[:, :1]), (self.key, x), (self.value, x))
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        pooled: Tensor = self.out(mixed.flatten(1))
        return pooled


class ClipResNet(nn.Module):
    """Images to one vector each."""

    def __init__(self, config: ClipResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        half = config.width // 2
        self.stem = nn.ModuleList(
            (ConvNorm(3, half, 3, stride=2), ConvNorm(half, half, 3), ConvNorm(half, config.width, 3))
        )
        inputs = config.width
        for stage, depth in enumerate(config.depths):
            width = config.width * 2**stage
            blocks = []
            for index in range(depth):
                blocks.append(Bottleneck(inputs, width, 2 if stage and not index else 1))
                inputs = width * EXPANSION
            self.add_module(f"stage{stage + 1}", nn.Sequential(*blocks))
        self.pool = AttentionPool(config)
        for module in self.modules():
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.conv3.norm.weight)  # a fresh block passes on what it gets

    @property
    def width(self) -> int:
        return self.config.output_width

    def class_vector(self, pixels: Tensor) -> Tensor:
        """Normalized pixels [B, 3, S, S] to one vector an image [B, output width].

        Raises:
            ValueError: images of another size.
        """
        side = self.config.image_size
        if pixels.shape[1:] != (3, side, side):
            raise ValueError(f"pixels are [batch, 3, {side}, {side}] for this ResNet, not {list(pixels.shape)}")
        pooled: Tensor = self.pool(self.grid(pixels))
        return pooled

    def compute_in(self, dtype: torch.dtype) -> None:
        """Its convolutions stay in the type of what goes in, and the attention at its end is too short to gain."""

    def grid(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, S, S] to the last grid [B, C, S / 32, S / 32]."""
        x = pixels
        for layer in self.stem:
            x = F.relu(layer(x))
        x = F.avg_pool2d(x, 2)
        for stage in range(STAGES):
            for block in self.get_submodule(f"stage{stage + 1}").children():
                x = run_layer(block, self.gradient_checkpointing, x)
        return x
