"""T5 weights as LAVIS and transformers name them, renamed to those of `openblip.nn.t5`, and back.

The table maps modules; N stands for the layer's index. What is joined in one projection of ours is apart in
both projects: `JOINED`.
"""

from __future__ import annotations

from dataclasses import replace

from openblip.checkpoints.names.engine import NameTable
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
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias": "encoder.bias.table",
    "decoder.block.0.layer.0.SelfAttention.relative_attention_bias": "decoder.bias.table",
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

LAVIS_PREFIX = "t5_model."
TIED = {f"{stack}.embed_tokens.weight": "shared.weight" for stack in ("encoder", "decoder")}
TIED_HEAD = {"lm_head.weight": "shared.weight"}
UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
"""In the first T5 files only; no code has ever read it."""
TABLE = NameTable("language model T5", T5, joined=JOINED, second_names=TIED, unused=(UNUSED,))
"""A T5 in a folder of its own; LAVIS and BLIP-2 folders add their prefix."""


def table_of(config: T5Config) -> NameTable:
    """The table for a T5 of these sizes: with a tied head, its second name repeats the words, too."""
    return replace(TABLE, second_names={**TIED, **TIED_HEAD}) if config.tied_head else TABLE
