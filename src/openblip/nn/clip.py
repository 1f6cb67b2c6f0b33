"""CLIP: an image encoder and a text encoder that meet in one space (https://arxiv.org/abs/2103.00020)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.nn.config_checks import check_heads, check_settings
from openblip.nn.quant.linear import WordTable
from openblip.nn.recompute import run_layer
from openblip.nn.resnet_clip import ClipResNet, ClipResNetConfig
from openblip.nn.vit import Block, VisionTransformer, VitConfig

FIRST_TEMPERATURE = 0.07
"""Of fresh models."""


@dataclass(frozen=True)
class ClipTextConfig:
    """Sizes of CLIP's text transformer, of pre-norm blocks in which no token sees a later one.

    Attributes:
        max_positions: tokens of the longest text, the ones that begin and end it included.
        mlp_width: hidden width of the feed-forward networks.
        activation: see `VitConfig`.
    """

    vocab_size: int
    width: int
    depth: int
    num_heads: int
    mlp_width: int
    max_positions: int = 77
    layer_norm_eps: float = 1e-5
    activation: Literal["gelu", "quick_gelu"] = "quick_gelu"
    attention_bias: ClassVar[Literal["qkv"]] = "qkv"
    layer_scale: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_settings(self)
        check_heads("text transformer", self.width, self.num_heads)
        if self.vocab_size < 1:
            raise ValueError("vocab_size is 0: a text transformer has words")
        if self.activation not in ("gelu", "quick_gelu"):
            raise ValueError(f'activation {self.activation!r} is neither "gelu" nor "quick_gelu"')


ClipVisionConfig: TypeAlias = VitConfig | ClipResNetConfig


@dataclass(frozen=True)
class ClipConfig:
    """What one CLIP consists of.

    Attributes:
        vision: a ViT that ends with a norm, or CLIP's ResNet.
        shared_width: width of the space that images and texts share.
    """

    vision: ClipVisionConfig
    text: ClipTextConfig
    shared_width: int

    def __post_init__(self) -> None:
        check_settings(self)
        if isinstance(self.vision, VitConfig) and not self.vision.final_norm:
            raise ValueError("the ViT of a CLIP ends with a norm: set final_norm")

    @property
    def text_vocab_size(self) -> int:
        """Ids that the text side reads."""
        return self.text.vocab_size

    @property
    def text_positions(self) -> int:
        """Tokens of the longest text that the text side reads."""
        return self.text.max_positions


class ClipTextTransformer(nn.Module):
    """Texts to what the transformer says at their last tokens."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.words = WordTable(config.vocab_size, config.width)
        self.positions = nn.Parameter(torch.zeros(config.max_positions, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.initialize()

    def initialize(self) -> None:
        """Draw weights as CLIP's code does: the deeper a network, the smaller its steps."""
        config = self.config
        nn.init.normal_(self.words.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)
        inner = config.width**-0.5
        for block in self.blocks:
            stds = {"attention.qkv": inner, "attention.out": inner * (2 * config.depth) ** -0.5}
            stds |= {"mlp.fc1": (2 * config.width) ** -0.5, "mlp.fc2": inner * (2 * config.depth) ** -0.5}
            for name, std in stds.items():
                nn.init.normal_(block.get_submodule(name).get_parameter("weight"), std=std)

    def hidden(self, ids: Tensor) -> Tensor:
        """Ids [B, L] to what leaves the last block [B, L, width], before the final norm.

        Raises:
            ValueError: texts are longer than the positions.
        """
        if ids.shape[1] > self.config.max_positions:
            raise ValueError(f"texts have {ids.shape[1]} tokens, this CLIP reads up to {self.config.max_positions}")
        x: Tensor = self.words(ids)
        x = x + self.positions[: ids.shape[1]]
        for block in self.blocks:
            x = run_layer(block, self.gradient_checkpointing, x, True)
        return x

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Texts to one vector each [B, width]: normalized, of the last token.

        Args:
            ids, mask: [B, L]; True in `mask` up to the token that ends a text. What stands behind it is not seen.
        """
        ends = mask.sum(dim=1) - 1
        last = self.hidden(ids)[torch.arange(len(ids), device=ids.device), ends]
        normed: Tensor = self.final_norm(last)
        return normed


class ClipNetwork(nn.Module):
    """Both encoders, and what leads from each to the shared space.

    Attributes:
        log_scale: logarithm of the number that cosines are multiplied by before a softmax.
    """

    vision: VisionTransformer | ClipResNet

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = config.vision.build()
        self.text = ClipTextTransformer(config.text)
        # CLIP's ResNet ends in the shared space by itself.
        self.image_projection: nn.Linear | None = None
        if isinstance(self.vision, VisionTransformer):
            self.image_projection = nn.Linear(self.vision.width, config.shared_width, bias=False)
            nn.init.normal_(self.image_projection.weight, std=self.vision.width**-0.5)
        elif self.vision.width != config.shared_width:
            raise ValueError(
                f"the ResNet gives {self.vision.width} channels, the shared space has {config.shared_width}"
            )
        self.text_projection = nn.Linear(config.text.width, config.shared_width, bias=False)
        nn.init.normal_(self.text_projection.weight, std=config.text.width**-0.5)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / FIRST_TEMPERATURE)))

    @property
    def temperature(self) -> Tensor:
        """What cosines are divided by before a softmax."""
        return (-self.log_scale).exp()

    def embed_images(self, pixels: Tensor) -> Tensor:
        """Normalized pixels [B, 3, S, S] to vectors of the shared space [B, shared width], of any length."""
        pooled = self.vision.class_vector(pixels)
        return pooled if self.image_projection is None else self.image_projection(pooled)

    def embed_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Texts, as the transformer takes them, to vectors of the shared space [B, shared width], of any length."""
        embedded: Tensor = self.text_projection(self.text(ids, mask))
        return embedded

    def contrast(self, images: Tensor, texts: Tensor) -> Tensor:
        """Vectors of images [I, E] and texts [T, E] to scaled cosines [I, T], the logits of CLIP's loss."""
        return self.log_scale.exp() * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
