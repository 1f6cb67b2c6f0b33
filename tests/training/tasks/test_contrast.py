"""CLIP's loss against a plain formula and LAVIS' values (`-m real`); runs from a tiny CLIP learn, and go on."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import openblip
from openblip.checkpoints.loading import load_parts
from openblip.checkpoints.names.blip import LAVIS_PARTS
from openblip.checkpoints.names.clip import openai_layout
from openblip.checkpoints.names.engine import Layout
from openblip.errors import OptionError
from openblip.nn.clip import ClipConfig, ClipNetwork
from openblip.nn.resnet_clip import ClipResNetConfig
from openblip.training.loop.optim import make_optimizer, single_vectors
from openblip.training.recipe import OptimizerSection, load_recipe
from openblip.training.run import train
from openblip.training.tasks.contrast import MOST, clamp_scale, clip_loss
from tests.checkpoints.clip_theirs import write_clip
from tests.models.blip_models import small_parts
from tests.pairs.blip import need_recordings
from tests.pairs.clip import load_recording
from tests.pairs.gaps import difference
from tests.training.parallel.test_processes import check_two_train_as_one
from tests.training.recipes import train_until_killed, write_small_recipe

COLOURS = ("red", "green", "blue", "white")


class Scale(ClipNetwork):
    """What the loss needs of a CLIP."""

    def __init__(self, log_scale: float) -> None:
        torch.nn.Module.__init__(self)
        self.log_scale = torch.nn.Parameter(torch.tensor(log_scale))


def plain(images: Tensor, texts: Tensor, scale: Tensor, ids: list[int]) -> Tensor:
    """Of each image and each text by itself."""
    total: Tensor = torch.zeros(())
    for own, others in ((images, texts), (texts, images)):
        for row, vector in enumerate(own):
            scores = torch.stack([scale * F.cosine_similarity(vector, other, dim=0) for other in others])
            right = [place for place, number in enumerate(ids) if number == ids[row]]
            total = total - scores.log_softmax(0)[right].mean()
    return total / (2 * len(images))


@pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4], [0, 1, 0, 2, 3]])
def test_loss_is_that_of_the_plain_formula(ids: list[int]) -> None:
    network = Scale(1.3)
    images, texts = (torch.randn(5, 8, requires_grad=True) for _ in range(2))
    given = None if len(set(ids)) == 5 else torch.tensor(ids)
    found, expected = clip_loss(network, images, texts, given), plain(images, texts, network.log_scale.exp(), ids)
    assert difference(found, expected) <= 1e-6
    learnt = [images, texts, network.log_scale]
    for ours, theirs in zip(torch.autograd.grad(found, learnt), torch.autograd.grad(expected, learnt), strict=True):
        assert difference(ours, theirs) <= 1e-6
    for start, end in ((9.0, MOST), (-1.0, 0.0), (2.0, 2.0)):
        network.log_scale.data.fill_(start)
        clamp_scale(network)
        assert network.log_scale.item() == pytest.approx(end)


@pytest.mark.real
@pytest.mark.parametrize("kind", ["clip_vit", "clip_rn"])
def test_loss_and_gradients_are_those_of_lavis(kind: str) -> None:
    folder = need_recordings()
    recording = load_recording(folder / f"{kind}.pth")
    network, outputs = recording.network(), recording.outputs
    images = network.embed_images(recording.inputs["image"])
    texts = network.embed_texts(outputs["tokens"], recording.mask)[: len(images)]
    loss = clip_loss(network, images, texts)
    assert difference(loss, outputs["loss"]) <= 1e-5
    loss.backward()  # type: ignore[no-untyped-call]
    own = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
    theirs = openai_layout(network.config).to_theirs(own | {})
    for name, gradient in outputs["gradients"].items():
        assert difference(theirs[name], gradient) <= 1e-5, name


def test_what_decays_is_what_decays_in_lavis(tmp_path: Path) -> None:
    """There all but what has one dimension in its files, or "bias", "ln" or "bn" in its name; of BLIP, too."""
    write_clip(tmp_path / "clip")
    vit: Any = load_parts(tmp_path / "clip").network
    resnet = ClipNetwork(ClipConfig(ClipResNetConfig(32, 8, (1, 1, 1, 1), 4, 40), vit.config.text, 40))
    networks: list[tuple[torch.nn.Module, Layout]] = [(one, openai_layout(one.config)) for one in (vit, resnet)]
    for task in ("caption", "answer", "pretrain", "pair", "entail"):
        networks.append((small_parts(task, tmp_path).network, Layout("LAVIS", LAVIS_PARTS)))
    for network, layout in networks:
        parameters = dict(network.named_parameters())
        optimizer = make_optimizer(parameters, OptimizerSection(), single_vectors(network))
        decays = {id(one): bool(group["weight_decay"]) for group in optimizer.param_groups for one in group["params"]}
        assert len(decays) == len(parameters)
        for name, parameter in parameters.items():
            for place, tensor in layout.to_theirs({name: parameter.detach()}).items():
                expected = tensor.ndim >= 2 and not any(word in place for word in ("bias", "ln", "bn"))
                assert decays[id(parameter)] == expected, place
    assert single_vectors(vit) == {"vision.class_token"}


def made(folder: Path, data: Path, **changes: Any) -> Path:
    write_clip(folder / "clip")
    settings = {"stage": "contrast", "train_vision": True, "batch_size": 4, "optimizer": {"lr": 2e-3}, **changes}
    return write_small_recipe(folder, data, folder / "clip", **settings)


@pytest.mark.parametrize("train_vision", [True, False])
def test_a_clip_learns_and_is_used(tmp_path: Path, data: Path, train_vision: bool) -> None:
    evaluation = {"data": {"name": "balls", "captions": "captions.jsonl"}, "every": 8, "limit": 4}
    changes = {"epochs": 16, "log_every": 1, "train_vision": train_vision, "evaluation": evaluation}
    recipe = load_recipe(made(tmp_path, data, **changes))
    folder = train(recipe)
    with (folder / "curves.csv").open(newline="") as file:
        losses = [float(row["contrast"]) for row in csv.DictReader(file) if row["contrast"]]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    start, model = (openblip.load(str(each), device="cpu", dtype="float32") for each in (recipe.init, folder))
    assert model.abilities == start.abilities == ("match", "embed", "classify")
    images = [data / f"images/{number:02d}.png" for number in range(4)]
    texts = [f"a {word} ball" for word in COLOURS]

    def right(one: openblip.Model) -> float:
        best = [row[0].label for row in one.classify(images, texts, templates="{}")]
        return sum(label == text for label, text in zip(best, texts, strict=True))

    assert right(model) > right(start)
    before, after = (one.network.state_dict() for one in (start, model))
    learnt = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"log_scale", "text_projection.weight", "image_projection.weight"} <= learnt
    assert any(name.startswith("vision.") for name in learnt) == train_vision
    assert 0 <= float(model.network.log_scale) <= math.log(100) + 1e-6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, data: Path) -> None:
    recipe = made(tmp_path, data, epochs=2, save_every=1, ema=0.5)
    whole = train(load_recipe(recipe, [f"output={tmp_path / 'whole'}"]))
    killed = tmp_path / "killed"
    train_until_killed(load_recipe(recipe, [f"output={killed}"]), 6)
    train(load_recipe(recipe, [f"output={killed}", "name=whole"]))
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_two_processes_train_the_model_that_one_trains(tmp_path: Path, data: Path) -> None:
    """Features of both processes are compared, and gradients come back to where they are from."""
    recipe = made(tmp_path, data, epochs=1)
    check_two_train_as_one(recipe, tmp_path)


def test_a_clip_needs_its_own_stage(tmp_path: Path, data: Path) -> None:
    with pytest.raises(OptionError, match="is of the family clip, which has no stage stage1: give contrast"):
        train(load_recipe(made(tmp_path, data, stage="stage1")))
    with pytest.raises(OptionError, match="batch_size is 1: contrast compares the images of a batch"):
        load_recipe(made(tmp_path, data, batch_size=1))
