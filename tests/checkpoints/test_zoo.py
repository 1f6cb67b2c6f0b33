"""The table of official models: complete, and right about sizes, sources and licences."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from openblip.checkpoints import sizes
from openblip.checkpoints.registry import DEFAULT_MODEL
from openblip.checkpoints.sizes import ImageEncoder, LanguageModel
from openblip.checkpoints.zoo import (
    BUNDLED,
    CLIP_VIT_L,
    EVA_VIT_G,
    FLAN_T5_XL,
    FLAN_T5_XXL,
    LANGUAGE,
    OPT_2_7B,
    OPT_6_7B,
    TEXT,
    VISION,
    ZOO,
    Repository,
    WebFile,
    ZooModel,
    did_you_mean,
    find_model,
    get_model,
)
from openblip.errors import CheckpointError
from openblip.nn.blip2 import Blip2Network
from openblip.nn.opt import Opt, OptConfig
from openblip.nn.qformer import QFormer
from openblip.nn.t5 import T5
from openblip.nn.vit import VisionTransformer

from .official import FILES, model_parameters, shapes_of

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


def main_file(model: ZooModel) -> WebFile:
    return next(source for source in model.sources if isinstance(source, WebFile))


def test_every_official_name_is_there_once() -> None:
    wanted = [f"{name}/{kind}" for name, kinds in LAVIS_NAMES.items() for kind in kinds.split()]
    wanted += [f"Salesforce/blip2-{name}" for name in HUB_NAMES.split()]
    assert Counter(name for model in ZOO for name in model.names) == Counter(wanted)


def test_the_bundled_model_is_the_default_one() -> None:
    assert BUNDLED == DEFAULT_MODEL


@pytest.mark.parametrize("file", [file for file in FILES if file != "eva_vit_g.pth"])
def test_parameters_are_those_of_the_official_files(file: str) -> None:
    (model,) = [model for model in ZOO if model.origin == "lavis" and main_file(model).name == file]
    assert model.parameters == model_parameters(file)
    # Strays aside, the file is what the table says it supplies.
    own = sum(count for part, count in model.part_parameters().items() if part in main_file(model).supplies)
    strays = ("position_ids", "lm_head.weight", "embed_tokens.weight", "predictions.decoder.weight", "decoder.bias")
    shapes = shapes_of(file)
    stored = sum(torch.Size(shape).numel() for name, shape in shapes.items() if not name.endswith(strays))
    norm = sum(torch.Size(shapes[f"ln_vision.{kind}"]).numel() for kind in ("weight", "bias"))
    assert stored == own + (0 if VISION in main_file(model).supplies else norm)


@pytest.mark.parametrize("encoder", [EVA_VIT_G, CLIP_VIT_L], ids=lambda encoder: encoder.name)
def test_formulas_agree_with_the_image_encoders_and_qformers(encoder: ImageEncoder) -> None:
    with torch.device("meta"):
        for size in (224, 364):
            network = VisionTransformer(encoder.config(size))
            assert encoder.parameters(size) == count(network) + 2 * encoder.width
        image_side = QFormer(sizes.qformer_config(encoder.width, text_side=False))
        both_sides = QFormer(sizes.qformer_config(encoder.width, text_side=True))
    assert sizes.qformer_parameters(encoder.width) == count(image_side)
    heads = 2 * (768 * 256 + 256) + (2 * 768 + 2) + 1
    text_side = sizes.text_side_parameters() + sizes.caption_head_parameters()
    assert text_side == count(both_sides) - count(image_side) + heads


@pytest.mark.parametrize("language", [OPT_2_7B, OPT_6_7B, FLAN_T5_XL, FLAN_T5_XXL], ids=lambda language: language.title)
def test_formulas_agree_with_the_language_models(language: LanguageModel) -> None:
    config = language.config()
    with torch.device("meta"):
        network = Opt(config) if isinstance(config, OptConfig) else T5(config)
        cache = network.new_cache(1, 7) if isinstance(network, Opt) else None
    assert language.parameters() == count(network)
    if cache is not None:
        assert language.cache_elements(5, 2) == cache.keys.numel() + cache.values.numel()


def test_a_config_makes_the_whole_network() -> None:
    model = get_model("blip2/pretrain_vitL")
    with torch.device("meta"):
        assert count(Blip2Network(model.config())) == model.parameters


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_every_part_has_one_source() -> None:
    for model in ZOO:
        supplied = Counter(part for source in model.sources for part in source.supplies)
        assert supplied == Counter(model.part_parameters().keys())
        assert all(source.size > 0 for source in model.sources)
        assert (TEXT in supplied) != (LANGUAGE in supplied)


def test_sources_are_lavis_own() -> None:
    base = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/"
    pretrained, tuned = get_model("blip2_opt/pretrain_opt2.7b"), get_model("blip2_opt/caption_coco_opt2.7b")
    small = get_model("blip2_t5/pretrain_flant5xl_vitL")
    assert urls(pretrained) == [base + "blip2_pretrained_opt2.7b.pth", base + "eva_vit_g.pth", "facebook/opt-2.7b"]
    assert urls(tuned) == [base + "blip2_caption_opt2.7b.pth", "facebook/opt-2.7b"]
    assert urls(small)[1:] == [base + "clip_vit_L.pth", "google/flan-t5-xl"]
    assert urls(get_model("blip2/coco")) == [base + "blip2_finetune_coco.pth", "google-bert/bert-base-uncased"]
    assert urls(get_model("Salesforce/blip2-opt-2.7b")) == ["Salesforce/blip2-opt-2.7b"]


def urls(model: ZooModel) -> list[str]:
    return [source.name if isinstance(source, Repository) else source.url for source in model.sources]


def test_sizes_are_those_that_people_downloaded() -> None:
    assert main_file(get_model("blip2_t5/pretrain_flant5xxl")).size == pytest.approx(413 * 2**20, rel=1e-3)
    assert get_model("Salesforce/blip2-itm-vit-g").download_size == pytest.approx(4.4 * 2**30, rel=0.01)
    # float32; 3,744,761,856 parameters is what transformers counts
    assert get_model("Salesforce/blip2-opt-2.7b").download_size == 4 * 3_744_761_856


def test_licences_tell_what_is_not_free() -> None:
    for model in ZOO:
        opt = model.language is not None and model.language.kind == "opt"
        assert ("non-commercial" in model.licence) == opt
        assert ("non-commercial" in model.terms) == opt
        assert ("Apache-2.0" in model.licence) == (model.language is not None and not opt)
        assert "BSD-3-Clause (Q-Former), MIT" in model.licence


def test_recipes_are_lavis() -> None:
    coco, opt, t5 = (
        get_model(name) for name in ("blip2_opt/caption_coco_opt2.7b", "blip2_opt/pretrain_opt2.7b", HUB_T5)
    )
    assert (coco.image_size, coco.prompts().caption, coco.defaults().captions.min_new_tokens) == (364, "a photo of", 8)
    assert (opt.image_size, opt.prompts().caption, opt.defaults().captions.min_new_tokens) == (224, "", 1)
    assert opt.prompts().ask("why?") == "Question: why? Short answer:"
    assert (opt.defaults().stop_token, opt.defaults().answers.length_penalty) == ("\n", 0.0)
    assert (t5.defaults().stop_token, t5.defaults().answers.length_penalty) == ("</s>", -1.0)


HUB_T5 = "Salesforce/blip2-flan-t5-xl"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("Salesforce/blip2-opt-27b", "Salesforce/blip2-opt-2.7b"),
        ("blip2-flan-t5-xl", HUB_T5),
        ("salesforce/BLIP2-itm-vit-g", "Salesforce/blip2-itm-vit-g"),
        ("blip2_t5/pretrain_flant5_xl", "blip2_t5/pretrain_flant5xl"),
        ("pretrain_opt6.7b", "blip2_opt/pretrain_opt6.7b"),
        ("blip2_feature_extractor/pretrained", "blip2_feature_extractor/pretrain"),
    ],
)
def test_a_typo_gives_the_nearest_name(typed: str, meant: str) -> None:
    assert find_model(typed) is None
    with pytest.raises(CheckpointError, match="did you mean") as raised:
        get_model(typed)
    assert f"mean {meant}" in str(raised.value)


def test_what_is_no_typo_gives_no_guess() -> None:
    assert did_you_mean("llava") == "`openblip models` lists them all"
