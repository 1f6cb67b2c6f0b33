"""CLIP as LAVIS' own code computed it, from small random weights under OpenAI's names; and as plain PyTorch does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.checkpoints.names.clip import openai_layout
from openblip.nn.clip import ClipConfig, ClipNetwork, ClipTextConfig
from openblip.nn.resnet_clip import ClipResNetConfig
from openblip.nn.vit import VitConfig


@dataclass(frozen=True)
class ClipRecording:
    """One file of recordings."""

    state: dict[str, Tensor]
    config: ClipConfig
    inputs: dict[str, Any]
    outputs: dict[str, Any]

    def network(self) -> ClipNetwork:
        network = ClipNetwork(self.config)
        network.load_state_dict(openai_layout(self.config).to_ours(self.state))
        return network.eval()

    @property
    def mask(self) -> Tensor:
        """True up to the end of each text."""
        return mask_of(self.outputs["tokens"])


def load_recording(path: Path) -> ClipRecording:
    content = torch.load(path, weights_only=True)
    sizes, vision, text = content["config"], content["config"]["vision"], content["config"]["text"]
    side, width, shared = vision["image_size"], vision["width"], sizes["embed_dim"]
    encoder: VitConfig | ClipResNetConfig
    if isinstance(vision["layers"], int):
        encoder = clip_vit(side, vision["patch_size"], width, vision["layers"], width // 64)
    else:
        encoder = ClipResNetConfig(side, width, tuple(vision["layers"]), width // 2, shared)
    words = ClipTextConfig(text["vocab_size"], text["width"], text["layers"], text["heads"], 4 * text["width"])
    return ClipRecording(content["model"], ClipConfig(encoder, words, shared), content["inputs"], content["outputs"])


def clip_vit(side: int, patch: int, width: int, depth: int, heads: int) -> VitConfig:
    """An image encoder as OpenAI's are."""
    return VitConfig(
        image_size=side,
        patch_size=patch,
        width=width,
        depth=depth,
        num_heads=heads,
        mlp_width=4 * width,
        layer_norm_eps=1e-5,
        activation="quick_gelu",
        pre_norm=True,
        patch_bias=False,
        final_norm=True,
    )


def mask_of(ids: Tensor) -> Tensor:
    """True up to the largest id of each row, where OpenAI's code reads a text."""
    return torch.arange(ids.shape[1])[None] <= ids.argmax(dim=1)[:, None]


@torch.no_grad()
def randomize(network: nn.Module, seed: int = 3) -> None:
    """Weights, and statistics of batches, of which none is what it starts as."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var") or (tensor.ndim == 1 and "norm" in name and name.endswith("weight")):
            tensor.copy_(1 + 0.2 * noise.abs())
        elif tensor.ndim > 1:
            tensor.copy_(noise * (tensor[0].numel() ** -0.5))
        else:
            tensor.copy_(0.1 * noise if tensor.ndim else torch.tensor(2.0))


def plain_resnet(state: Mapping[str, Tensor], config: ClipResNetConfig, pixels: Tensor) -> Tensor:
    """CLIP's ResNet by its weights under OpenAI's names ("visual." left out), written down once more."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.batch_norm(x, mean, variance, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5)

    x = pixels
    for index, stride in ((1, 2), (2, 1), (3, 1)):
        x = F.conv2d(x, state[f"conv{index}.weight"], stride=stride, padding=1)
        x = norm(x, f"bn{index}").relu()
    x = F.avg_pool2d(x, 2)
    for stage, depth in enumerate(config.depths, start=1):
        for block in range(depth):
            name = f"layer{stage}.{block}"
            halves = stage > 1 and block == 0
            y = norm(F.conv2d(x, state[f"{name}.conv1.weight"]), f"{name}.bn1").relu()
            y = norm(F.conv2d(y, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2").relu()
            y = norm(F.conv2d(F.avg_pool2d(y, 2) if halves else y, state[f"{name}.conv3.weight"]), f"{name}.bn3")
            if f"{name}.downsample.0.weight" in state:
                x = F.avg_pool2d(x, 2) if halves else x
                x = norm(F.conv2d(x, state[f"{name}.downsample.0.weight"]), f"{name}.downsample.1")
            x = (x + y).relu()
    places = x.flatten(2).permute(2, 0, 1)
    places = torch.cat([places.mean(dim=0, keepdim=True), places]) + state["attnpool.positional_embedding"][:, None]
    pooled, _ = F.multi_head_attention_forward(
        *(places[:1], places, places, places.shape[-1], config.num_heads, None),
        torch.cat([state[f"attnpool.{one}_proj.bias"] for one in "qkv"]),
        *(None, None, False, 0.0, state["attnpool.c_proj.weight"], state["attnpool.c_proj.bias"]),
        training=False,
        need_weights=False,
        use_separate_proj_weight=True,
        **{f"{one}_proj_weight": state[f"attnpool.{one}_proj.weight"] for one in "qkv"},
    )
    return pooled[0]
