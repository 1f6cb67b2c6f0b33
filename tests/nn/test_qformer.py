"""The Q-Former against transformers' on the same random weights: image and text passes, ITM and ITC."""

from __future__ import annotations

import pytest
import torch
from transformers import Blip2ForImageTextRetrieval

from openblip.errors import CheckpointError
from openblip.nn.attention_map import query_map
from openblip.nn.blip2 import Blip2Network
from openblip.nn.qformer import QFormer, QFormerConfig
from tests.pairs.gaps import difference, random, right_padded
from tests.pairs.lavis_names import qformer_from_lavis
from tests.pairs.qformer import (
    IMAGE_PASSES,
    ITM_LENGTHS,
    TEXT_PASSES,
    TEXTS,
    image_gaps,
    itc_gaps,
    itm_gaps,
    random_ids,
    retrieval_pair,
    text_gaps,
)

TOLERANCE = 1e-5
EXACT = 1e-12
"""Of two ways to the same numbers, in float64."""


@pytest.fixture
def retrieval() -> tuple[Blip2Network, Blip2ForImageTextRetrieval]:
    return retrieval_pair()


@pytest.mark.parametrize(("batch", "patches", "queries", "cross_every", "masked"), IMAGE_PASSES)
def test_image_pass_equals_transformers(batch: int, patches: int, queries: int, cross_every: int, masked: bool) -> None:
    forward, gradient = image_gaps(batch, patches, queries, cross_every, masked)
    assert forward <= TOLERANCE
    assert gradient <= TOLERANCE


@pytest.mark.parametrize(("batch", "length", "masked"), TEXT_PASSES)
def test_text_pass_equals_transformers(batch: int, length: int, masked: bool) -> None:
    forward, gradient = text_gaps(batch, length, masked)
    assert forward <= TOLERANCE
    assert gradient <= TOLERANCE


@pytest.mark.parametrize("length", ITM_LENGTHS)
def test_itm_equals_transformers(length: int) -> None:
    forward, gradient = itm_gaps(length)
    assert forward <= TOLERANCE
    assert gradient <= TOLERANCE


def test_itc_equals_transformers() -> None:
    forward, gradient = itc_gaps()
    assert forward <= TOLERANCE
    assert gradient <= TOLERANCE


@torch.no_grad()
def test_images_are_remembered_by_row(
    retrieval: tuple[Blip2Network, Blip2ForImageTextRetrieval],
) -> None:
    qformer = retrieval[0].qformer.double()
    features, rows, ids = random(3, 10, 20).double(), torch.tensor([2, 0, 2, 1]), random_ids(4, 6)
    mask = right_padded(3, 10)
    memory = qformer.remember(features, mask).take(rows)
    assert difference(qformer.image(memory), qformer.image(qformer.remember(features, mask))[rows]) <= EXACT
    direct = qformer.joint(ids, None, qformer.remember(features[rows], mask[rows]))
    assert difference(qformer.joint(ids, None, memory), direct) <= EXACT


def test_texts_share_the_memory_of_their_image(
    retrieval: tuple[Blip2Network, Blip2ForImageTextRetrieval],
) -> None:
    ours = retrieval[0].double()
    features, ids, mask = random(2, 10, 20).double().requires_grad_(), random_ids(6, 7), right_padded(3, 7).repeat(2, 1)
    image_mask = right_padded(2, 10)
    shared = ours.itm_logits(ids, mask, ours.qformer.remember(features, image_mask))
    rows = torch.tensor([0, 0, 0, 1, 1, 1])
    copied = ours.itm_logits(ids, mask, ours.qformer.remember(features[rows], image_mask[rows]))
    assert difference(shared, copied) <= EXACT
    weights = random(6, 2, seed=3).double()
    gradients = [torch.autograd.grad((logits * weights).sum(), features)[0] for logits in (shared, copied)]
    assert gradients[0].abs().max() > 1e-3 and difference(*gradients) <= EXACT
    with pytest.raises(ValueError, match="5 texts cannot be shared out evenly among 2 images"):
        ours.itm_logits(ids[:5], None, features)


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
    strangers = {f"Qformer.bert.encoder.layer.{index}.gate.weight": words for index in range(5)}
    with pytest.raises(CheckpointError, match=r"layer\.0\.gate\.weight, .*layer\.2\.gate\.weight and 2 more"):
        qformer_from_lavis(strangers)


@pytest.mark.parametrize(("layer", "place"), [(0, 0), (2, 1), (4, 2), (None, 2)])
def test_maps_of_queries_are_those_of_transformers_attention(layer: int | None, place: int) -> None:
    """Grad-CAM of the attention that transformers gives out, by its own gradients."""
    ours, theirs = retrieval_pair()
    ids, mask = random_ids(3, 7), right_padded(3, 7)
    features = ours.image_features(random(3, 3, 28, 28)).detach()
    visible = torch.cat([torch.ones(3, TEXTS.num_queries, dtype=torch.bool), mask], dim=1)
    theirs.set_attn_implementation("eager")
    weights: list[torch.Tensor] = []
    cross = theirs.qformer.encoder.layer[2 * place].crossattention.attention
    cross.register_forward_hook(lambda module, given, out: weights.append(out[1]))
    found = theirs.qformer(
        query_embeds=theirs.embeddings(input_ids=ids, query_embeds=theirs.query_tokens.expand(3, -1, -1)),
        query_length=TEXTS.num_queries,
        attention_mask=visible.long(),
        encoder_hidden_states=features,
    )
    (attention,) = weights
    queries = found.last_hidden_state[:, : TEXTS.num_queries]
    score = theirs.itm_head(queries).mean(dim=1)[:, 1].sum()
    (gradient,) = torch.autograd.grad(score, attention)
    expected = (attention * gradient.clamp(min=0)).mean(dim=(1, 2))[:, 1:]  # without the class token
    with torch.inference_mode():
        copy = features.clone()  # as a model gives them
    found_here = query_map(ours, ids, mask, copy, layer)
    assert expected.shape == (3, ours.vision.num_patches - 1)
    assert float(expected.detach().max()) > 1e-6
    assert difference(found_here, expected) <= 1e-6
    # A grid without a class token in front stays whole.
    assert query_map(ours, ids, mask, features[:, 1:], layer).shape == expected.shape


def test_layers_without_a_map_are_named() -> None:
    ours, _ = retrieval_pair()
    features = ours.image_features(random(1, 3, 28, 28))
    for layer in (1, 3, 5, -1):
        with pytest.raises(ValueError, match=f"read the image in layers 0, 2, 4, not in {layer}"):
            query_map(ours, random_ids(1, 3), torch.ones(1, 3), features, layer)
