"""The table of BLIP models: complete, and right about sizes and sources."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

import openblip
from openblip.checkpoints.blip_models import LAVIS, MODELS, ORIGINAL
from openblip.checkpoints.hub.sources import Repository, WebFile
from openblip.checkpoints.model_entry import LANGUAGE, TEXT, VISION, ModelEntry
from openblip.checkpoints.names.blip import LAVIS_PARTS, layout_of, own_names
from openblip.nn.blip import BlipConfig, BlipNetwork
from tests.pairs.blip import need_recordings

LAVIS_MODELS = {
    "blip_caption/base_coco": (f"{LAVIS}blip_coco_caption_base.pth", 223.97),
    "blip_caption/large_coco": (f"{ORIGINAL}model_large_caption.pth", 446.29),
    "blip_vqa/vqav2": (f"{ORIGINAL}model_base_vqa_capfilt_large.pth", 361.48),
    "blip_vqa/okvqa": (f"{LAVIS}blip_okvqa.pth", 361.48),
    "blip_vqa/aokvqa": (f"{LAVIS}blip_aokvqa.pth", 361.48),
    "blip_image_text_matching/base": (f"{ORIGINAL}model_base_retrieval_coco.pth", 223.74),
    "blip_image_text_matching/large": (f"{ORIGINAL}model_large_retrieval_coco.pth", 446.13),
    "blip_retrieval/coco": (f"{LAVIS}blip_coco_retrieval.pth", 223.74),
    "blip_retrieval/flickr": (f"{LAVIS}blip_flickr_retrieval.pth", 223.74),
    "blip_feature_extractor/base": (f"{ORIGINAL}model_base_capfilt_large.pth", 223.45),
    "blip_pretrain/base": (f"{ORIGINAL}model_base_capfilt_large.pth", 252.44),
    "blip_nlvr/nlvr": (f"{ORIGINAL}model_base_nlvr.pth", 259.37),
}
"""LAVIS' names, addresses and millions of weights; of retrieval without momentum copies."""
HUB_NAMES = "image-captioning-base image-captioning-large vqa-base vqa-capfilt-large"
HUB_NAMES += " itm-base-coco itm-base-flickr itm-large-coco itm-large-flickr"


def test_every_name_is_there_once() -> None:
    wanted = [*LAVIS_MODELS, "blip_classification/base", *(f"Salesforce/blip-{name}" for name in HUB_NAMES.split())]
    assert Counter(name for model in MODELS for name in model.names) == Counter(wanted)
    assert openblip.list_models(family="blip") == list(MODELS)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_weights_of_each_part_are_those_of_the_network(model: ModelEntry) -> None:
    config = model.config()
    assert isinstance(config, BlipConfig) and config.vision.image_size == model.image_size
    with torch.device("meta"):
        network = BlipNetwork(config)
    found = {VISION: count(network.vision)}
    if config.encoder is not None:
        found[TEXT] = count(network) - found[VISION]
    if config.decoder is not None:
        found[LANGUAGE] = count(network.decoder)
        found[TEXT] = found.get(TEXT, found[LANGUAGE]) - found[LANGUAGE]
    assert model.params == {part: number for part, number in found.items() if number}
    assert model.parameters == count(network)
    matches = {"match", "embed", "classify"} if config.shared_width else set()
    writes = {"ask" if config.answers else "caption"} if config.decoder else set()
    judges = {"judge"} if config.num_classes else set()
    assert set(model.abilities) == matches | writes | judges


@pytest.mark.parametrize("name", LAVIS_MODELS)
def test_sources_of_lavis_models(name: str) -> None:
    (model,) = [model for model in MODELS if model.name == name]
    address, millions = LAVIS_MODELS[name]
    weights, words = model.files
    assert isinstance(weights, WebFile) and isinstance(words, Repository)
    assert (weights.url, words.supplies) == (address, ())
    assert model.parameters / 1e6 == pytest.approx(millions, abs=0.01)
    assert weights.size == 4 * model.parameters


def test_a_model_without_weights_says_so(tmp_path: Path) -> None:
    with pytest.raises(openblip.CheckpointError, match="weights of blip_classification/base: give your own file"):
        openblip.load("blip_classification/base")
    (model,) = openblip.list_models("blip_classification/base")
    assert not model.has_weights and model.size < 1e6


def test_prompts_and_lengths_are_those_of_lavis() -> None:
    (captions,) = [model for model in MODELS if model.name == "blip_caption/base_coco"]
    assert captions.templates().caption == "a picture of"
    chosen = captions.defaults().captions
    # 10 to 30 tokens with [DEC] a picture of
    assert (chosen.num_beams, chosen.min_new_tokens, chosen.max_new_tokens) == (3, 6, 26)


def count(module: nn.Module) -> int:
    return sum(map(torch.numel, module.parameters()))


@pytest.mark.real
@pytest.mark.parametrize("name", [*LAVIS_MODELS, "blip_classification/base"])
def test_names_and_shapes_are_those_of_official_files(name: str) -> None:
    """By a list of what LAVIS' classes have at their official sizes, of which `keys_blip_clip.json` is a summary."""
    folder = need_recordings()
    listed = json.loads((folder / "keys_blip_clip.json").read_text(encoding="utf-8"))
    entry = listed[name]
    while isinstance(entry["keys"], str):  # "as blip_vqa/vqav2"
        entry = listed[entry["keys"].removeprefix("as ")]
    stored: dict[str, tuple[int, ...]] = {}
    for key, shape, *numbers in entry["keys"]:
        first, last = map(int, numbers[0].split("-")) if numbers else (0, 0)
        for number in range(first, last + 1):
            stored[key.replace(".N.", f".{number}.")] = tuple(shape)
    (model,) = [model for model in MODELS if model.name == name]
    with torch.device("meta"):
        network = BlipNetwork(model.config())
    wanted = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items() if key != "temperature"}
    layout = layout_of(network.config, LAVIS_PARTS)
    plan = layout.plan(own_names(stored, layout, LAVIS_PARTS))
    assert {key: stored[rows[0].name] for key, rows in plan.rows.items()} == wanted
