"""Weights and gradients of transformers' modules under our names, for modules of ours that are compared with them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from openblip.checkpoints.names.engine import rename
from openblip.checkpoints.names.transformers import sources

CLIP = {
    "embeddings.class_embedding": "class_token",
    "embeddings.position_embedding.weight": "positions",
    "embeddings.patch_embedding": "patch_embed",
    "pre_layrnorm": "pre_norm",  # the misspelling is theirs
    "encoder.layers.N.layer_norm1": "blocks.N.norm1",
    "encoder.layers.N.self_attn.q_proj": "blocks.N.attention.q",
    "encoder.layers.N.self_attn.k_proj": "blocks.N.attention.k",
    "encoder.layers.N.self_attn.v_proj": "blocks.N.attention.v",
    "encoder.layers.N.self_attn.out_proj": "blocks.N.attention.out",
    "encoder.layers.N.layer_norm2": "blocks.N.norm2",
    "encoder.layers.N.mlp.fc1": "blocks.N.mlp.fc1",
    "encoder.layers.N.mlp.fc2": "blocks.N.mlp.fc2",
}
DINOV2 = {
    "embeddings.cls_token": "class_token",
    "embeddings.position_embeddings": "positions",
    "embeddings.patch_embeddings.projection": "patch_embed",
    "encoder.layer.N.norm1": "blocks.N.norm1",
    # files on the hub
    "encoder.layer.N.attention.attention.query": "blocks.N.attention.q",
    "encoder.layer.N.attention.attention.key": "blocks.N.attention.k",
    "encoder.layer.N.attention.attention.value": "blocks.N.attention.v",
    "encoder.layer.N.attention.output.dense": "blocks.N.attention.out",
    # the same in memory since transformers 5
    "encoder.layer.N.attention.q_proj": "blocks.N.attention.q",
    "encoder.layer.N.attention.k_proj": "blocks.N.attention.k",
    "encoder.layer.N.attention.v_proj": "blocks.N.attention.v",
    "encoder.layer.N.attention.o_proj": "blocks.N.attention.out",
    "encoder.layer.N.layer_scale1.lambda1": "blocks.N.scale1",
    "encoder.layer.N.norm2": "blocks.N.norm2",
    "encoder.layer.N.mlp.fc1": "blocks.N.mlp.fc1",
    "encoder.layer.N.mlp.fc2": "blocks.N.mlp.fc2",
    "encoder.layer.N.layer_scale2.lambda1": "blocks.N.scale2",
    "layernorm": "final_norm",
}
ENCODERS = {"clip": CLIP, "dinov2": DINOV2}
NOT_OURS = ("post_layernorm.", "embeddings.position_ids", "embeddings.mask_token")


def from_blip2(state: Mapping[str, Tensor], names: Iterable[str], part: str = "") -> dict[str, Tensor]:
    """What transformers' BLIP-2 holds of our tensors `names`, which stand under `part` in the whole network."""
    found = {}
    for name in names:
        rows = sources(f"{part}{name}")
        if rows and all(row.name in state for row in rows):
            found[name] = torch.cat([state[row.name].chunk(row.count)[row.index] for row in rows])
    return found


def vit_from_transformers(
    state: Mapping[str, Tensor], kind: str, names: Iterable[str], depth: int | None = None
) -> dict[str, Tensor]:
    """Tensors of a vision model of BLIP-2, CLIP or DINOv2; `depth` blocks from the front."""
    bare = {name.removeprefix("vision_model.").removeprefix("dinov2."): tensor for name, tensor in state.items()}
    if kind not in ENCODERS:
        return from_blip2({f"vision_model.{name}": tensor for name, tensor in bare.items()}, names, "vision.")
    kept = {}
    for name, tensor in bare.items():
        number = re.search(r"\.(\d+)\.", name)
        if not name.startswith(NOT_OURS) and (number is None or depth is None or int(number[1]) < depth):
            kept[name] = tensor
    apart = rename(kept, ENCODERS[kind], "image encoder")
    found: dict[str, Tensor] = {}
    for name, tensor in apart.items():
        part = re.fullmatch(r"(.*\.attention)\.[qkv]\.(weight|bias)", name)
        if part is not None:
            found[f"{part[1]}.qkv.{part[2]}"] = torch.cat([apart[f"{part[1]}.{x}.{part[2]}"] for x in "qkv"])
        elif name in ("class_token", "positions"):
            found[name] = tensor.reshape((1,) * (3 - tensor.ndim) + tuple(tensor.shape))
        else:
            found[name] = tensor
    return found


def opt_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An OPT of transformers as LAVIS has it in a checkpoint."""
    return {f"opt_model.{name}": tensor for name, tensor in state.items()}


def t5_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A T5 of transformers as LAVIS has it in a checkpoint."""
    return {f"t5_model.{name}": tensor for name, tensor in state.items()}
