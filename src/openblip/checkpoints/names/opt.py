"""OPT weights as LAVIS and transformers name them, renamed to those of `openblip.nn.opt`.

The table maps modules; N stands for the layer's index. Queries, keys and values are apart in both projects
and one projection in ours.
"""

from __future__ import annotations

from openblip.checkpoints.names.engine import NameTable

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
TABLE = NameTable(
    "language model OPT",
    OPT,
    joined={"qkv": ("q", "k", "v")},
    second_names={"lm_head.weight": "embed_tokens.weight"},
    # facebook's own folders leave out the first half, some the second.
    fronts=("model.decoder.", "decoder.", "model.", ""),
)
"""An OPT in a folder of its own; LAVIS and BLIP-2 folders add their prefix."""
