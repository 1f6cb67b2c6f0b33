"""Vision Transformer weights under other projects' names, renamed to those of `openblip.nn.vit`.

Each table maps a module or a single parameter; N stands for the block's index.
"""

from __future__ import annotations

from openblip.checkpoints.names.engine import NameTable

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

LAVIS_PREFIX = "visual_encoder."
"""In checkpoints; files of an encoder alone have the names without it, or with "visual." instead."""
FRONTS = ("", LAVIS_PREFIX, "visual.")

EVA = NameTable("image encoder", LAVIS_EVA, fronts=FRONTS)
TIMM = NameTable(
    "image encoder",
    {**LAVIS_EVA, "norm": "final_norm"},
    unused=("head", "pre_logits.fc"),
)
"""A ViT of timm, or DeiT's (Touvron et al. 2021, https://arxiv.org/abs/2012.12877), without its ImageNet classifier."""
CLIP = NameTable(
    "image encoder",
    LAVIS_CLIP,
    squeezed={"class_token": 2, "positions": 1},
    unused=("ln_post", "proj"),  # behind the block that BLIP-2 drops
    fronts=FRONTS,
)
