"""BLIP's training against LAVIS' recorded losses, gradients and steps: `OPENBLIP_LAVIS_ZOO=folder pytest -m real FILE`.

Everything goes through the tasks and the optimizer of a run.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openblip.checkpoints.blip_models import GENERATION, PROMPTS
from openblip.checkpoints.lavis.blip import assemble
from openblip.checkpoints.model_parts import ModelParts, read_defaults
from openblip.checkpoints.names.blip import LAVIS_PARTS
from openblip.checkpoints.names.engine import Layout
from openblip.data.captions_to_questions import Question
from openblip.data.pairs import DataSource, ImageText
from openblip.images.transform import ImageTransform
from openblip.nn.blip import BlipNetwork
from openblip.text import PromptTemplates
from openblip.training.input.batches import BatchRow
from openblip.training.loop.optim import make_optimizer, set_rate
from openblip.training.loop.precision import Arithmetic
from openblip.training.loop.trainer import freeze_all_but
from openblip.training.recipe import OptimizerSection, Recipe, Stage
from openblip.training.tasks.table import learner_of
from openblip.training.tasks.task import Runtime, Task, Views
from tests.pairs.blip import Recording, load, need_recordings
from tests.pairs.gaps import difference

pytestmark = pytest.mark.real
CLOSE, AFTER_STEPS = 1e-5, 2e-4


@pytest.fixture(scope="module")
def folder() -> Path:
    return need_recordings()


def parts_of(recording: Recording, network: BlipNetwork, place: Path) -> ModelParts[BlipNetwork, Any]:
    special = ("[DEC]", "[ENC]")
    (place / "vocab.txt").write_text("\n".join(word for word in recording.vocabulary if word not in special) + "\n")
    prompts = PromptTemplates(**PROMPTS)
    return assemble("recorded", network, ImageTransform(32), place, prompts, read_defaults(GENERATION, place))


def task_of(stage: Stage, parts: ModelParts[BlipNetwork, Any], **settings: Any) -> Task:
    recipe = Recipe(stage, "out", [DataSource("a")], init="x", train_vision=True, **settings)
    task = learner_of(stage, parts.family, parts.name).task(parts, recipe, [], Runtime(Arithmetic(torch.device("cpu"))))
    freeze_all_but(parts.network, task.trained())
    return task.eval()  # LAVIS' recordings have no dropout


def row_of(pair: ImageText) -> BatchRow:
    return BatchRow(0, pair, 0, random.Random(0))


def check_gradients(network: BlipNetwork, recorded: dict[str, Tensor]) -> None:
    own = dict(network.named_parameters())
    places = Layout("LAVIS", LAVIS_PARTS).places(own)
    for theirs, gradient in recorded.items():
        found = own[places[theirs].name].grad
        assert found is not None and difference(found, gradient) <= CLOSE, theirs


def captioned(recording: Recording) -> list[BatchRow]:
    prompt = recording.config["prompt"]
    texts = [text.removeprefix(prompt) for text in recording.inputs["text_input"]]
    return [row_of(ImageText(Path(f"{n}.jpg"), (text,))) for n, text in enumerate(texts)]


@pytest.mark.parametrize("kind", ["base", "large"])
def test_captions(folder: Path, tmp_path: Path, kind: str) -> None:
    recording = load(folder, f"blip_caption_{kind}")
    network = recording.network(decoder=recording.bert())
    task = task_of(Stage.CAPTION, parts_of(recording, network, tmp_path), text_tokens=recording.config["max_txt_len"])
    loss = task(captioned(recording), Views(pixels=recording.inputs["image"]))["lm"]
    assert difference(loss, recording.outputs["loss"]) <= CLOSE
    loss.backward()
    check_gradients(network, recording.outputs["gradients"])


def test_steps_of_captions(folder: Path, tmp_path: Path) -> None:
    recording = load(folder, "blip_caption_base")
    network = recording.network(decoder=recording.bert())
    task = task_of(Stage.CAPTION, parts_of(recording, network, tmp_path), text_tokens=recording.config["max_txt_len"])
    section = OptimizerSection(lr=1e-3, beta2=0.999, weight_decay=0.05, clip_norm=0)
    learning = dict(network.named_parameters())
    optimizer = make_optimizer(learning, section)
    recorded = recording.outputs["train"]
    decayed = {
        decays: sum(len(group["params"]) for group in optimizer.param_groups if bool(group["weight_decay"]) == decays)
        for decays in (True, False)
    }
    assert decayed == {True: recorded["n_decayed"], False: recorded["n_not_decayed"]}
    for expected in recorded["losses"]:
        set_rate(optimizer, section.lr)
        optimizer.zero_grad(set_to_none=True)
        loss = task(captioned(recording), Views(pixels=recording.inputs["image"]))["lm"]
        # Steps of AdamW turn the last bits of gradients near zero into whole steps.
        assert loss.item() == pytest.approx(float(expected), rel=CLOSE)
        loss.backward()
        optimizer.step()
    places = Layout("LAVIS", LAVIS_PARTS).places(learning)
    for theirs, value in recorded["after"].items():
        assert difference(learning[places[theirs].name], value) <= AFTER_STEPS, theirs


def test_answers(folder: Path, tmp_path: Path) -> None:
    recording = load(folder, "blip_vqa")
    sizes, inputs = recording.bert(), recording.inputs
    network = recording.network(encoder=sizes, decoder=recording.bert(image_width=sizes.width), answers=True)
    parts = parts_of(recording, network, tmp_path)
    answers, weights = iter(inputs["answer"]), iter(inputs["weight"].tolist())
    rows = []
    for number, (question, count) in enumerate(zip(inputs["text_input"], inputs["n_answers"].tolist(), strict=True)):
        given = tuple(
            answer
            for answer, weight in [(next(answers), next(weights)) for _ in range(count)]
            for _ in range(round(weight * 60))
        )
        rows.append(row_of(ImageText(Path(f"{number}.jpg"), questions=(Question(question, given[0], "", given),))))
    task = task_of(Stage.VQA, replace(parts, prompts=PromptTemplates(**PROMPTS)))
    loss = task(rows, Views(pixels=inputs["image"]))["lm"]
    assert difference(loss, recording.outputs["loss"]) <= CLOSE
    loss.backward()
    check_gradients(network, recording.outputs["gradients"])
