"""BLIP-2 against what LAVIS' own code computed from the same weights (tests/fixtures/lavis)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from openblip.checkpoints.lavis import blip2_from_lavis
from openblip.errors import CheckpointError
from openblip.nn.blip2 import Blip2Config, Blip2Network, itc_similarity
from openblip.nn.decoder import DecoderConfig
from openblip.nn.qformer import QFormerConfig
from openblip.nn.vit import EVA_VIT_G, VitConfig
from openblip.training.objectives import (
    IGNORED,
    HardNegatives,
    TextBatch,
    contrastive_loss,
    draw_negatives,
    stage1_loss,
    stage2_loss,
)

FOLDER = Path(__file__).parents[1] / "fixtures" / "lavis"
FEATURES = 2e-6
LOGITS = 2e-5
START_OF_TEXT = 53
"""[DEC] of the recorded vocabulary."""
RECORDED_IMAGE_IDS = torch.tensor([0, 1, 0, 2])
"""The recording does not say which ids it used; of all 15 partitions of four texts this one alone fits."""

GRADIENTS = {
    "Qformer.bert.embeddings.word_embeddings.weight": "qformer.words.weight",
    "Qformer.bert.encoder.layer.0.crossattention.self.query.weight": ("qformer.layers.0.cross_attention.query.weight"),
    "Qformer.bert.encoder.layer.1.intermediate.dense.weight": "qformer.layers.1.text_ffn.fc1.weight",
    "Qformer.bert.encoder.layer.1.intermediate_query.dense.weight": "qformer.layers.1.query_ffn.fc1.weight",
    "Qformer.cls.predictions.transform.dense.weight": "qformer.head.dense.weight",
    "itm_head.weight": "itm_head.weight",
    "ln_vision.weight": "vision_norm.weight",
    "query_tokens": "qformer.queries",
    "temp": "temperature",
    "vision_proj.weight": "image_projection.weight",
}


def recorded_config(stage: int) -> Blip2Config:
    sizes: dict[str, Any] = json.loads((FOLDER / "meta.json").read_text())["config"]
    vit, qformer, opt = sizes["vit"], sizes["qformer"], sizes["opt"]
    vision = replace(
        EVA_VIT_G,
        image_size=vit["img_size"],
        patch_size=vit["patch_size"],
        width=vit["embed_dim"],
        depth=vit["depth"],
        num_heads=vit["num_heads"],
        mlp_width=int(vit["embed_dim"] * vit["mlp_ratio"]),
    )
    decoder = DecoderConfig(
        vocab_size=opt["vocab_size"],
        width=opt["hidden_size"],
        depth=opt["num_hidden_layers"],
        num_heads=opt["num_attention_heads"],
        ffn_width=opt["ffn_dim"],
        max_positions=opt["max_position_embeddings"],
    )
    return Blip2Config(
        vision,
        QFormerConfig(
            image_width=vit["embed_dim"],
            num_queries=qformer["num_query"],
            width=qformer["hidden_size"],
            depth=qformer["num_hidden_layers"],
            num_heads=qformer["num_attention_heads"],
            ffn_width=qformer["intermediate_size"],
            cross_every=qformer["cross_attention_freq"],
            vocab_size=54 if stage == 1 else 0,
            max_positions=qformer["max_position_embeddings"],
        ),
        decoder if stage == 2 else None,
        shared_width=sizes["embed_dim"],
    )


def recorded_weights(stage: int) -> dict[str, Tensor]:
    """Under LAVIS' names; stage 2 borrows stage 1's image encoder, which its recording starts behind."""
    first = load_file(FOLDER / "stage1_weights.safetensors")
    if stage == 1:
        return first
    encoder = {name: tensor for name, tensor in first.items() if name.startswith("visual_encoder.")}
    return {**encoder, **load_file(FOLDER / "opt_weights.safetensors")}


def load(stage: int) -> Blip2Network:
    config = recorded_config(stage)
    with torch.device("meta"):
        network = Blip2Network(config)
    network.load_state_dict(blip2_from_lavis(recorded_weights(stage), config), assign=True)
    return network.eval().requires_grad_(True)


@pytest.fixture(scope="module")
def stage1() -> tuple[Blip2Network, dict[str, Tensor]]:
    return load(1), load_file(FOLDER / "stage1_ref.safetensors")


@pytest.fixture(scope="module")
def stage2() -> tuple[Blip2Network, dict[str, Tensor]]:
    return load(2), load_file(FOLDER / "opt_ref.safetensors")


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return (ours - theirs).abs().max().item()


def texts(recorded: Mapping[str, Tensor]) -> TextBatch:
    return TextBatch(recorded["input_ids"], recorded["attention_mask"].bool())


@torch.no_grad()
def test_stage1_features(stage1: tuple[Blip2Network, dict[str, Tensor]]) -> None:
    network, recorded = stage1
    text = texts(recorded)
    features = network.image_features(recorded["images"])
    queries = network.qformer.image(features)
    hidden = network.qformer.text(text.ids, text.mask)
    joint = network.qformer.joint(text.ids, text.mask, features)
    outputs = {
        "ln_vision_out": features,
        "qformer_image_out": queries,
        "feat_image_image_embeds": queries,
        "feat_image_image_embeds_proj": network.project_queries(queries),
        "qformer_text_out": hidden,
        "feat_text_text_embeds": hidden,
        "feat_text_text_embeds_proj": F.normalize(network.text_projection(hidden), dim=-1),
        "feat_multimodal_multimodal_embeds": joint[:, : queries.shape[1]],
    }
    assert outputs.keys() >= {name for name in recorded if name.startswith("feat_") and "embeds" in name}
    for name, output in outputs.items():
        assert difference(output, recorded[name]) <= FEATURES, name
    first = recorded["feat_text_text_embeds_proj"][:, 0]
    assert difference(network.project_text(hidden), first) <= FEATURES


@torch.no_grad()
def test_stage1_scores(stage1: tuple[Blip2Network, dict[str, Tensor]]) -> None:
    network, recorded = stage1
    text = texts(recorded)
    features = network.image_features(recorded["images"])
    logits = network.itm_logits(text.ids, text.mask, features)
    assert difference(logits, recorded["itm_logits"]) <= FEATURES
    assert difference(logits[:, 1], recorded["compute_itm"]) <= FEATURES
    images = network.project_queries(network.qformer.image(features))
    similarity = itc_similarity(images, network.project_text(network.qformer.text(text.ids, text.mask)))
    assert difference(similarity.diagonal(), recorded["itc_scores"]) <= FEATURES


def recorded_negatives(recorded: Mapping[str, Tensor], name: str) -> HardNegatives:
    return HardNegatives(recorded[f"stage1_{name}_neg_image_idx"], recorded[f"stage1_{name}_neg_text_idx"])


@pytest.mark.parametrize(("name", "image_ids"), [("eval", None), ("imageid", RECORDED_IMAGE_IDS)])
@torch.no_grad()
def test_stage1_losses(stage1: tuple[Blip2Network, dict[str, Tensor]], name: str, image_ids: Tensor | None) -> None:
    network, recorded = stage1
    loss = stage1_loss(
        network,
        network.image_features(recorded["images"]),
        texts(recorded),
        START_OF_TEXT,
        image_ids,
        recorded_negatives(recorded, name),
    )
    parts = {"_itc": loss.itc, "_itm": loss.itm, "_lm": loss.itg, "": loss.total}
    for part, value in parts.items():
        assert difference(value, recorded[f"stage1_{name}_loss{part}"][0]) <= FEATURES, part


def test_stage1_gradients() -> None:
    network, recorded = load(1), load_file(FOLDER / "stage1_ref.safetensors")
    features = network.image_features(recorded["images"])
    loss = stage1_loss(
        network, features, texts(recorded), START_OF_TEXT, negatives=recorded_negatives(recorded, "eval")
    )
    loss.total.backward()
    assert {f"grad_{name}" for name in GRADIENTS} == {name for name in recorded if name.startswith("grad_")}
    parameters = dict(network.named_parameters())
    for theirs, ours in GRADIENTS.items():
        expected, gradient = recorded[f"grad_{theirs}"], parameters[ours].grad
        assert gradient is not None, theirs
        # The temperature's is -12, the others' below 1.2.
        assert difference(gradient, expected) <= FEATURES * max(1.0, expected.abs().max().item()), theirs


@torch.no_grad()
def test_only_these_image_ids_fit_the_recording(stage1: tuple[Blip2Network, dict[str, Tensor]]) -> None:
    """The recorded loss tells image ids apart, and the recorded negatives are some that we could draw."""
    network, recorded = stage1
    text = texts(recorded)
    images = network.project_queries(network.qformer.image(network.image_features(recorded["images"])))
    words = network.project_text(network.qformer.text(text.ids, text.mask))
    similarity = itc_similarity(images, words) / network.temperature
    partitions = {tuple(ids.index(i) for i in ids) for ids in torch.cartesian_prod(*[torch.arange(4)] * 4).tolist()}
    expected = recorded["stage1_imageid_loss_itc"][0]
    fitting = [
        ids
        for ids in partitions
        if difference(contrastive_loss(similarity, similarity.T, torch.tensor(ids)), expected) <= 1e-4
    ]
    assert len(partitions) == 15 and fitting == [(0, 1, 0, 3)]
    drawn = recorded_negatives(recorded, "imageid")
    generator = torch.Generator().manual_seed(0)
    draws = [draw_negatives(similarity, RECORDED_IMAGE_IDS, generator) for _ in range(300)]
    for row in range(4):
        assert drawn.images[row] in torch.stack([draw.images for draw in draws])[:, row]
        assert drawn.texts[row] in torch.stack([draw.texts for draw in draws])[:, row]


def test_stage2_loss_and_logits(stage2: tuple[Blip2Network, dict[str, Tensor]]) -> None:
    network, recorded = stage2
    features = recorded["image_embeds"]
    ids, mask = recorded["train_input_ids"], recorded["train_attention_mask"].bool()
    prompt = network.visual_prompt(features)
    assert difference(network.qformer.image(features), recorded["query_output"]) <= FEATURES
    assert difference(prompt, recorded["inputs_opt"]) <= FEATURES
    labels = ids.masked_fill(~mask, IGNORED)
    labels[:, : int(recorded["prompt_length"])] = IGNORED
    loss = stage2_loss(network, features, TextBatch(ids, mask), labels)
    assert difference(loss, recorded["loss"].squeeze()) <= FEATURES
    visible = torch.cat([torch.ones(prompt.shape[:2], dtype=torch.bool), mask], dim=1)
    embeds = torch.cat([prompt, network.decoder.embed(ids)], dim=1)
    logits = network.decoder.logits(network.decoder(embeds, visible))
    # They reach 13; what stands at padding is noise on both sides.
    assert difference(logits[visible], recorded["logits"][visible]) <= LOGITS


@torch.no_grad()
def test_stage2_questions_padded_left(stage2: tuple[Blip2Network, dict[str, Tensor]]) -> None:
    """The greedy first token of each answer, in one padded batch as recorded and for each question alone."""
    network, recorded = stage2
    ids, mask = recorded["pa_input_ids"], recorded["pa_attention_mask"].bool()
    prompt = network.visual_prompt(recorded["image_embeds"])
    visible = torch.cat([torch.ones(prompt.shape[:2], dtype=torch.bool), mask], dim=1)
    embeds = torch.cat([prompt, network.decoder.embed(ids)], dim=1)
    logits = network.decoder.logits(network.decoder(embeds, visible)[:, -1])
    # Recorded ids begin with LAVIS' start token.
    assert logits.argmax(dim=1).tolist() == recorded["predict_answers_greedy_ids"][:, 1].tolist()
    for row in range(len(ids)):
        alone = network.decoder.logits(network.decoder(embeds[[row]][:, visible[row]])[:, -1])
        assert difference(alone, logits[[row]]) <= LOGITS


def test_first_text_token_is_learnt_behind_the_visual_prompt(
    stage2: tuple[Blip2Network, dict[str, Tensor]],
) -> None:
    """Without a prompt LAVIS labels every token, and the language model shifts over the whole sequence."""
    network, recorded = stage2
    features, ids = recorded["image_embeds"], recorded["train_input_ids"]
    mask = recorded["train_attention_mask"].bool()
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
