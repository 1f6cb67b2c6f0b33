"""What LAVIS' own code computed from small random weights (tests/fixtures/lavis), and ours with these weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from openblip.generation.engine import generate
from openblip.generation.options import GenerationOptions
from openblip.nn.blip2 import Blip2Config, Blip2Network, itc_similarity
from openblip.nn.opt import Opt, OptConfig
from openblip.nn.qformer import QFormerConfig
from openblip.nn.t5 import T5, T5Config
from openblip.nn.vit import EVA_VIT_G, VitConfig, interpolate_positions
from openblip.training.losses import (
    IGNORED,
    HardNegatives,
    Pairing,
    TextBatch,
    stage1_loss,
    stage2_loss,
    stage2_t5_loss,
)
from tests.pairs.gaps import difference
from tests.pairs.lavis_names import blip2_from_lavis, t5_from_lavis

FOLDER = Path(__file__).parents[1] / "fixtures" / "lavis"
START_OF_TEXT = 53
"""[DEC] of the recorded vocabulary."""
OPT_START, OPT_STOP, T5_STOP = 2, 3, 1
A_PHOTO_OF = (23, 50, 57)
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


def recorded(name: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Tensors of "stage1", "opt" or "t5", those of floating point in a type."""
    tensors = load_file(FOLDER / f"{name}_ref.safetensors")
    return {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}


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
    decoder = OptConfig(
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


def load(stage: int, dtype: torch.dtype = torch.float32) -> Blip2Network:
    """Ours with the recorded weights. In float64 all that is left of a gap is LAVIS' own rounding."""
    config = recorded_config(stage)
    with torch.device("meta"):
        network = Blip2Network(config)
    network.load_state_dict(blip2_from_lavis(recorded_weights(stage), config), assign=True)
    return network.to(dtype).eval().requires_grad_(True)


def load_t5() -> Blip2Network:
    """What LAVIS recorded behind its Q-Former: the prompt projection and T5. What queries gave is taken for images."""
    sizes = json.loads((FOLDER / "meta.json").read_text())["config"]
    t5, qformer = sizes["t5"], sizes["qformer"]
    config = T5Config(
        vocab_size=t5["vocab_size"],
        width=t5["d_model"],
        depth=t5["num_layers"],
        decoder_depth=t5["num_decoder_layers"],
        num_heads=t5["num_heads"],
        head_width=t5["d_kv"],
        ffn_width=t5["d_ff"],
        activation="gelu",
    )
    vision = VitConfig(image_size=28, patch_size=14, width=16, depth=1, num_heads=2, mlp_width=16)
    queries = QFormerConfig(16, qformer["num_query"], qformer["hidden_size"], depth=1, num_heads=4, vocab_size=0)
    network = Blip2Network(Blip2Config(vision, queries, language=config))
    network.qformer.image = lambda given: given
    state = load_file(FOLDER / "t5_weights.safetensors")
    network.t5.load_state_dict(t5_from_lavis(state, config))
    network.prompt_projection.load_state_dict({kind: state[f"t5_proj.{kind}"] for kind in ("weight", "bias")})
    network.t5.requires_grad_(False)
    return network.eval()


def texts(tensors: Mapping[str, Tensor]) -> TextBatch:
    return TextBatch(tensors["input_ids"], tensors["attention_mask"].bool())


def negatives(tensors: Mapping[str, Tensor], name: str) -> HardNegatives:
    """Those of the recorded loss called "eval" or "imageid"."""
    return HardNegatives(tensors[f"stage1_{name}_neg_image_idx"], tensors[f"stage1_{name}_neg_text_idx"])


@torch.no_grad()
def feature_gaps(dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """Image encoder, Q-Former and all modes of `extract_features`."""
    network, expected = load(1, dtype), recorded("stage1", dtype)
    text = texts(expected)
    features = network.image_features(expected["images"])
    queries = network.qformer.image(features)
    hidden = network.qformer.text(text.ids, text.mask)
    joint = network.qformer.joint(text.ids, text.mask, features)
    outputs = {
        "vit_out": network.vision(expected["images"]),
        "ln_vision_out": features,
        "qformer_image_out": queries,
        "feat_image_image_embeds": queries,
        "feat_image_image_embeds_proj": network.project_queries(queries),
        "qformer_text_out": hidden,
        "feat_text_text_embeds": hidden,
        "feat_text_text_embeds_proj": F.normalize(network.text_projection(hidden), dim=-1),
        "feat_multimodal_multimodal_embeds": joint[:, : queries.shape[1]],
    }
    assert outputs.keys() >= {name for name in expected if name.startswith("feat_") and "embeds" in name}
    outputs["pos_embed_interp_6x6"] = interpolate_positions(network.vision.positions, 6, 6)
    gaps = {name: difference(output, expected[name]) for name, output in outputs.items()}
    first = expected["feat_text_text_embeds_proj"][:, 0]
    return {**gaps, "project_text": difference(network.project_text(hidden), first)}


@torch.no_grad()
def score_gaps(dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """ITM logits and ITC cosines."""
    network, expected = load(1, dtype), recorded("stage1", dtype)
    text = texts(expected)
    features = network.image_features(expected["images"])
    logits = network.itm_logits(text.ids, text.mask, features)
    images = network.project_queries(network.qformer.image(features))
    similarity = itc_similarity(images, network.project_text(network.qformer.text(text.ids, text.mask)))
    return {
        "itm_logits": difference(logits, expected["itm_logits"]),
        "compute_itm": difference(logits[:, 1], expected["compute_itm"]),
        "itc_scores": difference(similarity.diagonal(), expected["itc_scores"]),
    }


@torch.no_grad()
def loss_gaps(name: str, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """The stage-1 losses called "eval", or "imageid", where some texts describe one image."""
    network, expected = load(1, dtype), recorded("stage1", dtype)
    loss = stage1_loss(
        network,
        network.image_features(expected["images"]),
        texts(expected),
        START_OF_TEXT,
        Pairing(RECORDED_IMAGE_IDS if name == "imageid" else None, negatives(expected, name)),
    )
    parts = {"_itc": loss.itc, "_itm": loss.itm, "_lm": loss.itg, "": loss.total}
    return {f"loss{part}": difference(value, expected[f"stage1_{name}_loss{part}"][0]) for part, value in parts.items()}


def gradient_gaps(dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """Gradients of the stage-1 loss, relative to a parameter's largest where this exceeds 1 (the temperature's: 12)."""
    network, expected = load(1, dtype), recorded("stage1", dtype)
    features = network.image_features(expected["images"])
    pairing = Pairing(negatives=negatives(expected, "eval"))
    loss = stage1_loss(network, features, texts(expected), START_OF_TEXT, pairing)
    loss.total.backward()
    assert {f"grad_{name}" for name in GRADIENTS} == {name for name in expected if name.startswith("grad_")}
    parameters, gaps = dict(network.named_parameters()), {}
    for theirs, ours in GRADIENTS.items():
        wanted, gradient = expected[f"grad_{theirs}"], parameters[ours].grad
        assert gradient is not None, theirs
        gaps[theirs] = difference(gradient, wanted) / max(1.0, wanted.abs().max().item())
    return gaps


def stage2_gaps(dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """Q-Former, visual prompt and loss of stage 2 with OPT; logits reach 13."""
    network, expected = load(2, dtype), recorded("opt", dtype)
    features = expected["image_embeds"]
    ids, mask = expected["train_input_ids"], expected["train_attention_mask"].bool()
    prompt = network.visual_prompt(features)
    labels = ids.masked_fill(~mask, IGNORED)
    labels[:, : int(expected["prompt_length"])] = IGNORED
    visible = torch.cat([torch.ones(prompt.shape[:2], dtype=torch.bool), mask], dim=1)
    embeds = torch.cat([prompt, network.decoder.embed(ids)], dim=1)
    logits = network.decoder.logits(network.decoder(embeds, visible))
    return {
        "query_output": difference(network.qformer.image(features), expected["query_output"]),
        "inputs_opt": difference(prompt, expected["inputs_opt"]),
        "loss": difference(stage2_loss(network, features, TextBatch(ids, mask), labels), expected["loss"].squeeze()),
        # What stands at padding is noise on both sides.
        "logits": difference(logits[visible], expected["logits"][visible]),
    }


@torch.no_grad()
def t5_gaps() -> dict[str, float]:
    """Visual prompt, logits and loss of stage 2 with T5, behind the Q-Former; logits reach 3.9."""
    network, expected = load_t5(), recorded("t5")
    text = TextBatch(expected["input_ids"], expected["input_mask"].bool())
    prompt = network.visual_prompt(expected["query_output"])
    wanted = expected["output_mask"].bool()
    labels = expected["output_ids"].masked_fill(~wanted, IGNORED)
    loss = stage2_t5_loss(network, expected["query_output"], text, labels)
    embeds = torch.cat([prompt, network.t5.embed(text.ids)], dim=1)
    mask = torch.cat([text.mask.new_ones(prompt.shape[:2]), text.mask], dim=1)
    logits = network.t5.logits(network.t5.hidden_before(embeds, mask, labels))
    return {
        "inputs_t5": difference(prompt, expected["inputs_t5"]),
        "loss": difference(loss, expected["loss"].squeeze()),
        # What stands at padding is noise on both sides.
        "logits": difference(logits[wanted], expected["logits"][wanted]),
    }


@torch.no_grad()
def opt_captions(beams: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Ids of captions behind "a photo of": ours, and LAVIS' without the start token."""
    decoder, expected = load(2).decoder, recorded("opt")
    ids = expected[f"generate_beam{beams}_ids"]
    prompt = decoder.embed(torch.tensor([OPT_START, *A_PHOTO_OF]))
    rows = [torch.cat([visual, prompt]) for visual in expected["inputs_opt"]]
    return _generated(decoder, rows, _options(ids, beams, OPT_STOP)), _without_marks(ids, OPT_START, OPT_STOP)


@torch.no_grad()
def opt_answers(beams: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Ids of answers to questions of different lengths."""
    decoder, expected = load(2).decoder, recorded("opt")
    ids = expected["predict_answers_greedy_ids" if beams == 1 else "predict_answers_ids"]
    rows = [
        torch.cat([visual, decoder.embed(question[mask.bool()])])
        for visual, question, mask in zip(
            expected["inputs_opt"], expected["pa_input_ids"], expected["pa_attention_mask"], strict=True
        )
    ]
    options = replace(_options(ids, beams, OPT_STOP), length_penalty=0.0)
    return _generated(decoder, rows, options), _without_marks(ids, OPT_START, OPT_STOP)


@torch.no_grad()
def t5_captions(beams: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """As `opt_captions`; LAVIS' tokenizer ends the prompt with </s>."""
    t5, expected = load_t5().t5, recorded("t5")
    ids = expected[f"generate_beam{beams}_ids"]
    prompt = t5.embed(torch.tensor([*A_PHOTO_OF, T5_STOP]))
    rows = [torch.cat([visual, prompt]) for visual in expected["inputs_t5"]]
    return _generated(t5, rows, _options(ids, beams, T5_STOP)), _without_marks(ids, 0, T5_STOP)


def _options(ids: Tensor, beams: int, stop: int) -> GenerationOptions:
    # LAVIS begins every text with the start token and counts OPT's in `max_length`; ours does neither.
    return GenerationOptions(max_new_tokens=ids.shape[1] - 1, num_beams=beams, stop_ids=(stop,))


def _generated(model: Opt | T5, rows: list[Tensor], options: GenerationOptions) -> list[tuple[int, ...]]:
    return [found[0].ids for found in generate(model, rows, options)]


def _without_marks(ids: Tensor, start: int, stop: int) -> list[tuple[int, ...]]:
    rows = []
    for row in ids.tolist():
        assert row[0] == start
        rows.append(tuple(row[1 : row.index(stop)] if stop in row else row[1:]))
    return rows
