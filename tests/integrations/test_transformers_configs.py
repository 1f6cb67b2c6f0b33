"""Configs of transformers for BLIP and CLIP, its pipelines over our classes, and what is refused of layers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

import openblip
from openblip.errors import CheckpointError, OptionError
from openblip.integrations import transformers as ours
from tests.checkpoints.clip_theirs import write_clip
from tests.integrations.blip_theirs import NAMES, write_pair
from tests.pairs.gaps import difference

SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 48}
VISION = {**SMALL, "image_size": 32, "patch_size": 8}
TEXT = {**SMALL, "vocab_size": 60, "max_position_embeddings": 20, "encoder_hidden_size": 32, "bos_token_id": 58}
CLOSE = 2e-5


def blip_config() -> transformers.BlipConfig:
    words = {"sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}
    return transformers.BlipConfig(
        vision_config=VISION, text_config={**TEXT, **words}, projection_dim=24, image_text_hidden_size=20
    )


def clip_config() -> transformers.CLIPConfig:
    text = {**SMALL, "vocab_size": 60, "max_position_embeddings": 20, "eos_token_id": 59, "bos_token_id": 58}
    return transformers.CLIPConfig(vision_config=VISION, text_config=text, projection_dim=24)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Small models that transformers wrote, with their processors, by class."""
    folder = tmp_path_factory.mktemp("folders")
    found = {NAMES[task]: write_pair(task, folder / task).folder for task in ("caption", "match")}
    write_clip(folder / "clip")
    return {**found, "CLIPModel": folder / "clip"}


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    generator = torch.Generator().manual_seed(6)
    return Image.fromarray(torch.randint(0, 256, (40, 50, 3), generator=generator, dtype=torch.uint8).numpy())


def tell(model: Any, pixels: torch.Tensor, ids: torch.Tensor) -> Any:
    """What a model says of images with texts, whichever library it is of."""
    with torch.no_grad():
        if type(model).__name__ == "BlipForQuestionAnswering":
            return model(input_ids=ids, pixel_values=pixels, labels=ids, decoder_input_ids=ids).loss
        found = model(input_ids=ids, pixel_values=pixels)
    names = {"BlipForConditionalGeneration": "logits", "BlipForImageTextRetrieval": "itm_score"}
    return found[names.get(type(model).__name__, "logits_per_image")]


@pytest.mark.parametrize("kind", [*NAMES.values(), "BlipModel", "CLIPModel"])
def test_a_new_model_has_the_sizes_of_a_config(kind: str, tmp_path: Path) -> None:
    config = clip_config() if kind == "CLIPModel" else blip_config()
    torch.manual_seed(5)
    model = getattr(ours, kind).from_config(config)
    assert model.training and model.config.vision_config.image_size == 32
    model.eval().save_pretrained(tmp_path / "new")
    theirs = getattr(transformers, kind).from_pretrained(tmp_path / "new").eval()
    pixels, ids = torch.randn(2, 3, 32, 32), torch.tensor([[2, 9, 14, 59], [2, 7, 30, 59]])
    found, expected = tell(model, pixels, ids), tell(theirs, pixels, ids)
    assert float(expected.std() if expected.ndim else expected) > 1e-4
    assert difference(found, expected) <= CLOSE
    # Other ways to say the same: what config.json holds, and where it lies.
    (tmp_path / "told").mkdir()
    (tmp_path / "told" / "config.json").write_text(json.dumps(config.to_dict()))
    for told in (config.to_dict(), tmp_path / "told", tmp_path / "told" / "config.json", model.config):
        torch.manual_seed(5)
        again = getattr(ours, kind).from_config(told).eval()
        assert torch.equal(tell(again, pixels, ids), found)


@pytest.mark.parametrize("kind", ["BlipForConditionalGeneration", "BlipForImageTextRetrieval", "CLIPModel"])
def test_a_config_counts_instead_of_the_folders(kind: str, folders: Mapping[str, Path], photo: Image.Image) -> None:
    folder = folders[kind]
    config = getattr(transformers, kind).from_pretrained(folder).config
    config.vision_config.layer_norm_eps = 0.5
    config.text_config.hidden_act = "gelu" if kind == "CLIPModel" else config.text_config.hidden_act
    ours_kind, theirs_kind = getattr(ours, kind), getattr(transformers, kind)
    processor = transformers.AutoProcessor.from_pretrained(folder, use_fast=False)
    inputs = processor(images=photo, text=["a dog"], return_tensors="pt")
    if kind == "CLIPModel":
        config.vision_config.hidden_act = "gelu"
    wanted = theirs_kind.from_pretrained(folder, config=config).eval()
    expected = tell(wanted, inputs["pixel_values"], inputs["input_ids"])
    plain = tell(ours_kind.from_pretrained(folder), inputs["pixel_values"], inputs["input_ids"])
    for told in (config, config.to_dict()):
        model = ours_kind.from_pretrained(folder, config=told)
        assert difference(tell(model, inputs["pixel_values"], inputs["input_ids"]), expected) <= 20 * CLOSE
        assert model.config.vision_config.layer_norm_eps == 0.5
    assert difference(plain, expected) > 1e-3


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        (clip_config(), OptionError, "config is of a model of type 'clip', .* of 'blip': give one of its type"),
        (transformers.BlipConfig(), CheckpointError, r"is \[\d+, \d+\], not \[30524, 768\]|are missing|is missing"),
        ("no/where", CheckpointError, "no/where is missing"),
        (7, OptionError, "config is 7: give a config of transformers, a dictionary, or a path"),
        ({"model_type": "blip", "text_config": {"hidden_size": "wide"}}, CheckpointError, "hidden_size|width"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    config: object, error: type[Exception], words: str, folders: Mapping[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(error, match=words) as raised:
        ours.BlipForConditionalGeneration.from_pretrained(folders["BlipForConditionalGeneration"], config=config)
    assert "\n" not in str(raised.value)
    model = ours.BlipForConditionalGeneration.from_pretrained(folders["BlipForConditionalGeneration"])
    openblip.load(folders["BlipForConditionalGeneration"]).save(tmp_path / "own")
    with pytest.raises(OptionError, match="no folder of transformers, and has its own sizes: leave config out"):
        ours.BlipForConditionalGeneration.from_pretrained(tmp_path / "own", config=model.config)


def ways(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, Callable[..., Any]]:
    return {
        "the model": lambda **asked: model(**inputs, **asked),
        "get_image_features": lambda **asked: model.get_image_features(inputs["pixel_values"], **asked),
        "get_text_features": lambda **asked: model.get_text_features(inputs["input_ids"], **asked),
    }


@pytest.mark.parametrize("kind", ["BlipModel", "CLIPModel"])
def test_states_and_attention_of_layers_are_refused(kind: str) -> None:
    model = getattr(ours, kind).from_config(clip_config() if kind == "CLIPModel" else blip_config()).eval()
    inputs = {"pixel_values": torch.randn(1, 3, 32, 32), "input_ids": torch.tensor([[2, 9, 59]])}
    for call, way in ways(model, inputs).items():
        for name in ("output_hidden_states", "output_attentions"):
            with pytest.raises(OptionError, match=f"{call} does not know {name} here: leave it out"):
                way(**{name: True})
        assert way(output_hidden_states=False, output_attentions=None, return_dict=True) is not None
        assert isinstance(way(return_dict=False), tuple)


def test_a_pipeline_finds_classes(folders: Mapping[str, Path], photo: Image.Image) -> None:
    folder, labels = folders["CLIPModel"], ["a dog", "the beach", "two cats on it"]
    processor = ours.CLIPProcessor.from_pretrained(folder)
    parts: dict[str, Any] = {"tokenizer": processor.tokenizer, "image_processor": processor.image_processor}
    model = ours.CLIPModel.from_pretrained(folder)
    task: Any = "zero-shot-image-classification"
    found = transformers.pipeline(task, model=model, **parts)(photo, candidate_labels=labels)
    expected = transformers.pipeline(task, model=str(folder), use_fast=False)(photo, candidate_labels=labels)
    assert [one["label"] for one in found] == [one["label"] for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)


def test_a_pipeline_writes_captions(folders: Mapping[str, Path], photo: Image.Image) -> None:
    folder = folders["BlipForConditionalGeneration"]
    model, processor = (
        kind.from_pretrained(folder) for kind in (ours.BlipForConditionalGeneration, ours.BlipProcessor)
    )
    task: Any = "image-text-to-text"
    mine: Any = transformers.pipeline(task, model=model, processor=processor)
    theirs: Any = transformers.pipeline(task, model=str(folder))
    for asked in (
        {"images": photo, "text": "a picture of"},
        {"images": [photo, photo.rotate(90)], "text": ["a dog on", "a picture of"][1:] * 2, "return_full_text": False},
    ):
        found = mine(**asked, max_new_tokens=6)
        assert found == theirs(**asked, max_new_tokens=6)
    assert mine(images=photo, text="a picture of", generate_kwargs={"num_beams": 3}, max_new_tokens=6) == theirs(
        images=photo, text="a picture of", generate_kwargs={"num_beams": 3}, max_new_tokens=6
    )
