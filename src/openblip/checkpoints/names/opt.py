"""OPT weights as LAVIS and transformers name them, renamed to those of `openblip.nn.opt`.

The table maps modules; N stands for the layer's index. Queries, keys and values are apart in both projects
and one projection in ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from openblip.checkpoints.names.engine import drop_tied, rename, select
from openblip.errors import CheckpointError

OPT = {
    "embed_tokens": "tokens",
    "embed_positions": "positions",
    "project_in": "project_in",
    "project_out": "project_out",
    "layers.N.self_attn_layer_norm": "layers.N.attention_norm",
    "layers.N.self_attn.q_proj": "layers.N.q",
    "layers.N.self_attn.k_proj": "layers.N.k",
    "layers.N.self_attn.v_proj": "layers.N.v",
    "layers.N.self_attn.out_proj": "layers.N.out",
    "layers.N.final_layer_norm": "layers.N.ffn_norm",
    "layers.N.fc1": "layers.N.fc1",
    "layers.N.fc2": "layers.N.fc2",
    "final_layer_norm": "norm",
}

LAVIS_PREFIX = "opt_model."
TIED = {"lm_head.weight": "embed_tokens.weight"}
WHAT = "language model OPT"


def decoder_from_lavis(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An `Opt` state from a LAVIS checkpoint, of which other parts are passed over.

    Official files lack it, as it was frozen: its tensors come from an OPT folder.

    Raises:
        CheckpointError: no OPT in it, a name that belongs to none, or an untied output table.
    """
    part = select(state, (LAVIS_PREFIX,), WHAT)
    return _decoder({name.removeprefix(LAVIS_PREFIX): tensor for name, tensor in part.items()})


def opt_to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An `Opt` state under the names of transformers' OPTForCausalLM.

    Raises:
        CheckpointError: a name that is none of ours.
    """
    apart: dict[str, Tensor] = {}
    for name, tensor in state.items():
        names = parts_of(name)
        apart.update(zip(names, tensor.chunk(len(names)), strict=True))
    theirs = rename(apart, {ours: theirs for theirs, ours in OPT.items()}, WHAT)
    return {f"model.decoder.{name}": tensor for name, tensor in theirs.items()}


def parts_of(name: str) -> list[str]:
    """The names of the parts that a tensor of ours is made of: itself if it is not joined."""
    return [name.replace(".qkv.", f".{letter}.") for letter in "qkv"] if ".qkv." in name else [name]


def _decoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    bare = {name.removeprefix("model.").removeprefix("decoder."): tensor for name, tensor in state.items()}
    drop_tied(bare, TIED)
    return _fuse(rename(bare, OPT, WHAT))


def _fuse(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Separate projections of queries, keys and values stacked to one, in this order."""
    fused: dict[str, Tensor] = {}
    for name, tensor in state.items():
        found = re.fullmatch(r"(layers\.\d+)\.([qkv])\.(weight|bias)", name)
        if found is None:
            fused[name] = tensor
            continue
        layer, _, kind = found.groups()
        whole = f"{layer}.qkv.{kind}"
        if whole in fused:
            continue
        parts = [f"{layer}.{letter}.{kind}" for letter in "qkv"]
        missing = [part for part in parts if part not in state]
        if missing:
            raise CheckpointError(f"the checkpoint has {name} without {missing[0]}: get the file again")
        fused[whole] = torch.cat([state[part] for part in parts])
    return fused
