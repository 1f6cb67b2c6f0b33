"""BLIP's losses on captions and answers equal plain formulas; runs from tiny models learn, and go on when killed."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import openblip
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.openblip.folder import save_native
from openblip.data.captions_to_questions import Question
from openblip.data.pairs import DataSource, ImageText
from openblip.errors import OpenBlipError
from openblip.nn.blip import BlipNetwork
from openblip.training.input.batches import BatchRow
from openblip.training.loop.precision import Arithmetic
from openblip.training.loop.trainer import freeze_all_but, set_drop_path
from openblip.training.recipe import Recipe, Stage, load_recipe
from openblip.training.run import train
from openblip.training.tasks.table import learner_of
from openblip.training.tasks.task import Runtime, Task, Views
from tests.models.blip_models import small_parts
from tests.training.recipes import train_until_killed, write_small_recipe

PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def task_of(stage: Stage, parts: ModelParts[BlipNetwork, Any], **settings: Any) -> Task:
    recipe = Recipe(stage, "out", [DataSource("a")], init="x", **settings)
    task = learner_of(stage, parts.family, parts.name).task(parts, recipe, [], Runtime(Arithmetic(torch.device("cpu"))))
    freeze_all_but(parts.network, task.trained())
    return task


def rows_of(*pairs: ImageText) -> list[BatchRow]:
    return [BatchRow(0, pair, 0, random.Random(0)) for pair in pairs]


def smoothed(logits: Tensor, wanted: int) -> float:
    """0.9 of what the right token costs, and 0.1 of what all cost in the mean."""
    costs = -logits.log_softmax(dim=0)
    return (0.9 * costs[wanted] + 0.1 * costs.mean()).item()


def test_the_loss_of_captions(tmp_path: Path) -> None:
    parts = small_parts("caption", tmp_path)
    captions = ["a red ball on the beach", "two children play with a dog in the water of the sea"]
    task = task_of(Stage.CAPTION, parts, text_tokens=16)
    found = task(rows_of(*(ImageText(Path("a"), (text,)) for text in captions)), Views(pixels=PIXELS))["lm"]
    words, decoder = parts.require_words(), parts.network.decoder
    costs = []
    for text, pixels in zip(captions, PIXELS, strict=True):
        ids = [*[words.start_id, *words.encode(f"a picture of {text}")][:15], words.only_id("[SEP]")]
        memory = decoder.remember(parts.network.image_features(pixels[None]))
        logits = decoder.logits(decoder.decode(decoder.embed(torch.tensor([ids])), None, memory))[0]
        costs += [smoothed(logits[place - 1], ids[place]) for place in range(4, len(ids))]
    assert found.item() == pytest.approx(sum(costs) / len(costs), rel=1e-5)


def test_the_loss_of_answers(tmp_path: Path) -> None:
    parts = small_parts("answer", tmp_path)
    asked = [
        Question("what is this?", "dog", "", ("dog", "cat", "dog", "red dog")),
        Question("how many children play on the beach?", "two", ""),
    ]
    task = task_of(Stage.VQA, parts)
    found = task(rows_of(*(ImageText(Path("a"), questions=(one,)) for one in asked)), Views(pixels=PIXELS))["lm"]
    words, network = parts.require_words(), parts.network
    start, end = words.start_id, words.only_id("[SEP]")
    expected = 0.0
    for one, pixels, answers in zip(
        asked, PIXELS, ({"dog": 0.5, "cat": 0.25, "red dog": 0.25}, {"two": 1}), strict=True
    ):
        question = torch.tensor([[network.config.encode_id, *words.encode(one.question), end]])
        states = network.read_together(question, None, network.image_features(pixels[None]))
        for answer, weight in answers.items():
            ids = [start, *words.encode(answer), end]
            memory = network.decoder.remember(states)
            hidden = network.decoder.decode(network.decoder.embed(torch.tensor([ids])), None, memory)[0]
            logits = network.decoder.logits(hidden)
            expected += weight * sum(smoothed(logits[place - 1], ids[place]) for place in range(1, len(ids))) / 2
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_texts_of_an_image_share_it(tmp_path: Path) -> None:
    """Several texts an image give the loss of as many images with one text each."""
    parts = small_parts("caption", tmp_path)
    row = rows_of(ImageText(Path("a"), ("a red ball", "a dog")))
    together = task_of(Stage.CAPTION, parts, texts_per_image=2)
    texts = together._captions(rows_of(row[0].pair)[0])  # type: ignore[operator]
    apart = task_of(Stage.CAPTION, parts)(
        rows_of(*(ImageText(Path("a"), (text,)) for text in texts)), Views(pixels=PIXELS[:1].repeat(2, 1, 1, 1))
    )
    assert together(row, Views(pixels=PIXELS[:1]))["lm"].item() == pytest.approx(apart["lm"].item(), rel=1e-5)


@pytest.mark.parametrize(
    ("task", "stage", "words"),
    [
        ("answer", Stage.CAPTION, "answer answers questions: train it with stage vqa"),
        ("caption", Stage.VQA, "caption captions: train it with stage caption"),
        ("match", Stage.VQA, "match cannot write"),
        ("caption", Stage.STAGE1, "caption is of the family blip, which has no stage stage1: give caption"),
    ],
)
def test_a_model_for_another_stage_is_refused(task: str, stage: Stage, words: str, tmp_path: Path) -> None:
    with pytest.raises(OpenBlipError, match=words):
        task_of(stage, small_parts(task, tmp_path))


STAGES = {"caption": "caption", "vqa": "answer"}


def write_recipe(folder: Path, data: Path, stage: str, **changes: Any) -> Path:
    save_native(small_parts(STAGES[stage], folder), folder / "start")
    source = {
        "name": "balls",
        "vqa" if stage == "vqa" else "captions": f"{'vqa' if stage == 'vqa' else 'captions'}.jsonl",
    }
    if stage == "vqa":
        source = {"name": "balls", "questions": "vqa.jsonl"}
    settings = {"stage": stage, "data": [source], "batch_size": 5, "epochs": 3, "train_vision": True, **changes}
    return write_small_recipe(folder, data, folder / "start", **settings)


def losses(folder: Path) -> list[float]:
    lines = (folder / "curves.csv").read_text().splitlines()
    place = lines[0].split(",").index("lm")
    return [float(line.split(",")[place]) for line in lines[1:] if line.split(",")[place]]


@pytest.mark.parametrize("stage", STAGES)
def test_a_model_learns_and_is_used(stage: str, data: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, data, stage, epochs=16, train_vision=False, log_every=1)
    folder = train(load_recipe(recipe))
    course = losses(folder)
    assert sum(course[-4:]) < 0.6 * sum(course[:4])
    model = openblip.load(folder, device="cpu")
    image = data / "images/00.png"
    said = model.caption(image) if stage == "caption" else model.ask(image, "what color is the ball?")
    assert "red" in said


def test_blocks_are_left_out_as_the_recipe_says(data: Path, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, data, "caption", epochs=1))
    vision = small_parts("caption", tmp_path).network.vision
    set_drop_path(vision, 0.4)
    assert [block.drop_path for block in vision.blocks] == [0.0, 0.4]
    found = []
    for name, rate in (("none", 0.0), ("some", 0.5), ("again", 0.5)):
        recipe.output, recipe.drop_path = str(tmp_path / name), rate
        found.append(load_file(train(recipe) / "model.safetensors")["vision.blocks.1.mlp.fc1.weight"])
    assert torch.equal(found[1], found[2]) and not torch.equal(found[0], found[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_run_goes_on_to_the_same_bytes(stage: str, data: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, data, stage, dropout=0.1, ema=0.5)
    whole = train(load_recipe(recipe, [f"output={tmp_path / 'whole'}"]))
    killed = tmp_path / "killed"
    train_until_killed(load_recipe(recipe, [f"output={killed}"]), 7)
    train(load_recipe(recipe, [f"output={killed}", "name=whole"]))
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert json.loads((killed / "config.json").read_text()) == json.loads((whole / "config.json").read_text())
