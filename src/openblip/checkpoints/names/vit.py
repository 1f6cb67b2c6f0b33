"""Vision Transformer weights under other projects' names, renamed to those of `openblip.nn.vit`.

Each table maps a module or a single parameter; N stands for the block's index.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from openblip.errors import CheckpointError

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

LAVIS_PREFIXES = ("visual_encoder.", "visual.")

NOT_OURS = {
    "ln_post",  # follows the block that BLIP-2 drops
    "proj",
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
