"""The Vision Transformer (Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929), BLIP-2's image encoder.

One module covers the variants that BLIP-2 checkpoints use, EVA's ViT-g (https://arxiv.org/abs/2211.07636) and
CLIP's ViT-L (https://arxiv.org/abs/2103.00020), and DINOv2's (https://arxiv.org/abs/2304.07193).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.nn.config_checks import check_heads, check_settings
from openblip.nn.quant.linear import Conv2d, Linear
from openblip.nn.recompute import run_layer
from openblip.nn.threads import in_row_parts

INIT_STD = 0.02
LONG = 512
"""Tokens from which on attention gains more by a half type than casting to it and back costs."""
LAYER_SCALE_START = 1e-5
"""What DINOv2 starts its layer scales at: a fresh block is nearly the identity."""


@dataclass(frozen=True)
class VitConfig:
    """Sizes and variant of a Vision Transformer.

    Attributes:
        image_size: side of the square images that `positions` are learned for, in pixels; others interpolate.
        patch_size: side of a patch in pixels.
        mlp_width: hidden width of the feed-forward networks.
        layer_norm_eps: of every LayerNorm in here. EVA's is 1e-6, also where a hub config says 1e-5.
        activation: "quick_gelu" is CLIP's x * sigmoid(1.702 x), "gelu" the exact one.
        pre_norm: a LayerNorm between positions and first block (CLIP's `ln_pre`).
        patch_bias: whether the patch projection has a bias; CLIP's has none.
        attention_bias: "qkv" for a bias on all three, "qv" for none on the keys (EVA).
        layer_scale: a learned factor a channel on every residual branch (DINOv2).
        final_norm: a LayerNorm after the last block. BLIP-2 takes the raw output of its encoders, and
            normalizes it outside with an eps of its own.
        drop_path: stochastic depth (https://arxiv.org/abs/1603.09382), in training only: the chance that the
            last block's branches are skipped for an image; it grows linearly from 0 at the first block.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    mlp_width: int
    layer_norm_eps: float = 1e-6
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    pre_norm: bool = False
    patch_bias: bool = True
    attention_bias: Literal["qkv", "qv"] = "qkv"
    layer_scale: bool = False
    final_norm: bool = False
    drop_path: float = 0.0
    kind: ClassVar[str] = "vit"

    def __post_init__(self) -> None:
        check_settings(self)
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        check_heads("ViT", self.width, self.num_heads)
        if self.activation not in ("gelu", "quick_gelu"):
            raise ValueError(f'activation {self.activation!r} is neither "gelu" nor "quick_gelu"')
        if self.attention_bias not in ("qkv", "qv"):
            raise ValueError(f'attention_bias {self.attention_bias!r} is neither "qkv" nor "qv"')

    def build(self) -> VisionTransformer:
        return VisionTransformer(self)

    @property
    def grid(self) -> int:
        """Patches along one side of a configured image."""
        return self.image_size // self.patch_size


EVA_VIT_G = VitConfig(
    image_size=224,
    patch_size=14,
    width=1408,
    depth=39,
    num_heads=16,
    mlp_width=6144,
    layer_norm_eps=1e-6,
    attention_bias="qv",
)
"""BLIP-2's default encoder: EVA's 40 blocks without the last."""

CLIP_VIT_L = VitConfig(
    image_size=224,
    patch_size=14,
    width=1024,
    depth=23,
    num_heads=16,
    mlp_width=4096,
    layer_norm_eps=1e-5,
    activation="quick_gelu",
    pre_norm=True,
    patch_bias=False,
)
"""The encoder of BLIP-2's "vitL" checkpoints: CLIP's 24 blocks without the last."""


class BlockConfig(Protocol):
    """Sizes and variant of a pre-norm transformer block, see `VitConfig`."""

    @property
    def width(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def mlp_width(self) -> int: ...
    @property
    def layer_norm_eps(self) -> float: ...
    @property
    def activation(self) -> Literal["gelu", "quick_gelu"]: ...
    @property
    def attention_bias(self) -> Literal["qkv", "qv"]: ...
    @property
    def layer_scale(self) -> bool: ...


class Attention(nn.Module):
    """Multi-head self-attention over all tokens, or of each token over those up to itself.

    Attributes:
        dtype: what is computed in where there are many tokens, in inference; None for the type of what comes in.
    """

    dtype: torch.dtype | None = None

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.qkv = Linear(width, 3 * width, bias=config.attention_bias == "qkv")
        # One fused [3D] bias would hand EVA's keys a bias to train, so its two parts stay apart.
        if config.attention_bias == "qv":
            self.q_bias: nn.Parameter | None = nn.Parameter(torch.zeros(width))
            self.v_bias: nn.Parameter | None = nn.Parameter(torch.zeros(width))
        else:
            self.q_bias = self.v_bias = None
        self.out = Linear(width, width)

    def forward(self, x: Tensor, causal: bool = False, queries: int | None = None) -> Tensor:
        """Tokens [B, N, width] to [B, N, width].

        Args:
            causal: later tokens are not seen.
            queries: how many tokens' outputs are wanted, from the first; None for all.
        """
        batch, length, width = x.shape
        qkv = self.qkv(x)
        if self.q_bias is not None and self.v_bias is not None:
            bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
            # Under autocast the projection is in half precision, and a float32 bias would undo that.
            qkv = qkv + bias.to(qkv.dtype)
        if self.dtype is not None and length >= LONG and torch.is_inference_mode_enabled():
            qkv = qkv.to(self.dtype)
        query, key, value = qkv.view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query[:, :, :queries], key, value, is_causal=causal)
        projected: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, mixed.shape[2], width).to(x.dtype))
        return projected


class Mlp(nn.Module):
    """The feed-forward network of a block."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.fc1 = Linear(config.width, config.mlp_width)
        self.fc2 = Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [..., width] to [..., width]."""
        return in_row_parts(self._forward, x, self.fc1.out_features)

    def _forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.fc2(activate(self.fc1(x), self.activation))
        return projected


def activate(x: Tensor, activation: Literal["gelu", "quick_gelu"]) -> Tensor:
    """x [...] through the activation; without gradients x is overwritten, as new memory costs more than arithmetic."""
    if activation == "quick_gelu":
        gate = torch.sigmoid_(1.702 * x)
        return x * gate if torch.is_grad_enabled() else gate.mul_(x)
    return F.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x)


class Block(nn.Module):
    """Attention and feed-forward network, each on normalized input and added to its input."""

    def __init__(self, config: BlockConfig, drop_path: float = 0.0) -> None:
        super().__init__()
        width, eps = config.width, config.layer_norm_eps
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(config)
        if config.layer_scale:
            self.scale1: nn.Parameter | None = nn.Parameter(torch.full((width,), LAYER_SCALE_START))
            self.scale2: nn.Parameter | None = nn.Parameter(torch.full((width,), LAYER_SCALE_START))
        else:
            self.scale1 = self.scale2 = None

    def forward(self, x: Tensor, causal: bool = False, queries: int | None = None) -> Tensor:
        """As `Attention`."""
        x = x[:, :queries] + self.weigh(self.attention(self.norm1(x), causal, queries), self.scale1)
        return x + self.weigh(self.mlp(self.norm2(x)), self.scale2)

    def weigh(self, branch: Tensor, scale: Tensor | None) -> Tensor:
        """Layer scale, then stochastic depth: what a residual branch [B, N, D] counts for."""
        if scale is not None:
            branch = branch * scale
        if self.training and self.drop_path > 0.0:
            keep = 1.0 - self.drop_path
            kept = torch.rand(branch.shape[0], 1, 1, device=branch.device) < keep
            # Survivors are scaled up so that the expected sum is that of evaluation.
            branch = branch * (kept.to(branch.dtype) / keep)
        return branch


class VisionTransformer(nn.Module):
    """Images to one vector a patch, behind the class token's.

    Attributes:
        gradient_checkpointing: in training, keep only what enters each block and compute the rest again in
            the backward pass: memory for one block's activations instead of all, for a third more time.
    """

    def __init__(self, config: VitConfig, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = gradient_checkpointing
        width, patch = config.width, config.patch_size
        self.patch_embed = Conv2d(3, width, kernel_size=patch, stride=patch, bias=config.patch_bias)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, self.num_patches, width))
        self.pre_norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if config.pre_norm else None
        rates = [config.drop_path * index / max(config.depth - 1, 1) for index in range(config.depth)]
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.final_norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if config.final_norm else None
        self.initialize()

    def initialize(self) -> None:
        """Draw weights as BEiT and EVA do: the deeper a block, the smaller what it adds."""
        for parameter in (self.class_token, self.positions, self.patch_embed.weight):
            nn.init.trunc_normal_(parameter, std=INIT_STD)
        if self.patch_embed.bias is not None:
            nn.init.zeros_(self.patch_embed.bias)
        for depth, block in enumerate(self.blocks, start=1):
            for module in block.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=INIT_STD)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
            with torch.no_grad():
                for name in ("attention.out", "mlp.fc2"):
                    block.get_submodule(name).get_parameter("weight").div_(math.sqrt(2.0 * depth))

    @property
    def width(self) -> int:
        """Channels of the output."""
        return self.config.width

    @property
    def num_patches(self) -> int:
        """Vectors that an image of the configured size becomes, the class token's included."""
        return 1 + self.config.grid**2

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalized pixels [B, 3, H, W] to vectors [B, 1 + H/patch * W/patch, width].

        The class token comes first, then the patches row by row. H and W may differ from `image_size` and
        from each other; the positions are then interpolated.

        Raises:
            ValueError: not three channels, or H or W is no multiple of the patch size.
        """
        return self.above(self.embed(pixels), len(self.blocks))

    def class_vector(self, pixels: Tensor) -> Tensor:
        """Pixels, as `forward` takes them, to what `forward` gives of the class token: [B, width].

        The last block computes nothing of the patches but what the class token looks at.
        """
        *lower, last = self.blocks
        x: Tensor = self.embed(pixels)
        for block in lower:
            x = run_layer(block, self.gradient_checkpointing, x)
        x = last(x, queries=1)[:, 0]
        return x if self.final_norm is None else self.final_norm(x)

    def fold(self) -> None:
        """It has no batch normalization to fold."""

    def compute_in(self, dtype: torch.dtype) -> None:
        """Let attention over many tokens be of another type than what goes in and comes out.

        For quantized weights: bfloat16 rounds more finely than 8 bits do, and is up to twice as fast on a CPU
        that has it. The one convolution is small, and stays as it is.
        """
        for block in self.blocks:
            cast(Block, block).attention.dtype = dtype

    def prepared(self, dtype: torch.dtype) -> VisionTransformer:
        """What reads many images fast: itself, as it is."""
        return self

    def resize(self, image_size: int) -> None:
        """Take square images of another size, to which positions are interpolated. Raises ValueError."""
        config = replace(self.config, image_size=image_size)
        self.positions = nn.Parameter(interpolate_positions(self.positions.detach(), config.grid, config.grid))
        self.config = config

    def below(self, pixels: Tensor, blocks: int) -> Tensor:
        """Pixels, as `forward` takes them, to what enters the last `blocks` blocks: [B, 1 + N, width]."""
        x = self.embed(pixels)
        for block in self.blocks[: len(self.blocks) - blocks]:
            x = block(x)
        return x

    def upper(self, blocks: int) -> tuple[str, ...]:
        """Names of the modules that `above` goes through. Raises ValueError: it has not so many blocks."""
        norm = () if self.final_norm is None else ("final_norm",)
        return (*last_blocks(self.blocks, blocks), *norm)

    def above(self, hidden: Tensor, blocks: int) -> Tensor:
        """What entered the last `blocks` blocks, to what `forward` gives."""
        x = hidden
        for block in self.blocks[len(self.blocks) - blocks :]:
            x = run_layer(block, self.gradient_checkpointing, x)
        return x if self.final_norm is None else self.final_norm(x)

    def embed(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] to what enters the first block [B, 1 + N, width].

        Raises:
            ValueError: as `forward`.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise ValueError(f"pixels are [batch, 3, height, width], not {list(pixels.shape)}")
        height, width, patch = pixels.shape[2], pixels.shape[3], self.config.patch_size
        if height % patch or width % patch or not (height and width):
            raise ValueError(f"image height {height} and width {width} must be multiples of the patch size {patch}")
        patches = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_token.expand(pixels.shape[0], -1, -1), patches), dim=1)
        x = x + interpolate_positions(self.positions, height // patch, width // patch)
        return x if self.pre_norm is None else self.pre_norm(x)


def last_blocks(blocks: nn.ModuleList, count: int) -> list[str]:
    """Names of an encoder's last `count` blocks. Raises ValueError: it has not so many."""
    if not 0 <= count <= len(blocks):
        raise ValueError(f"the image encoder has {len(blocks)} blocks, not {count}")
    return [f"blocks.{index}" for index in range(len(blocks) - count, len(blocks))]


def interpolate_positions(positions: Tensor, grid_height: int, grid_width: int) -> Tensor:
    """Learned positions of a square grid for another grid, the class token's kept.

    Bicubic between patch centres (align_corners False), as LAVIS does when it loads and transformers on the
    fly. DINOv2's original code scales by (grid + 0.1) / old grid instead, which moves the samples slightly.

    Args:
        positions: [1, 1 + n, D], n a square number; float16 and bfloat16 are interpolated in float32.

    Returns:
        [1, 1 + grid_height * grid_width, D]; `positions` itself when that is its grid.

    Raises:
        ValueError: n is not a square number.
    """
    count, width = positions.shape[1] - 1, positions.shape[2]
    side = math.isqrt(count)
    if side * side != count:
        raise ValueError(f"{count} patch positions do not form a square grid")
    if (grid_height, grid_width) == (side, side):
        return positions
    grid = positions[:, 1:].reshape(1, side, side, width).permute(0, 3, 1, 2).float()
    grid = F.interpolate(grid, size=(grid_height, grid_width), mode="bicubic", align_corners=False)
    patches = grid.flatten(2).transpose(1, 2).to(positions.dtype)
    return torch.cat((positions[:, :1], patches), dim=1)
