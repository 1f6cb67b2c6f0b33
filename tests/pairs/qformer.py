"""Q-Formers of transformers' and ours with the same random weights: image and text passes, ITM and ITC."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import Blip2Config as TheirConfig
from transformers import Blip2ForImageTextRetrieval, Blip2QFormerConfig, Blip2QFormerModel

from openblip.nn.blip2 import Blip2Config, Blip2Network, itc_similarity
from openblip.nn.qformer import QFormer, QFormerConfig
from openblip.nn.vit import VitConfig
from tests.pairs.gaps import difference, random, right_padded
from tests.pairs.names import from_blip2

EPS = 1e-5
VIT = VitConfig(28, 14, width=20, depth=1, num_heads=2, mlp_width=28, layer_norm_eps=EPS, attention_bias="qv")
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
HEAD = {"dense.weight", "dense.bias", "norm.weight", "norm.bias", "bias"}
IMAGE_PASSES = [(1, 1, 1, 1, False), (3, 17, 5, 2, False), (2, 10, 7, 3, True), (3, 257, 32, 2, True)]
"""Images, patches, queries, how often there is cross-attention, and whether patches are masked."""
TEXT_PASSES = [(1, 1, False), (2, 7, False), (3, 13, True)]
"""Texts, their length, and whether they are padded."""
ITM_LENGTHS = [1, 6, 13]


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
    """Every parameter random, so that a bias or norm left out shows, and attention far from uniform."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
            if name.endswith(("query.weight", "key.weight")):
                scale *= 1.4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            if name.lower().endswith("norm.weight"):
                parameter += 1
    return model.eval()


def retrieval_pair() -> tuple[Blip2Network, Blip2ForImageTextRetrieval]:
    """Whole models that match images and texts."""
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
    assert {name.removeprefix("qformer.head.") for name in missing} == {*HEAD, "temperature"}
    assert not unexpected
    return ours.eval(), theirs


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What transformers' retrieval model holds (or its gradients), under our names."""
    with torch.device("meta"):
        names = Blip2Network(Blip2Config(VIT, TEXTS, shared_width=SHARED, vision_norm_eps=EPS)).state_dict()
    return from_blip2(state, names)


def random_ids(batch: int, length: int) -> Tensor:
    return torch.randint(TEXTS.vocab_size, (batch, length), generator=torch.Generator().manual_seed(4))


def image_gaps(batch: int, patches: int, queries: int, cross_every: int, masked: bool) -> tuple[float, float]:
    """Largest differences of queries that read an image, and of gradients (0 for a single patch, which has none)."""
    config = QFormerConfig(
        20, queries, width=36, depth=4, num_heads=3, ffn_width=50, cross_every=cross_every, vocab_size=0
    )
    theirs = shaken(Blip2QFormerModel(their_qformer(config)))
    tokens = (random(1, queries, config.width, seed=3) / 4).requires_grad_(True)
    state = {f"qformer.{name}": tensor for name, tensor in theirs.state_dict().items()}
    ours = QFormer(config).eval()
    ours.load_state_dict(from_blip2({**state, "query_tokens": tokens.detach()}, ours.state_dict(), "qformer."))
    features = random(batch, patches, config.image_width)
    mask = right_padded(batch, patches) if masked else None
    output = ours.image(ours.remember(features, mask))
    expected = theirs(
        query_embeds=tokens.expand(batch, -1, -1),
        encoder_hidden_states=features,
        encoder_attention_mask=None if mask is None else mask.long(),
    ).last_hidden_state
    assert expected.std() > 0.1
    forward = difference(output, expected)
    if patches == 1:
        return forward, 0.0
    gradients = {f"qformer.{name}": tensor for name, tensor in _weigh(expected, theirs).items()}
    assert tokens.grad is not None
    return forward, _gradient_gap(
        ours,
        output,
        from_blip2({**gradients, "query_tokens": tokens.grad}, ours.state_dict(), "qformer."),
        ("key.bias",),
    )


def text_gaps(batch: int, length: int, masked: bool) -> tuple[float, float]:
    """Largest differences of text read alone, and of gradients (0 for a single token)."""
    ours, theirs = retrieval_pair()
    ids = random_ids(batch, length)
    mask = right_padded(batch, length) if masked else torch.ones(batch, length, dtype=torch.bool)
    hidden = ours.qformer.text(ids, mask if masked else None)[mask]
    expected = theirs.qformer(
        query_embeds=theirs.embeddings(input_ids=ids), query_length=0, attention_mask=mask.long()
    ).last_hidden_state[mask]
    assert expected.std() > 0.1
    forward = difference(hidden, expected)
    if length == 1:
        return forward, 0.0
    gradients = from_blip2(_weigh(expected, theirs), ours.qformer.state_dict(), "qformer.")
    return forward, _gradient_gap(ours.qformer, hidden, gradients, ("key.bias",))


def itm_gaps(length: int) -> tuple[float, float]:
    """Largest differences of ITM logits and of the tokens behind them, and of gradients; long texts are padded."""
    ours, theirs = retrieval_pair()
    pixels, ids = random(3, 3, 28, 28), random_ids(3, length)
    mask = right_padded(3, length) if length > 6 else torch.ones(3, length, dtype=torch.bool)
    logits = ours.itm_logits(ids, mask, ours.image_features(pixels))
    expected = theirs(
        pixel_values=pixels, input_ids=ids, attention_mask=mask.long(), use_image_text_matching_head=True
    ).logits_per_image
    features = ours.image_features(pixels)
    both = ours.qformer.joint(ids, mask, features)
    visible = torch.cat([torch.ones(3, TEXTS.num_queries, dtype=torch.bool), mask], dim=1)
    their_both = theirs.qformer(
        query_embeds=theirs.embeddings(input_ids=ids, query_embeds=theirs.query_tokens.expand(3, -1, -1)),
        query_length=TEXTS.num_queries,
        attention_mask=visible.long(),
        encoder_hidden_states=features,
    ).last_hidden_state
    forward = max(difference(logits, expected), difference(both[visible], their_both[visible]))
    if mask.all():
        forward = max(forward, difference(ours.itm_logits(ids, None, features), expected))
    # What the last layer makes of the text, nobody reads.
    flat = ("key.bias", "layers.4.text_ffn.")
    return forward, _gradient_gap(ours, logits, renamed(_weigh(expected, theirs)), flat)


def itc_gaps() -> tuple[float, float]:
    """Largest differences of unit vectors and their cosines, and of gradients."""
    ours, theirs = retrieval_pair()
    pixels, ids, mask = random(2, 3, 28, 28), random_ids(3, 9), right_padded(3, 9)
    images = ours.project_queries(ours.qformer.image(ours.image_features(pixels)))
    texts = ours.project_text(ours.qformer.text(ids, mask))
    expected = theirs(pixel_values=pixels, input_ids=ids, attention_mask=mask.long())
    similarity = itc_similarity(images, texts)
    forward = max(
        difference(images, expected.image_embeds),
        difference(texts, expected.text_embeds),
        difference(similarity, expected.logits_per_image),
    )
    gradients = renamed(_weigh(expected.logits_per_image, theirs))
    return forward, _gradient_gap(ours, similarity, gradients, ("key.bias",))


def _loss(outputs: Tensor) -> Tensor:
    """Weighs every output differently."""
    return outputs.mul(random(*outputs.shape, seed=9) / outputs.numel() ** 0.5).sum()


def _weigh(outputs: Tensor, model: nn.Module) -> dict[str, Tensor]:
    _loss(outputs).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def _gradient_gap(ours: nn.Module, outputs: Tensor, theirs: Mapping[str, Tensor], flat: tuple[str, ...]) -> float:
    """The largest difference to transformers' gradients under our names; those not there must be None.

    Args:
        flat: (parts of) names whose gradient is zero. A bias of keys shifts all scores of a query alike.
    """
    _loss(outputs).backward()
    seen, worst = 0, 0.0
    for name, parameter in ours.named_parameters():
        expected = theirs.get(name)
        if expected is None:
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None, name
        worst = max(worst, difference(parameter.grad, expected))
        tested = expected.abs().max() > 1e-3
        assert tested or any(part in name for part in flat), f"{name} is not tested"
        seen += 1
    assert seen == len(theirs)
    return worst
