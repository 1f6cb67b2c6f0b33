"""The table of BLIP-2 models: complete, and right about sizes, sources and licences."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

import openblip
from openblip.checkpoints.blip2_models import MINI, MODELS, OFFICIAL
from openblip.checkpoints.families import BLIP2
from openblip.checkpoints.hub.sources import Repository, WebFile
from openblip.checkpoints.json_files import read_json
from openblip.checkpoints.model_entry import LANGUAGE, PROJECTION, QFORMER, TEXT, VISION, ModelEntry
from openblip.errors import CheckpointError
from openblip.nn.blip2 import Blip2Config, Blip2Network
from openblip.nn.opt import Opt
from openblip.nn.qformer import QFormer

from .official import FILES, model_parameters, official, shapes_of

LAVIS_NAMES = {
    "blip2_opt": "pretrain_opt2.7b caption_coco_opt2.7b pretrain_opt6.7b caption_coco_opt6.7b",
    "blip2_t5": "pretrain_flant5xl caption_coco_flant5xl pretrain_flant5xxl pretrain_flant5xl_vitL",
    "blip2": "pretrain pretrain_vitL coco",
    "blip2_feature_extractor": "pretrain pretrain_vitL coco",
    "blip2_image_text_matching": "pretrain pretrain_vitL coco",
}
HUB_NAMES = (
    "opt-2.7b opt-2.7b-coco opt-6.7b opt-6.7b-coco flan-t5-xl flan-t5-xl-coco flan-t5-xxl itm-vit-g itm-vit-g-coco"
)


def main_file(model: ModelEntry) -> WebFile:
    return next(source for source in model.files if isinstance(source, WebFile))


def test_every_official_name_is_there_once() -> None:
    wanted = [f"{name}/{kind}" for name, kinds in LAVIS_NAMES.items() for kind in kinds.split()]
    wanted += [f"Salesforce/blip2-{name}" for name in HUB_NAMES.split()]
    assert Counter(name for model in OFFICIAL for name in model.names) == Counter(wanted)


@pytest.mark.parametrize("file", [file for file in FILES if file != "eva_vit_g.pth"])
def test_parameters_are_those_of_the_official_files(file: str) -> None:
    (model,) = [model for model in OFFICIAL if model.origin == "lavis" and main_file(model).name == file]
    assert model.parameters == model_parameters(file)
    # Strays aside, the file is what the table says it supplies.
    own = sum(count for part, count in model.params.items() if part in main_file(model).supplies)
    strays = ("position_ids", "lm_head.weight", "embed_tokens.weight", "predictions.decoder.weight", "decoder.bias")
    shapes = shapes_of(file)
    stored = sum(torch.Size(shape).numel() for name, shape in shapes.items() if not name.endswith(strays))
    norm = sum(torch.Size(shapes[f"ln_vision.{kind}"]).numel() for kind in ("weight", "bias"))
    assert stored == own + (0 if VISION in main_file(model).supplies else norm)


def config_of(model: ModelEntry) -> Blip2Config:
    if model.folder is None:
        found = model.config()
    else:
        path = model.folder / "config.json"
        found = BLIP2.read_config(read_json(path), path)
    assert isinstance(found, Blip2Config)
    return found


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_weights_of_each_part_are_those_of_the_network(model: ModelEntry) -> None:
    config = config_of(model)
    with torch.device("meta"):
        network = Blip2Network(config)
        image_side = QFormer(replace(config.qformer, vocab_size=0))
    found = {VISION: count(network.vision) + count(network.vision_norm), QFORMER: count(image_side)}
    if config.qformer.vocab_size:
        found[TEXT] = count(network.qformer) - count(image_side) + 1  # the temperature
        found[TEXT] += sum(map(count, (network.image_projection, network.text_projection, network.itm_head)))
        if model.origin == "transformers":
            found[TEXT] -= count(network.qformer.head)
    if config.language is not None:
        found |= {PROJECTION: count(network.prompt_projection), LANGUAGE: count(network.own_language_model)}
    assert model.params == found
    if model.origin != "transformers":
        assert model.parameters == count(network)


@pytest.mark.parametrize("model", OFFICIAL, ids=lambda model: model.name)
def test_what_costs_are_estimated_by_is_that_of_the_network(model: ModelEntry) -> None:
    config = config_of(model)
    assert model.vision is not None
    with torch.device("meta"):
        network = Blip2Network(config)
        tokens = network.vision(torch.empty(1, 3, model.image_size, model.image_size)).shape[1]
    assert model.vision.tokens(model.image_size) == tokens
    assert (model.vision.width, model.vision.depth) == (network.vision.width, len(network.vision.blocks))
    if model.language is not None:
        language = network.own_language_model
        rows = {model.language.vocab_size, 2050 if isinstance(language, Opt) else 0}  # of words, of positions
        tables = [parameter for parameter in language.parameters() if parameter.shape[0] in rows]
        assert model.language.params == count(language)
        assert model.language.table_params == sum(table.numel() for table in tables)
        if isinstance(language, Opt):
            cache = language.new_cache(1, 7)
            assert model.language.cache_elements(5, 2) == cache.keys.numel() + cache.values.numel()


def test_mini_does_what_is_said_of_it() -> None:
    model = openblip.load()
    assert (model.name, model.family, model.abilities) == (MINI.name, MINI.family, MINI.abilities)
    assert model.parts.transform.image_size == MINI.image_size
    with pytest.raises(CheckpointError, match=r"sizes of the network of mini are in its config\.json"):
        MINI.config()


def count(network: torch.nn.Module) -> int:
    """Weights, and what a norm has learned of its batches."""
    return sum(tensor.numel() for tensor in network.state_dict().values() if tensor.is_floating_point())


def test_every_part_has_one_source() -> None:
    for model in OFFICIAL:
        supplied = Counter(part for source in model.files for part in source.supplies)
        assert supplied == Counter(list(model.params))
        assert all(source.size > 0 for source in model.files)
        assert (TEXT in supplied) != (LANGUAGE in supplied)


def test_sources_are_lavis_own() -> None:
    base = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/"
    pretrained, tuned = official("blip2_opt/pretrain_opt2.7b"), official("blip2_opt/caption_coco_opt2.7b")
    small = official("blip2_t5/pretrain_flant5xl_vitL")
    assert urls(pretrained) == [base + "blip2_pretrained_opt2.7b.pth", base + "eva_vit_g.pth", "facebook/opt-2.7b"]
    assert urls(tuned) == [base + "blip2_caption_opt2.7b.pth", "facebook/opt-2.7b"]
    assert urls(small)[1:] == [base + "clip_vit_L.pth", "google/flan-t5-xl"]
    assert urls(official("blip2/coco")) == [base + "blip2_finetune_coco.pth", "google-bert/bert-base-uncased"]
    assert urls(official("Salesforce/blip2-opt-2.7b")) == ["Salesforce/blip2-opt-2.7b"]


def urls(model: ModelEntry) -> list[str]:
    return [source.name if isinstance(source, Repository) else source.url for source in model.files]


def test_sizes_are_those_that_people_downloaded() -> None:
    assert main_file(official("blip2_t5/pretrain_flant5xxl")).size == pytest.approx(413 * 2**20, rel=1e-3)
    assert official("Salesforce/blip2-itm-vit-g").size == pytest.approx(4.4 * 2**30, rel=0.01)
    # float32; 3,744,761,856 parameters is what transformers counts
    assert official("Salesforce/blip2-opt-2.7b").size == 4 * 3_744_761_856


def test_licences_tell_what_is_not_free() -> None:
    for model in OFFICIAL:
        opt = model.language is not None and model.language.kind == "opt"
        assert ("non-commercial" in model.licence) == opt
        assert ("non-commercial" in model.terms) == opt
        assert ("Apache-2.0" in model.licence) == (model.language is not None and not opt)
        assert "BSD-3-Clause (Q-Former), MIT" in model.licence


def test_recipes_are_lavis() -> None:
    coco, opt, t5 = (
        official(name) for name in ("blip2_opt/caption_coco_opt2.7b", "blip2_opt/pretrain_opt2.7b", HUB_T5)
    )
    assert (coco.image_size, coco.templates().caption) == (364, "a photo of")
    assert (opt.image_size, opt.templates().caption) == (224, "")
    assert [one.defaults().captions.min_new_tokens for one in (coco, opt)] == [8, 1]
    assert opt.templates().ask("why?") == "Question: why? Short answer:"
    assert (opt.defaults().stop_token, opt.defaults().answers.length_penalty) == ("\n", 0.0)
    assert (t5.defaults().stop_token, t5.defaults().answers.length_penalty) == ("</s>", -1.0)


HUB_T5 = "Salesforce/blip2-flan-t5-xl"
