"""BLIP-2 against what LAVIS' own code computed from the same weights (tests/fixtures/lavis)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.errors import CheckpointError
from openblip.nn.blip2 import Blip2Network, itc_similarity
from openblip.nn.vit import VitConfig
from openblip.training.losses import IGNORED, TextBatch, contrastive_loss, draw_negatives, same_image, stage2_loss
from tests.pairs.gaps import difference
from tests.pairs.lavis import (
    RECORDED_IMAGE_IDS,
    feature_gaps,
    gradient_gaps,
    load,
    loss_gaps,
    negatives,
    recorded,
    recorded_config,
    recorded_weights,
    score_gaps,
    stage2_gaps,
    texts,
)
from tests.pairs.lavis_names import blip2_from_lavis

LAVIS_ROUNDING = 4e-6
"""How far LAVIS' float32 is from the same model in float64, where ours adds nothing; logits, which reach 13, twice."""
BOTH_ROUND = 3
"""Our float32 may err twice as much as LAVIS' did, whatever instructions the CPU has, and in the other direction."""
LAST_DIGITS = 1e-6
"""Of losses, which LAVIS may have hit by luck."""
LOGITS = 2e-5


def check(gaps: Callable[[torch.dtype], dict[str, float]]) -> None:
    """Gaps in float64 are LAVIS' own rounding; those in float32 are of its size."""
    exact = gaps(torch.float64)
    for name, gap in exact.items():
        assert gap <= LAVIS_ROUNDING * (2 if name == "logits" else 1), name
    for name, gap in gaps(torch.float32).items():
        assert gap <= BOTH_ROUND * max(exact[name], LAST_DIGITS), name


@pytest.fixture(scope="module")
def stage1() -> tuple[Blip2Network, dict[str, Tensor]]:
    return load(1), recorded("stage1")


@pytest.fixture(scope="module")
def stage2() -> tuple[Blip2Network, dict[str, Tensor]]:
    return load(2), recorded("opt")


@pytest.mark.parametrize("gaps", [feature_gaps, score_gaps, gradient_gaps])
def test_stage1(gaps: Callable[[torch.dtype], dict[str, float]]) -> None:
    check(gaps)


@pytest.mark.parametrize("name", ["eval", "imageid"])
def test_stage1_losses(name: str) -> None:
    check(lambda dtype: loss_gaps(name, dtype))


@torch.no_grad()
def test_only_these_image_ids_fit_the_recording(stage1: tuple[Blip2Network, dict[str, Tensor]]) -> None:
    """The recorded loss tells image ids apart, and the recorded negatives are some that we could draw."""
    network, tensors = stage1
    text = texts(tensors)
    images = network.project_queries(network.qformer.image(network.image_features(tensors["images"])))
    words = network.project_text(network.qformer.text(text.ids, text.mask))
    similarity = itc_similarity(images, words) / network.temperature
    partitions = {tuple(ids.index(i) for i in ids) for ids in torch.cartesian_prod(*[torch.arange(4)] * 4).tolist()}
    expected = tensors["stage1_imageid_loss_itc"][0]
    fitting = [
        ids
        for ids in partitions
        if difference(contrastive_loss(similarity, similarity.T, same_image(torch.tensor(ids), similarity)), expected)
        <= 1e-4
    ]
    assert len(partitions) == 15 and fitting == [(0, 1, 0, 3)]
    drawn = negatives(tensors, "imageid")
    generator = torch.Generator().manual_seed(0)
    same = same_image(RECORDED_IMAGE_IDS, similarity)
    draws = [draw_negatives(similarity, similarity.T, same, generator) for _ in range(300)]
    for row in range(4):
        assert drawn.images[row] in torch.stack([draw.images for draw in draws])[:, row]
        assert drawn.texts[row] in torch.stack([draw.texts for draw in draws])[:, row]


def test_stage2_loss_and_logits() -> None:
    check(stage2_gaps)


@torch.no_grad()
def test_stage2_questions_padded_left(stage2: tuple[Blip2Network, dict[str, Tensor]]) -> None:
    """The greedy first token of each answer, in one padded batch as recorded and for each question alone."""
    network, tensors = stage2
    ids, mask = tensors["pa_input_ids"], tensors["pa_attention_mask"].bool()
    prompt = network.visual_prompt(tensors["image_embeds"])
    visible = torch.cat([torch.ones(prompt.shape[:2], dtype=torch.bool), mask], dim=1)
    embeds = torch.cat([prompt, network.decoder.embed(ids)], dim=1)
    logits = network.decoder.logits(network.decoder(embeds, visible)[:, -1])
    # Recorded ids begin with LAVIS' start token.
    assert logits.argmax(dim=1).tolist() == tensors["predict_answers_greedy_ids"][:, 1].tolist()
    for row in range(len(ids)):
        alone = network.decoder.logits(network.decoder(embeds[[row]][:, visible[row]])[:, -1])
        assert difference(alone, logits[[row]]) <= LOGITS


def test_first_text_token_is_learnt_behind_the_visual_prompt(
    stage2: tuple[Blip2Network, dict[str, Tensor]],
) -> None:
    """Without a prompt LAVIS labels every token, and the language model shifts over the whole sequence."""
    network, tensors = stage2
    features, ids = tensors["image_embeds"], tensors["train_input_ids"]
    mask = tensors["train_attention_mask"].bool()
    labels = ids.masked_fill(~mask, IGNORED)
    embeds = torch.cat([network.visual_prompt(features), network.decoder.embed(ids)], dim=1)
    visible = torch.cat([mask.new_ones(4, embeds.shape[1] - 12), mask], dim=1)
    logits = network.decoder.logits(network.decoder(embeds, visible))
    everything = torch.cat([labels.new_full((4, embeds.shape[1] - 12), IGNORED), labels], dim=1)
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), everything[:, 1:].flatten())
    assert difference(stage2_loss(network, features, TextBatch(ids, mask), labels), expected) <= LOGITS


def test_files_with_and_without_strays() -> None:
    strays = {1: "Qformer.cls.predictions.decoder.weight", 2: "opt_model.lm_head.weight"}
    for stage, stray in strays.items():
        config, state = recorded_config(stage), recorded_weights(stage)
        whole = blip2_from_lavis(state, config)
        dropped = {stray, "Qformer.bert.embeddings.position_ids", "Qformer.cls.predictions.decoder.bias"}
        bare = blip2_from_lavis({k: v for k, v in state.items() if k not in dropped}, config)
        assert bare.keys() == whole.keys()
        assert all(torch.equal(bare[name], tensor) for name, tensor in whole.items())


def test_misfits_are_named() -> None:
    config, state = recorded_config(1), recorded_weights(1)
    extra = {f"t5_proj{index}.weight": torch.ones(1) for index in range(4)}
    with pytest.raises(CheckpointError, match=r"t5_proj0\.weight, .*t5_proj2\.weight and 1 more"):
        blip2_from_lavis({**state, **extra}, config)
    with pytest.raises(CheckpointError, match=r"Qformer\.bert\.pooler"):
        blip2_from_lavis({**state, "Qformer.bert.pooler.dense.weight": torch.ones(1)}, config)
    # a stage-1 config for a stage-2 file: what writes text has no place
    with pytest.raises(CheckpointError, match="opt_"):
        blip2_from_lavis({**recorded_weights(2), **state}, config)
    for part, words in (("visual_encoder.", "image encoder"), ("opt_model.", "OPT")):
        rest = {name: tensor for name, tensor in recorded_weights(2).items() if not name.startswith(part)}
        with pytest.raises(CheckpointError, match=f"{words}.*another file"):
            blip2_from_lavis(rest, recorded_config(2))
    assert isinstance(config.vision, VitConfig)
    shallow = replace(config, vision=replace(config.vision, depth=2))
    assert not any("blocks.2." in name for name in blip2_from_lavis(state, shallow))
