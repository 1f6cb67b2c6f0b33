"""A pre-trained BLIP becomes one that captions, or one that answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import openblip
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.openblip.folder import save_native
from openblip.errors import OptionError
from openblip.nn.blip import BlipNetwork
from openblip.training.init.blip import prepare_answers, prepare_captions
from openblip.training.recipe import Recipe, Stage, load_recipe
from openblip.training.run import train
from tests.models.blip_models import small_parts
from tests.training.recipes import write_small_recipe

IDS = torch.tensor([[5, 7, 9, 11]])


def recipe(stage: Stage) -> Recipe:
    return Recipe(stage, "out", [], init="x")


def pretrained(folder: Path, width: int = 128) -> ModelParts[BlipNetwork, Any]:
    """One whose images are as wide as its texts, as of the base size."""
    parts = small_parts("pretrain", folder)
    config = parts.network.config
    assert config.encoder is not None
    text = replace(config.encoder, image_width=width)
    network = BlipNetwork(replace(config, vision=replace(config.vision, width=width), encoder=text, decoder=text))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    return replace(parts, network=network.eval())


@torch.no_grad()
def test_captions_are_those_of_pre_training(tmp_path: Path) -> None:
    parts = pretrained(tmp_path, 192)
    made = prepare_captions(parts, recipe(Stage.CAPTION))
    assert made.network.config.encoder is None and made.matching is None
    features = torch.randn(1, 17, 192)
    first, second = (
        network.decoder.logits(
            network.decoder.decode(network.decoder.embed(IDS), None, network.decoder.remember(features))
        )
        for network in (parts.network, made.network)
    )
    assert torch.allclose(first, second, atol=1e-5)
    # Its weights are its own, and what captions already stays as it is.
    assert not {p.data_ptr() for p in made.network.parameters()} & {p.data_ptr() for p in parts.network.parameters()}
    assert prepare_captions(made, recipe(Stage.CAPTION)) is made


@torch.no_grad()
def test_answers_have_both_halves(tmp_path: Path) -> None:
    parts = pretrained(tmp_path)
    made = prepare_answers(parts, recipe(Stage.VQA))
    assert made.network.config.answers and made.prompts.ask("what is this?") == "what is this?"
    features = torch.randn(1, 17, 128)
    assert torch.equal(*(network.read_together(IDS, None, features) for network in (parts.network, made.network)))
    assert torch.equal(made.network.decoder.words.weight, parts.network.encoder.words.weight)
    assert torch.equal(
        made.network.decoder.layers[1].self_attention.query.weight,
        parts.network.decoder.layers[1].self_attention.query.weight,
    )
    assert prepare_answers(made, recipe(Stage.VQA)) is made
    with pytest.raises(OptionError, match="image features of width 192 and text features of 128"):
        prepare_answers(pretrained(tmp_path, 192), recipe(Stage.VQA))


@pytest.mark.parametrize(("stage", "ability"), [("caption", "caption"), ("vqa", "ask")])
def test_a_run_starts_from_pre_training(stage: str, ability: str, data: Path, tmp_path: Path) -> None:
    save_native(pretrained(tmp_path), tmp_path / "start")
    source = (
        {"name": "balls", "questions": "vqa.jsonl"}
        if stage == "vqa"
        else {"name": "balls", "captions": "captions.jsonl"}
    )
    path = write_small_recipe(
        tmp_path, data, tmp_path / "start", stage=stage, data=[source], epochs=1, batch_size=10, image_size=40
    )
    model = openblip.load(train(load_recipe(path)), device="cpu")
    assert model.abilities == (ability,) and model.network.config.vision.image_size == 40
