"""EfficientNet-Lite as an image encoder (Tan & Le 2019, https://arxiv.org/abs/1905.11946).

The "Lite" models drop squeeze-and-excitation, use ReLU6, and never scale the stem, the first stage's and
last stage's repeats, or the 1,280 channels of the head. The classifier is left out: BLIP-2 reads the grid.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.nn.config_checks import check_settings
from openblip.nn.quant.linear import Conv2d, computed_type, has_onednn
from openblip.nn.recompute import run_layer
from openblip.nn.vit import last_blocks

STEM_WIDTH = 32
HEAD_WIDTH = 1280
NORM_EPS = 1e-3
MOST_TOGETHER = 8
"""Images that a CPU takes at once, at most, and no more than it has threads (two at least): the grids of a batch
would leave its caches, and memory for them would be fetched from the system anew in every layer."""

RELU6 = ("hardtanh", [0.0, 6.0], "")
"""What oneDNN's convolution does to its outputs before it writes them."""

# kernel, stride, expansion, output channels, repeats of EfficientNet-B0, stage by stage
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


@dataclass(frozen=True)
class EfficientNetConfig:
    """One of the Lite models and the grid it hands on.

    Attributes:
        width_scale, depth_scale: 1.0, 1.0 for Lite0; 1.0, 1.1 for Lite1; 1.1, 1.2 for Lite2.
        image_size: side of the square input in pixels.
        place_width: channels of fixed sine and cosine position codes joined to each patch, a multiple
            of 4, or 0: attention over a grid has no other notion of where a patch lies.
    """

    image_size: int = 224
    width_scale: float = 1.0
    depth_scale: float = 1.0
    place_width: int = 0
    kind: ClassVar[str] = "efficientnet"

    def __post_init__(self) -> None:
        check_settings(self)
        if self.place_width % 4:
            raise ValueError(f"place_width {self.place_width} is not a multiple of 4")

    def build(self) -> EfficientNet:
        return EfficientNet(self)


class SameConv2d(Conv2d):
    """A convolution padded as TensorFlow does: at stride 2 the extra pixel goes right and below."""

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(*self.pad(x))

    def pad(self, x: Tensor) -> tuple[Tensor, int]:
        """The input, padded where its sides need different padding, and by how much the convolution is to pad it."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads = []
        for side in (x.shape[3], x.shape[2]):
            total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
            pads += [total // 2, total - total // 2]
        return (x, pads[0]) if pads[0] == pads[1] == pads[2] == pads[3] else (F.pad(x, pads), 0)


class ConvNorm(nn.Module):
    """Convolution, batch normalization with frozen statistics, and optionally ReLU6."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, active: bool = True
    ) -> None:
        super().__init__()
        self.conv = SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm: nn.BatchNorm2d | nn.Identity = nn.BatchNorm2d(outputs, eps=NORM_EPS)
        self.active = active

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.norm, nn.Identity) and self.active and (wanted := _fused_type(x)) is not None:
            padded, padding = self.conv.pad(x)
            weight, bias = self.conv.weight, self.conv.bias
            if wanted != x.dtype:
                padded, weight, bias = padded.to(wanted), weight.to(wanted), None if bias is None else bias.to(wanted)
            one: Tensor = torch.ops.mkldnn._convolution_pointwise(
                padded,
                weight,
                bias,
                [padding, padding],
                self.conv.stride,
                self.conv.dilation,
                self.conv.groups,
                *RELU6,
            )
            return one.to(x.dtype) if wanted != x.dtype else one
        x = self.norm(self.conv(x))
        return F.relu6(x, inplace=True) if self.active else x

    def train(self, mode: bool = True) -> ConvNorm:
        """Its statistics are those of the data it was pretrained on, also where its weights learn."""
        super().train(mode)
        self.norm.eval()
        return self

    @torch.no_grad()
    def fold(self) -> None:
        """Merge the normalization into the convolution, for inference; its state stays one that unfolded ones load."""
        norm = self.norm
        if isinstance(norm, nn.Identity) or norm.running_mean is None or norm.running_var is None:
            return
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        bias = norm.bias - norm.running_mean * scale
        self.conv.weight.mul_(scale[:, None, None, None])
        self.conv.bias = nn.Parameter(bias, requires_grad=False)
        self.norm = nn.Identity()
        self.register_state_dict_post_hook(_as_unfolded)  # type: ignore[no-untyped-call]


def _as_unfolded(module: nn.Module, state: dict[str, Tensor], prefix: str, _: object) -> None:
    """The state of a folded `ConvNorm` with a normalization again, which adds the bias and nothing else."""
    bias = state.pop(f"{prefix}conv.bias").float()
    state[f"{prefix}norm.weight"] = torch.ones_like(bias)
    state[f"{prefix}norm.bias"] = bias
    state[f"{prefix}norm.running_mean"] = torch.zeros_like(bias)
    state[f"{prefix}norm.running_var"] = torch.full_like(bias, 1 - NORM_EPS)
    state[f"{prefix}norm.num_batches_tracked"] = torch.zeros((), dtype=torch.int64, device=bias.device)


def _fused_type(x: Tensor) -> torch.dtype | None:
    """What oneDNN's convolution computes in, if it takes `x`: outside of training, which it sends no gradients for."""
    if x.device.type != "cpu" or not torch.is_inference_mode_enabled() or not has_onednn():
        return None
    wanted = computed_type(x)
    return wanted if wanted in (torch.float32, torch.bfloat16) else None


class InvertedBottleneck(nn.Module):
    """Expand, convolve each channel, project; with a residual where the shape allows."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = ConvNorm(inputs, hidden, 1) if expansion != 1 else None
        self.depthwise = ConvNorm(hidden, hidden, kernel, stride, groups=hidden)
        self.project = ConvNorm(hidden, outputs, 1, active=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        hidden = x if self.expand is None else self.expand(x)
        hidden = self.project(self.depthwise(hidden))
        mixed: Tensor = x + hidden if self.residual else hidden
        return mixed


class EfficientNet(nn.Module):
    """EfficientNet-Lite up to the last grid of features.

    Attributes:
        gradient_checkpointing: in training, keep only what enters each block and compute the rest again in
            the backward pass.
    """

    def __init__(self, config: EfficientNetConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.folded = False
        self.stem = ConvNorm(3, STEM_WIDTH, 3, stride=2)
        blocks: list[nn.Module] = []
        width = STEM_WIDTH
        for index, (kernel, stride, expansion, outputs, repeats) in enumerate(STAGES):
            scaled = scale_width(outputs, config.width_scale)
            if 0 < index < len(STAGES) - 1:
                repeats = math.ceil(repeats * config.depth_scale)
            for repeat in range(repeats):
                first = repeat == 0
                blocks.append(InvertedBottleneck(width, scaled, kernel, stride if first else 1, expansion))
                width = scaled
        self.blocks = nn.ModuleList(blocks)
        self.head = ConvNorm(width, HEAD_WIDTH, 1)

    @property
    def width(self) -> int:
        return HEAD_WIDTH + self.config.place_width

    @property
    def num_patches(self) -> int:
        return math.ceil(self.config.image_size / 32) ** 2

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W], (value - 127) / 128, to patches [B, N, width], row by row."""
        return self._in_parts(lambda part: self._patches(self._grid(part, 0), 0, pixels.dtype), pixels)

    def below(self, pixels: Tensor, blocks: int) -> Tensor:
        """Pixels [B, 3, S, S] to what enters the last `blocks` blocks: [B, N, C], row by row."""
        return self._in_parts(lambda part: self._grid(part, blocks).flatten(2).transpose(1, 2), pixels)

    def above(self, hidden: Tensor, blocks: int) -> Tensor:
        """What `below` gave, to patches as `forward` gives them."""
        side = math.isqrt(hidden.shape[1])
        grid = hidden.transpose(1, 2).view(len(hidden), -1, side, side)
        return self._patches(grid, blocks, hidden.dtype)

    def upper(self, blocks: int) -> tuple[str, ...]:
        """Names of the modules that `above` goes through. Raises ValueError: it has not so many blocks."""
        return (*last_blocks(self.blocks, blocks), "head")

    def _in_parts(self, compute: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
        if not self.folded or pixels.device.type != "cpu":
            return compute(pixels)
        together = min(MOST_TOGETHER, max(2, torch.get_num_threads()))
        # A pixel's channels side by side are what CPU kernels of small convolutions read and write fastest.
        parts = torch.split(pixels.contiguous(memory_format=torch.channels_last), together)
        return torch.cat([compute(part) for part in parts])

    def _grid(self, pixels: Tensor, blocks: int) -> Tensor:
        """Pixels [B, 3, H, W] to what enters the last `blocks` blocks: [B, C, h, w]."""
        x: Tensor = self.stem(pixels.to(self.stem.conv.weight.dtype))
        for block in self.blocks[: len(self.blocks) - blocks]:
            x = run_layer(block, self.gradient_checkpointing, x)
        return x

    def _patches(self, x: Tensor, blocks: int, dtype: torch.dtype) -> Tensor:
        """What entered the last `blocks` blocks [B, C, h, w] to patches [B, N, width]."""
        for block in self.blocks[len(self.blocks) - blocks :]:
            x = run_layer(block, self.gradient_checkpointing, x)
        grid: Tensor = self.head(x).to(dtype)
        patches = grid.flatten(2).transpose(1, 2)
        if not self.config.place_width:
            return patches
        places = place_codes(*grid.shape[2:], self.config.place_width).to(patches)
        return torch.cat([patches, places.expand(patches.shape[0], -1, -1)], dim=2)

    def fold(self) -> None:
        """Merge every batch normalization into its convolution, and go through batches as suits a CPU.

        The same outputs but for rounding, two to three times as fast.
        """
        self.folded = True
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.fold()

    def prepared(self, dtype: torch.dtype) -> EfficientNet:
        """A copy that reads many images fast: folded, and computing in `dtype`."""
        encoder = copy.deepcopy(self).to(torch.float32)
        encoder.fold()
        encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's stub
        return encoder.to(dtype)

    def resize(self, image_size: int) -> None:
        """It has no positions to interpolate. Raises ValueError."""
        raise ValueError("it is for vision transformers, and this image encoder is an EfficientNet")

    def compute_in(self, dtype: torch.dtype) -> None:
        """Let convolutions be of another type than what goes in and comes out: after folding, which is a precise step.

        In bfloat16, which is faster on a CPU that has it, the patches differ by some hundredths.
        """
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.to(dtype)


def scale_width(channels: int, scale: float) -> int:
    """Scaled channels, rounded to a multiple of 8 but never more than a tenth below."""
    scaled = channels * scale
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


@cache
def place_codes(height: int, width: int, channels: int) -> Tensor:
    """Sine and cosine of each patch centre at `channels / 4` frequencies a side: [1, height * width, channels]."""
    with torch.inference_mode(False):  # they are kept, for training too
        frequencies = math.pi * torch.arange(1, channels // 4 + 1) / 2
        down = (torch.arange(height) + 0.5)[:, None] / height * frequencies
        across = (torch.arange(width) + 0.5)[:, None] / width * frequencies
        down, across = down[:, None].expand(-1, width, -1), across[None].expand(height, -1, -1)
        codes = torch.cat([down.sin(), down.cos(), across.sin(), across.cos()], dim=2)
        return codes.reshape(1, height * width, channels)
