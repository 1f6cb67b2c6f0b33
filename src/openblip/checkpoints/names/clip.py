"""CLIP weights under OpenAI's names, which open_clip and LAVIS keep, and under transformers'."""

from __future__ import annotations

from openblip.checkpoints.names.engine import Layout, NameTable, Part
from openblip.checkpoints.names.vit import LAVIS_CLIP
from openblip.nn.clip import ClipConfig
from openblip.nn.vit import VitConfig

OPENAI_BLOCKS = {theirs: ours for theirs, ours in LAVIS_CLIP.items() if ".N." in theirs}
OPENAI_VIT = NameTable(
    "image encoder", {**LAVIS_CLIP, "ln_post": "final_norm"}, squeezed={"class_token": 2, "positions": 1}
)
OPENAI_RESNET = NameTable(
    "image encoder",
    {
        **{f"conv{number}": f"stem.{number - 1}.conv" for number in (1, 2, 3)},
        **{f"bn{number}": f"stem.{number - 1}.norm" for number in (1, 2, 3)},
        **{
            f"layer{stage}.N.{theirs}": f"stage{stage}.N.{ours}"
            for stage in (1, 2, 3, 4)
            for theirs, ours in (
                *((f"conv{number}", f"conv{number}.conv") for number in (1, 2, 3)),
                *((f"bn{number}", f"conv{number}.norm") for number in (1, 2, 3)),
                ("downsample.0", "shortcut.conv"),
                ("downsample.1", "shortcut.norm"),
            )
        },
        "attnpool.positional_embedding": "pool.positions",
        "attnpool.q_proj": "pool.query",
        "attnpool.k_proj": "pool.key",
        "attnpool.v_proj": "pool.value",
        "attnpool.c_proj": "pool.out",
    },
)
OPENAI_TEXT = NameTable(
    "text encoder",
    {
        "token_embedding": "words",
        "positional_embedding": "positions",
        **OPENAI_BLOCKS,
        "ln_final": "final_norm",
    },
    roots=("token_embedding.", "transformer.", "ln_final."),
)
SIZES = ("input_resolution", "context_length", "vocab_size")
"""Tensors in OpenAI's archives that say what the others' shapes say, too."""
OPENAI_SHARED = NameTable(
    "way into the shared space",
    {"visual.proj": "image_projection.weight", "text_projection": "text_projection.weight", "logit_scale": "log_scale"},
    transposed=("image_projection.weight", "text_projection.weight"),
    unused=SIZES,
    roots=SIZES,
)

TRANSFORMERS_BLOCKS = {
    "encoder.layers.N.layer_norm1": "blocks.N.norm1",
    "encoder.layers.N.self_attn.q_proj": "blocks.N.attention.q",
    "encoder.layers.N.self_attn.k_proj": "blocks.N.attention.k",
    "encoder.layers.N.self_attn.v_proj": "blocks.N.attention.v",
    "encoder.layers.N.self_attn.out_proj": "blocks.N.attention.out",
    "encoder.layers.N.layer_norm2": "blocks.N.norm2",
    "encoder.layers.N.mlp.fc1": "blocks.N.mlp.fc1",
    "encoder.layers.N.mlp.fc2": "blocks.N.mlp.fc2",
}
JOINED = {"qkv": ("q", "k", "v")}
TRANSFORMERS = Layout(
    "transformers' CLIP",
    [
        Part(
            "vision.",
            "vision_model.",
            NameTable(
                "image encoder",
                {
                    "embeddings.class_embedding": "class_token",
                    "embeddings.patch_embedding": "patch_embed",
                    "embeddings.position_embedding.weight": "positions",
                    "pre_layrnorm": "pre_norm",
                    "post_layernorm": "final_norm",
                    **TRANSFORMERS_BLOCKS,
                },
                joined=JOINED,
                squeezed={"class_token": 2, "positions": 1},
                unused=("embeddings.position_ids",),
            ),
        ),
        Part(
            "text.",
            "text_model.",
            NameTable(
                "text encoder",
                {
                    "embeddings.token_embedding": "words",
                    "embeddings.position_embedding.weight": "positions",
                    "final_layer_norm": "final_norm",
                    **TRANSFORMERS_BLOCKS,
                },
                joined=JOINED,
                unused=("embeddings.position_ids",),
            ),
        ),
        Part(
            "",
            "",
            NameTable(
                "way into the shared space",
                {
                    "visual_projection": "image_projection",
                    "text_projection": "text_projection",
                    "logit_scale": "log_scale",
                },
                roots=("visual_projection.", "text_projection."),
            ),
        ),
    ],
)


def openai_layout(config: ClipConfig) -> Layout:
    """The names in OpenAI's archives, and in state dicts of open_clip and LAVIS."""
    encoder = OPENAI_VIT if isinstance(config.vision, VitConfig) else OPENAI_RESNET
    parts = [Part("", "", OPENAI_SHARED), Part("vision.", "visual.", encoder), Part("text.", "", OPENAI_TEXT)]
    return Layout("OpenAI's CLIP", parts)


OPENAI_ROOTS = (
    *("visual.", "transformer.", "token_embedding.", "ln_final."),
    *("positional_embedding", "text_projection", "logit_scale"),
)
TRANSFORMERS_ROOTS = ("vision_model.", "text_model.", "visual_projection.", "text_projection.", "logit_scale")
"""How names begin in each layout; those without a dot are whole."""
