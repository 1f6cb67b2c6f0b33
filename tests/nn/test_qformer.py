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
OUTER = {
    "vision_model.post_layernorm": "vision_norm",
    "vision_projection": "image_projection",
    "text_projection": "text_projection",
    "itm_head": "itm_head",
}
HEAD = {"dense.weight", "dense.bias", "norm.weight", "norm.bias", "bias"}


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
    assert {name.removeprefix("qformer.head.") for name in missing} == {*HEAD, "temperature"}
    assert not unexpected
    return ours.eval(), theirs


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What transformers' retrieval model holds (or its gradients), under our names."""
    parts = {
        "vision.": vit_from_transformers(state, "blip2"),
        "qformer.": qformer_from_transformers(state),
    }
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


def right_padded(batch: int, length: int) -> Tensor:
    """[B, length] bool; the first row is full, each next one two tokens shorter."""
    return torch.arange(length)[None] < (length - 2 * torch.arange(batch))[:, None]


def check_gradients(
    ours: nn.Module, outputs: Tensor, theirs: Mapping[str, Tensor], flat: tuple[str, ...] = ("key.bias",)
) -> None:
    """Gradients of `outputs`, weighed, against transformers' under our names; those not there must be None.

    Args:
        flat: (parts of) names whose gradient is zero. A bias of keys shifts all scores of a query alike.
    """
    outputs.mul(random(*outputs.shape, seed=9) / outputs.numel() ** 0.5).sum().backward()
    seen = 0
    for name, parameter in ours.named_parameters():
        expected = theirs.get(name)
        if expected is None:
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None, name
        assert difference(parameter.grad, expected) <= TOLERANCE, name
        tested = expected.abs().max() > 1e-3
        assert tested or any(part in name for part in flat), f"{name} is not tested"
        seen += 1
    assert seen == len(theirs)


def weigh(outputs: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """transformers' gradients of what `check_gradients` weighs."""
    outputs.mul(random(*outputs.shape, seed=9) / outputs.numel() ** 0.5).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(
    ("batch", "patches", "queries", "cross_every", "masked"),
    [(1, 1, 1, 1, False), (3, 17, 5, 2, False), (2, 10, 7, 3, True), (3, 257, 32, 2, True)],
)
def test_image_pass_equals_transformers(batch: int, patches: int, queries: int, cross_every: int, masked: bool) -> None:
    config = QFormerConfig(
        20, queries, width=36, depth=4, num_heads=3, ffn_width=50, cross_every=cross_every, vocab_size=0
    )
    theirs = shaken(Blip2QFormerModel(their_qformer(config)))
    tokens = (random(1, queries, config.width, seed=3) / 4).requires_grad_(True)
    state = {f"qformer.{name}": tensor for name, tensor in theirs.state_dict().items()}
    ours = QFormer(config).eval()
    ours.load_state_dict(qformer_from_transformers({**state, "query_tokens": tokens.detach()}))
    features = random(batch, patches, config.image_width)
    mask = right_padded(batch, patches) if masked else None

    output = ours.image(ours.remember(features, mask))
    expected = theirs(
        query_embeds=tokens.expand(batch, -1, -1),
        encoder_hidden_states=features,
        encoder_attention_mask=None if mask is None else mask.long(),
    ).last_hidden_state
    assert expected.std() > 0.1
    assert difference(output, expected) <= TOLERANCE
    gradients = {f"qformer.{name}": tensor for name, tensor in weigh(expected, theirs).items()}
    assert tokens.grad is not None
    if patches > 1:
        check_gradients(ours, output, qformer_from_transformers({**gradients, "query_tokens": tokens.grad}))


@pytest.mark.parametrize(("batch", "length", "masked"), [(1, 1, False), (2, 7, False), (3, 13, True)])
def test_text_pass_equals_transformers(
    retrieval: tuple[Blip2Network, Blip2ForImageTextRetrieval], batch: int, length: int, masked: bool
) -> None:
    ours, theirs = retrieval
    ids = random_ids(batch, length)
    mask = right_padded(batch, length) if masked else torch.ones(batch, length, dtype=torch.bool)
    hidden = ours.qformer.text(ids, mask if masked else None)[mask]
    expected = theirs.qformer(
        query_embeds=theirs.embeddings(input_ids=ids), query_length=0, attention_mask=mask.long()
    ).last_hidden_state[mask]
    assert expected.std() > 0.1
    assert difference(hidden, expected) <= TOLERANCE
    if length > 1:
        gradients = weigh(expected, theirs)
        check_gradients(ours.qformer, hidden, qformer_from_transformers(gradients))


def random_ids(batch: int, length: int) -> Tensor:
    return torch.randint(TEXTS.vocab_size, (batch, length), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("length", [1, 6, 13])
def test_itm_equals_transformers(retrieval: tuple[Blip2Network, Blip2ForImageTextRetrieval], length: int) -> None:
    ours, theirs = retrieval
    pixels, ids = random(3, 3, 28, 28), random_ids(3, length)
    mask = right_padded(3, length) if length > 6 else torch.ones(3, length, dtype=torch.bool)
    logits = ours.itm_logits(ids, mask, ours.image_features(pixels))
    expected = theirs(
        pixel_values=pixels, input_ids=ids, attention_mask=mask.long(), use_image_text_matching_head=True
    ).logits_per_image
    assert difference(logits, expected) <= TOLERANCE
    features = ours.image_features(pixels)
    both = ours.qformer.joint(ids, mask, features)
    queries = torch.ones(3, TEXTS.num_queries, dtype=torch.bool)
    visible = torch.cat([queries, mask], dim=1)
    their_both = theirs.qformer(
        query_embeds=theirs.embeddings(input_ids=ids, query_embeds=theirs.query_tokens.expand(3, -1, -1)),
        query_length=TEXTS.num_queries,
        attention_mask=visible.long(),
        encoder_hidden_states=features,
    ).last_hidden_state
    assert difference(both[visible], their_both[visible]) <= TOLERANCE
    if length == 6:
        assert difference(ours.itm_logits(ids, None, ours.image_features(pixels)), expected) <= TOLERANCE
    # What the last layer makes of the text, nobody reads.
    check_gradients(ours, logits, renamed(weigh(expected, theirs)), ("key.bias", "layers.4.text_ffn."))


def test_itc_equals_transformers(retrieval: tuple[Blip2Network, Blip2ForImageTextRetrieval]) -> None:
    ours, theirs = retrieval
    pixels, ids, mask = random(2, 3, 28, 28), random_ids(3, 9), right_padded(3, 9)
    images = ours.project_queries(ours.qformer.image(ours.image_features(pixels)))
    texts = ours.project_text(ours.qformer.text(ids, mask))
    expected = theirs(pixel_values=pixels, input_ids=ids, attention_mask=mask.long())
    assert difference(images, expected.image_embeds) <= TOLERANCE
    assert difference(texts, expected.text_embeds) <= TOLERANCE
    similarity = itc_similarity(images, texts)
    assert difference(similarity, expected.logits_per_image) <= TOLERANCE
    check_gradients(ours, similarity, renamed(weigh(expected.logits_per_image, theirs)))


@torch.no_grad()
def test_images_are_remembered_by_row(
    retrieval: tuple[Blip2Network, Blip2ForImageTextRetrieval],
) -> None:
    qformer = retrieval[0].qformer
    features, rows, ids = random(3, 10, 20), torch.tensor([2, 0, 2, 1]), random_ids(4, 6)
    mask = right_padded(3, 10)
    memory = qformer.remember(features, mask).take(rows)
    assert difference(qformer.image(memory), qformer.image(qformer.remember(features, mask))[rows]) <= 1e-6
    direct = qformer.joint(ids, None, qformer.remember(features[rows], mask[rows]))
    assert difference(qformer.joint(ids, None, memory), direct) <= 1e-6


@torch.no_grad()
def test_causal_text_sees_the_image_and_its_past_alone(
    retrieval: tuple[Blip2Network, Blip2ForImageTextRetrieval],
) -> None:
    qformer = retrieval[0].qformer
    seen, other = qformer.read_image(random(2, 10, 20)), qformer.read_image(random(2, 10, 20, seed=2))
    ids = random_ids(2, 9)
    hidden = qformer.causal_text(ids, None, seen)
    changed = ids.clone()
    changed[:, 5] += 1
    after = qformer.causal_text(changed, None, seen)
    assert difference(after[:, :5], hidden[:, :5]) <= 1e-6
    assert (after[:, 5:] - hidden[:, 5:]).abs().amax(dim=(0, 2)).min() > 1e-2
    assert (qformer.causal_text(ids, None, other) - hidden).abs().amax(dim=(0, 2)).min() > 1e-2
    for length in range(1, 9):
        assert difference(qformer.causal_text(ids[:, :length], None, seen), hidden[:, :length]) <= TOLERANCE


def test_a_qformer_without_text_side_says_so() -> None:
    qformer = QFormer(QFormerConfig(20, 5, width=36, depth=2, num_heads=3, ffn_width=50, vocab_size=0)).eval()
    features, ids = random(1, 4, 20), random_ids(1, 3)
    with pytest.raises(ValueError, match="no text side"):
        qformer.text(ids)
    with pytest.raises(ValueError, match="no text side"):
        qformer.joint(ids, None, features)
    with pytest.raises(ValueError, match="no text side"):
        qformer.causal_text(ids, None, qformer.read_image(features))
    with pytest.raises(ValueError, match="13 positions"):
        QFormer(TEXTS).text(random_ids(1, 14))


def test_names_that_do_not_fit_are_refused() -> None:
    words, bias = torch.ones(4, 2), torch.ones(4)
    state = {
        "Qformer.bert.embeddings.word_embeddings.weight": words,
        "Qformer.cls.predictions.decoder.weight": words.clone(),
        "Qformer.cls.predictions.bias": bias,
        "Qformer.cls.predictions.decoder.bias": bias.clone(),
        "Qformer.bert.embeddings.position_ids": torch.arange(4)[None],
        "visual_encoder.cls_token": words,
    }
    assert qformer_from_lavis(state) == {"words.weight": words, "head.bias": bias}
    with pytest.raises(CheckpointError, match="another file"):
        qformer_from_lavis({"visual_encoder.cls_token": words})
    for name in ("Qformer.cls.predictions.decoder.weight", "Qformer.cls.predictions.decoder.bias"):
        with pytest.raises(CheckpointError, match=f"{name} and .* differ"):
            qformer_from_lavis({**state, name: state[name] + 1e-3})
    strangers = {f"qformer.encoder.layer.{index}.gate.weight": words for index in range(5)}
    with pytest.raises(CheckpointError, match=r"layer\.0\.gate\.weight, .*layer\.2\.gate\.weight and 2 more"):
        qformer_from_transformers(strangers)
