"""Vision Transformer weights under other projects' names, renamed to those of `openblip.nn.vit`.

Each table maps a module or a single parameter; N stands for the block's index. What is fused in one project
and apart in another (queries, keys and values) is listed by part and put together at the end.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from openblip.errors import CheckpointError

Kind = Literal["blip2", "clip", "dinov2"]

LAVIS_EVA = {
    "cls_token": "class_token",
    "pos_embed": "positions",
    "patch_embed.proj": "patch_embed",
    "blocks.N.norm1": "blocks.N.norm1",
    "blocks.N.attn.qkv": "blocks.N.attention.qkv",
    "blocks.N.attn.q_bias": "blocks.N.attention.q_bias",
    "blocks.N.attn.v_bias": "blocks.N.attention.v_bias",
    "blocks.N.attn.proj": "blocks.N.attention.out",
    "blocks.N.norm2": "blocks.N.norm2",
    "blocks.N.mlp.fc1": "blocks.N.mlp.fc1",
    "blocks.N.mlp.fc2": "blocks.N.mlp.fc2",
}

# OpenAI's own layout, which LAVIS keeps
LAVIS_CLIP = {
    "class_embedding": "class_token",
    "positional_embedding": "positions",
    "conv1": "patch_embed",
    "ln_pre": "pre_norm",
    "transformer.resblocks.N.ln_1": "blocks.N.norm1",
    "transformer.resblocks.N.attn.in_proj_weight": "blocks.N.attention.qkv.weight",
    "transformer.resblocks.N.attn.in_proj_bias": "blocks.N.attention.qkv.bias",
    "transformer.resblocks.N.attn.out_proj": "blocks.N.attention.out",
    "transformer.resblocks.N.ln_2": "blocks.N.norm2",
    "transformer.resblocks.N.mlp.c_fc": "blocks.N.mlp.fc1",
    "transformer.resblocks.N.mlp.c_proj": "blocks.N.mlp.fc2",
}

TRANSFORMERS_BLIP2 = {
    "embeddings.class_embedding": "class_token",
    "embeddings.position_embedding": "positions",
    "embeddings.patch_embedding": "patch_embed",
    "encoder.layers.N.layer_norm1": "blocks.N.norm1",
    "encoder.layers.N.self_attn.qkv": "blocks.N.attention.qkv",
    "encoder.layers.N.self_attn.projection": "blocks.N.attention.out",
    "encoder.layers.N.layer_norm2": "blocks.N.norm2",
    "encoder.layers.N.mlp.fc1": "blocks.N.mlp.fc1",
    "encoder.layers.N.mlp.fc2": "blocks.N.mlp.fc2",
}

TRANSFORMERS_CLIP = {
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

TRANSFORMERS_DINOV2 = {
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

LAVIS_PREFIXES = ("visual_encoder.", "visual.")
TRANSFORMERS_PREFIXES = ("vision_model.", "dinov2.")

NOT_OURS = {
    "post_layernorm",  # BLIP-2's is the norm outside the encoder; CLIP's follows the block that BLIP-2 drops
    "ln_post",
    "proj",
    "embeddings.position_ids",
    "embeddings.mask_token",
}
"""Known names that the encoder has no place for."""


def vit_from_lavis(state: Mapping[str, Tensor], depth: int | None = None) -> dict[str, Tensor]:
    """A `VisionTransformer` state from a LAVIS file: EVA's ViT-g or CLIP's ViT-L, told apart by their names.

    Args:
        state: a whole checkpoint, or the encoder's tensors with or without `visual_encoder.` or `visual.`.
        depth: blocks to keep from the front; None for all. CLIP's own files have one more than BLIP-2 uses.

    Raises:
        CheckpointError: a name that belongs to neither layout, or no tensors at all.
    """
    return _rename(_select(state, LAVIS_PREFIXES), {**LAVIS_EVA, **LAVIS_CLIP}, depth)


def vit_from_transformers(state: Mapping[str, Tensor], kind: Kind, depth: int | None = None) -> dict[str, Tensor]:
    """A `VisionTransformer` state from a transformers file.

    Args:
        state: a whole checkpoint, or the encoder's tensors with or without `vision_model.` or `dinov2.`.
        kind: "blip2" (EVA's ViT-g), "clip" or "dinov2". BLIP-2's `post_layernorm` is not taken: it is the
            norm between encoder and Q-Former.
        depth: blocks to keep from the front; None for all.

    Raises:
        CheckpointError: a name that does not belong to the layout, or no tensors at all.
    """
    tables = {"blip2": TRANSFORMERS_BLIP2, "clip": TRANSFORMERS_CLIP, "dinov2": TRANSFORMERS_DINOV2}
    renamed = _rename(_select(state, TRANSFORMERS_PREFIXES), tables[kind], depth)
    return _split_bias(renamed) if kind == "blip2" else _fuse_qkv(renamed)


def _select(state: Mapping[str, Tensor], prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """The encoder's tensors without their prefix; all of them when none has one."""
    for prefix in prefixes:
        names = [name for name in state if name.startswith(prefix)]
        if names:
            return {name.removeprefix(prefix): state[name] for name in names}
    return dict(state)


def _rename(state: Mapping[str, Tensor], table: Mapping[str, str], depth: int | None) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        number = re.search(r"\.(\d+)\.", name)
        if number and depth is not None and int(number[1]) >= depth:
            continue
        general = name if number is None else f"{name[: number.start()]}.N.{name[number.end() :]}"
        module, _, leaf = general.rpartition(".")
        if general in NOT_OURS or module in NOT_OURS:
            continue
        if general in table:
            ours = table[general]
        elif module in table:
            ours = f"{table[module]}.{leaf}"
        else:
            raise CheckpointError(
                f"{name} is no image encoder weight of this layout: give the file that holds the encoder"
            )
        renamed[ours if number is None else ours.replace(".N.", f".{number[1]}.")] = tensor
    if not renamed:
        raise CheckpointError("the checkpoint holds no image encoder: its weights are in another file")
    for ours in renamed.keys() & {"class_token", "positions"}:
        # CLIP stores these without the leading dimensions of one.
        renamed[ours] = renamed[ours].reshape((1,) * (3 - renamed[ours].ndim) + tuple(renamed[ours].shape))
    return renamed


def _split_bias(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """EVA's fused bias [3D] to those of queries and values.

    The part of the keys is zero. Were it trained, dropping it would still change nothing: it adds the same
    to a query's product with every key, and softmax does not see that.
    """
    split: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(".qkv.bias"):
            attention = name.removesuffix("qkv.bias")
            split[f"{attention}q_bias"], _, split[f"{attention}v_bias"] = tensor.chunk(3)
        else:
            split[name] = tensor
    return split


def _fuse_qkv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Separate projections of queries, keys and values to one, stacked in this order."""
    fused: dict[str, Tensor] = {}
    for name, tensor in state.items():
        part = re.fullmatch(r"(.*\.attention)\.([qkv])\.(weight|bias)", name)
        if part is None:
            fused[name] = tensor
        elif part[2] == "q":
            parts = [f"{part[1]}.{letter}.{part[3]}" for letter in "qkv"]
            missing = [other for other in parts if other not in state]
            if missing:
                raise CheckpointError(f"the checkpoint lacks {missing[0]}: get the file again")
            fused[f"{part[1]}.qkv.{part[3]}"] = torch.cat([state[other] for other in parts])
    return fused
