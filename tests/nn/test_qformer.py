"""The Q-Former against transformers' on the same random weights: image and text passes, ITM and ITC."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from transformers import Blip2Config as TheirConfig
from transformers import Blip2ForImageTextRetrieval, Blip2QFormerConfig, Blip2QFormerModel

from openblip.checkpoints.qformer_names import qformer_from_lavis, qformer_from_transformers
from openblip.checkpoints.vit_names import vit_from_transformers
from openblip.errors import CheckpointError
from openblip.nn.blip2 import Blip2Config, Blip2Network, itc_similarity
from openblip.nn.qformer import QFormer, QFormerConfig
from openblip.nn.vit import VitConfig

TOLERANCE = 1e-5
EPS = 1e-5
VIT = VitConfig(28, 14, width=20, depth=1, num_heads=2, mlp_width=28, layer_norm_eps=EPS)
TEXTS = QFormerConfig(
    image_width=20,
    num_queries=5,
    width=36,
    depth=5,
    num_heads=3,
    ffn_width=50,
    cross_every=2,
    vocab_size=61,
    max_positions=13,
)
SHARED = 14
OUTER = {
    "vision_model.post_layernorm": "vision_norm",
    "vision_projection": "image_projection",
    "text_projection": "text_projection",
    "itm_head": "itm_head",
}
Norms = tuple[Tensor, Tensor]


def their_qformer(config: QFormerConfig) -> Blip2QFormerConfig:
    return Blip2QFormerConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        intermediate_size=config.ffn_width,
        max_position_embeddings=config.max_positions,
        cross_attention_frequency=config.cross_every,
        encoder_hidden_size=config.image_width,
        use_qformer_text_input=bool(config.vocab_size),
        attn_implementation="eager",
    )


def shaken(model: nn.Module) -> nn.Module:
    """Every parameter random, so that a bias or norm that is left out shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.5 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


@pytest.fixture
def retrieval() -> tuple[Blip2Network, Blip2ForImageTextRetrieval]:
    vision = {
        "hidden_size": VIT.width,
        "intermediate_size": VIT.mlp_width,
        "num_hidden_layers": VIT.depth,
        "num_attention_heads": VIT.num_heads,
        "image_size": VIT.image_size,
        "patch_size": VIT.patch_size,
        "layer_norm_eps": EPS,
    }
    theirs = Blip2ForImageTextRetrieval(
        TheirConfig(
            vision_config=vision,
            qformer_config=their_qformer(TEXTS).to_dict(),
            num_query_tokens=TEXTS.num_queries,
            image_text_hidden_size=SHARED,
        )
    )
    shaken(theirs)
    ours = Blip2Network(Blip2Config(VIT, TEXTS, shared_width=SHARED, vision_norm_eps=EPS))
    missing, unexpected = ours.load_state_dict(renamed(theirs.state_dict()), strict=False)
    # transformers has neither ITG nor a temperature
    heads = {f"qformer.head.{name}" for name, _ in ours.qformer.head.named_parameters()}
    assert set(missing) == {*heads, "temperature", "vision.blocks.0.attention.qkv.bias"} & set(ours.state_dict())
    assert not unexpected
    return ours.eval(), theirs


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What transformers' retrieval model holds (or its gradients), under our names."""
    vision = {name: tensor for name, tensor in state.items() if name.startswith("vision_model.")}
    parts = {"vision.": vit_from_transformers(vision, "clip" if not vision else "blip2")} if vision else {}
    parts["qformer."] = qformer_from_transformers(state)
    found = {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()}
    for name, tensor in state.items():
        module, _, leaf = name.rpartition(".")
        if module in OUTER:
            found[f"{OUTER[module]}.{leaf}"] = tensor
    return found


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return (ours - theirs).abs().max().item()


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
