"""T5 weights as LAVIS and transformers name them, renamed to those of `openblip.nn.t5`, and back.

The table maps modules; N stands for the layer's index. What is joined in one projection of ours is apart in
both projects: `JOINED`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from openblip.checkpoints.names.engine import drop_tied, rename, select
from openblip.errors import CheckpointError
from openblip.nn.t5 import T5Config


def _layer(stack: str, ffn: int) -> dict[str, str]:
    """Names of what every layer has; the feed-forward network is its sublayer number `ffn`."""
    theirs, ours = f"{stack}.block.N.layer", f"{stack}.layers.N"
    return {
        f"{theirs}.0.layer_norm": f"{ours}.self_attention.norm",
        f"{theirs}.0.SelfAttention.q": f"{ours}.self_attention.q",
        f"{theirs}.0.SelfAttention.k": f"{ours}.self_attention.k",
        f"{theirs}.0.SelfAttention.v": f"{ours}.self_attention.v",
        f"{theirs}.0.SelfAttention.o": f"{ours}.self_attention.out",
        f"{theirs}.{ffn}.layer_norm": f"{ours}.ffn.norm",
        f"{theirs}.{ffn}.DenseReluDense.wi": f"{ours}.ffn.fc1",
        f"{theirs}.{ffn}.DenseReluDense.wi_0": f"{ours}.ffn.gate",
        f"{theirs}.{ffn}.DenseReluDense.wi_1": f"{ours}.ffn.value",
        f"{theirs}.{ffn}.DenseReluDense.wo": f"{ours}.ffn.fc2",
    }


T5 = {
    "shared": "tokens",
    "lm_head": "head",
    # Only layer 0 has it, for all layers.
    "encoder.block.N.layer.0.SelfAttention.relative_attention_bias": "encoder.bias.table",
    "decoder.block.N.layer.0.SelfAttention.relative_attention_bias": "decoder.bias.table",
    "encoder.final_layer_norm": "encoder.norm",
    "decoder.final_layer_norm": "decoder.norm",
    **_layer("encoder", ffn=1),
    **_layer("decoder", ffn=2),
    "decoder.block.N.layer.1.layer_norm": "decoder.layers.N.cross_attention.norm",
    "decoder.block.N.layer.1.EncDecAttention.q": "decoder.layers.N.cross_attention.query",
    "decoder.block.N.layer.1.EncDecAttention.k": "decoder.layers.N.cross_attention.k",
    "decoder.block.N.layer.1.EncDecAttention.v": "decoder.layers.N.cross_attention.v",
    "decoder.block.N.layer.1.EncDecAttention.o": "decoder.layers.N.cross_attention.out",
}

JOINED = {
    "self_attention.qkv": ("self_attention.q", "self_attention.k", "self_attention.v"),
    "cross_attention.kv": ("cross_attention.k", "cross_attention.v"),
    "ffn.gate_value": ("ffn.gate", "ffn.value"),
}
"""Our projection and those whose rows it stacks, all of one height."""

# What has no layer number with us is in layer 0 with them.
THEIRS = {ours: theirs if ".N." in ours else theirs.replace(".N.", ".0.") for theirs, ours in T5.items()}
"""Our name to theirs; what we have joined goes by the names of its parts."""

LAVIS_PREFIX = "t5_model."
TIED = {f"{stack}.embed_tokens.weight": "shared.weight" for stack in ("encoder", "decoder")}
TIED_HEAD = {"lm_head.weight": "shared.weight"}
UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
"""In the first T5 files only; no code has ever read it."""
WHAT = "language model T5"


def t5_from_lavis(state: Mapping[str, Tensor], config: T5Config) -> dict[str, Tensor]:
    """A `T5` state from a LAVIS checkpoint, of which other parts are passed over.

    Official files hold no more of it than the token embeddings, as it was frozen: join a FLAN-T5 folder's
    tensors under `t5_model.` first.

    Raises:
        CheckpointError: no T5 in it, a name that belongs to none, or tables that differ where `config` ties them.
    """
    part = select(state, (LAVIS_PREFIX,), WHAT)
    return _ours({name.removeprefix(LAVIS_PREFIX): tensor for name, tensor in part.items()}, config)


def t5_to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A `T5` state under the names of a T5 folder, each tensor once; LAVIS and BLIP-2 folders add their prefix.

    Raises:
        CheckpointError: a name that is none of ours.
    """
    apart: dict[str, Tensor] = {}
    for name, tensor in state.items():
        names = parts_of(name)
        apart.update(zip(names, tensor.chunk(len(names)), strict=True))
    return rename(apart, THEIRS, WHAT)


def _ours(bare: dict[str, Tensor], config: T5Config) -> dict[str, Tensor]:
    drop_tied(bare, {**TIED, **TIED_HEAD} if config.tied_head else TIED)
    bare.pop(UNUSED, None)
    apart = rename(bare, T5, WHAT)
    joined: dict[str, Tensor] = {}
    for name in apart:
        whole = _whole(name)
        parts = parts_of(whole)
        missing = [part for part in parts if part not in apart]
        if missing:
            raise CheckpointError(f"the checkpoint has {name} without {missing[0]}: get the file again")
        if whole not in joined:
            joined[whole] = apart[name] if len(parts) == 1 else torch.cat([apart[part] for part in parts])
    return joined


def _whole(name: str) -> str:
    """The name of the tensor of ours that one part goes into: itself if it is not joined with others."""
    for whole, parts in JOINED.items():
        for part in parts:
            if name.endswith(f".{part}.weight"):
                return name.replace(part, whole)
    return name


def parts_of(name: str) -> list[str]:
    """The names of the parts that a tensor of ours is made of: itself if it is not joined."""
    for whole, parts in JOINED.items():
        if name.endswith(f".{whole}.weight"):
            return [name.replace(whole, part) for part in parts]
    return [name]
