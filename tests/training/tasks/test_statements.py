"""Runs of stages nlvr and classify: statements about two images or one, from tables to a model that judges."""

from __future__ import annotations

import csv
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import openblip
from openblip.checkpoints.lavis.blip import to_lavis
from openblip.checkpoints.openblip.folder import save_native
from openblip.data.pairs import DataSource, ImageText, load_claims, load_pairs
from openblip.errors import OpenBlipError, OptionError
from openblip.images.transform import ImageTransform
from openblip.training.init.class_head import class_order
from openblip.training.input.batches import BatchRow
from openblip.training.input.loader import load_row
from openblip.training.loop.checkpoint import CHECKPOINT_FILE
from openblip.training.loop.precision import Arithmetic
from openblip.training.loop.trainer import freeze_all_but
from openblip.training.recipe import Recipe, Stage, load_recipe
from openblip.training.run import train
from openblip.training.tasks.table import learner_of
from openblip.training.tasks.task import BatchPosition, Runtime, Views
from tests.models.blip_models import small_parts
from tests.training.parallel.test_processes import check_two_train_as_one
from tests.training.recipes import train_until_killed, write_small_recipe

COLOURS = ("red", "green", "blue", "white")
STAGES = ("nlvr", "classify")


def write_claims(data: Path, stage: str) -> None:
    """Rows about the images of `data`, whose colours follow one another, half of them true."""
    rows = []
    for number in range(40):
        left, right = number % 20, (number * 7 + 3) % 20
        true = number // 2 % 2 == 0
        colour = COLOURS[(left if true else left + 2) % 4]
        row = {"image": f"images/{left:02d}.png", "statement": f"the ball is {colour}"}
        if stage == "nlvr":
            rows.append({**row, "second_image": f"images/{right:02d}.png", "label": str(true)})
        else:
            rows.append({**row, "label": "entailment" if true else "contradiction"})
    (data / "claims.jsonl").write_text("\n".join(map(json.dumps, rows)))


def made(folder: Path, data: Path, stage: str, start: str = "match", **changes: Any) -> Path:
    """A recipe that starts from a small random BLIP without a head for classes."""
    write_claims(data, stage)
    save_native(small_parts(start, folder / "words"), folder / start)
    source = {"name": "claims", "table": "claims.jsonl", "mirror": False}
    settings: dict[str, Any] = {"stage": stage, "data": [source], "train_vision": True, "batch_size": 8, **changes}
    return write_small_recipe(folder, data, folder / start, **settings)


def curves(folder: Path) -> list[float]:
    with (folder / "curves.csv").open(newline="") as file:
        return [float(row["classes"]) for row in csv.DictReader(file) if row["classes"]]


@pytest.mark.parametrize("stage", STAGES)
def test_a_model_learns_to_judge(tmp_path: Path, data: Path, stage: str) -> None:
    momentum = {"momentum": {"alpha": 0.1, "decay": 0.9}} if stage == "classify" else {}
    evaluation = {
        "data": {"name": "claims", "table": "claims.jsonl"},
        "every": 8,
        "limit": 16,
    }
    recipe = load_recipe(
        made(tmp_path, data, stage, epochs=16, log_every=1, optimizer={"lr": 2e-3}, evaluation=evaluation, **momentum)
    )
    folder = train(recipe)
    losses = curves(folder)
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    model = openblip.load(folder, device="cpu")
    classes = ("False", "True") if stage == "nlvr" else ("contradiction", "neutral", "entailment")
    assert (model.abilities, model.parts.classes) == (("judge",), classes)
    rows = [json.loads(line) for line in (data / "claims.jsonl").read_text().splitlines()]
    pairs: list[Any] = [
        (
            (data / row["image"], data / row["second_image"]) if stage == "nlvr" else data / row["image"],
            row["statement"],
        )
        for row in rows
    ]
    judged = [found.judgements[0].label for found in model.judge_many(pairs)]
    assert sum(label == row["label"] for label, row in zip(judged, rows, strict=True)) >= 36
    assert len((folder / "samples.jsonl").read_text().splitlines()) == 12  # 4 of each evaluation
    # A run goes on from a model that has the head.
    again = train(load_recipe(tmp_path / "recipe.yaml", [f"init={folder}", f"output={tmp_path / 'again'}", "epochs=1"]))
    assert curves(again)[0] < losses[0] / 2
    # LAVIS' file has no place for the names of classes, and momentum copies are no part of it.
    assert not any("_m." in name for name in to_lavis(model.network))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, data: Path, stage: str) -> None:
    """Momentum copies come back, too."""
    # A frozen image encoder needs no copy.
    recipe = made(tmp_path, data, stage, epochs=2, save_every=1, dropout=0.1, train_vision=stage == "nlvr")
    whole = train(load_recipe(recipe, [f"output={tmp_path / 'whole'}"]))
    killed = tmp_path / "killed"
    train_until_killed(load_recipe(recipe, [f"output={killed}"]), 6)
    state = torch.load(killed / CHECKPOINT_FILE, weights_only=True)["others"]
    assert ("class_head.fc1.weight" in state) == (stage == "classify") and "vision.class_token" not in state
    train(load_recipe(recipe, [f"output={killed}", "name=whole"]))
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert json.loads((killed / "config.json").read_text()) == json.loads((whole / "config.json").read_text())
    (data / "claims.jsonl").write_text((data / "claims.jsonl").read_text().replace("the ball", "a ball"))
    with pytest.raises(OpenBlipError, match="rows of the data"):
        train(load_recipe(recipe, [f"output={killed}", "name=whole", "epochs=3"]))


def test_two_processes_train_the_model_that_one_trains(tmp_path: Path, data: Path) -> None:
    """Stage nlvr has the same loss without the copies."""
    recipe = made(tmp_path, data, "classify", epochs=1, dropout=0.0)
    check_two_train_as_one(recipe, tmp_path)


def test_losses_are_those_of_the_head(tmp_path: Path) -> None:
    """Each pair by itself; copies are as the network until it moves, and count by the share of the epoch."""
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    for stage, count in ((Stage.NLVR, 2), (Stage.CLASSIFY, 1)):
        rows = [
            ImageText(Path("a"), second=Path("b") if count == 2 else None, claim=claim, label=label)
            for claim, label in (("a red ball", "true"), ("two children play on the beach", "FALSE"))
        ]
        recipe = Recipe(stage, "out", [DataSource("a")], init="x", train_vision=True)
        learner = learner_of(stage, "blip", "x")
        torch.manual_seed(1)
        parts = learner.prepare(small_parts("match", tmp_path), recipe, rows)
        assert parts.classes == ("False", "True")
        task = learner.task(parts, recipe, rows, Runtime(Arithmetic(torch.device("cpu"))))
        freeze_all_but(parts.network, task.trained())
        task.position = BatchPosition(0, 1, 2)
        batch = [BatchRow(0, row, 0, random.Random(0)) for row in rows]
        found = task(batch, Views(pixels=pixels[: 2 * count]))["classes"]
        network, expected = parts.network, 0.0
        for place, (row, label) in enumerate(zip(rows, (1, 0), strict=True)):
            ids = torch.tensor([parts.matching.encode(row.claim)])
            seen = pixels[place * count : (place + 1) * count]
            odds = network.class_logits(ids, None, *(network.image_features(one[None]) for one in seen))[0].softmax(0)
            soft = 0.2 if stage is Stage.CLASSIFY else 0.0
            entropy = -(odds * odds.log()).sum().item()
            expected += (1 - soft) * -odds[label].log().item() + soft * entropy
        assert found.item() == pytest.approx(expected / 2, rel=1e-4)


def test_images_of_a_pair_change_places_with_the_sides_of_their_text(data: Path) -> None:
    left, right = data / "images/00.png", data / "images/01.png"
    pair = ImageText(left, second=right, claim="the left ball is red", label="True")
    seen = set()
    for seed in range(20):
        row = BatchRow(0, pair, 0, random.Random(seed))
        found, images = load_row(row, DataSource("a", min_area=1.0), ImageTransform(8))
        first_is_red = bool(images[0][..., 0].mean() > images[0][..., 1].mean())
        assert found.pair.claim == f"the {'left' if first_is_red else 'right'} ball is red"
        assert len(images) == 2 and found.pair.label == "True"
        seen.add(first_is_red)
    assert seen == {True, False}
    row, images = load_row(BatchRow(0, pair, 0, random.Random(1)), DataSource("a", augment=False), ImageTransform(8))
    assert row.pair == pair and images[0][..., 0].mean() > 150


def test_classes_have_the_order_of_their_data_set() -> None:
    assert class_order({"true", "FALSE"}) == ("False", "True")
    assert class_order({"entailment", "contradiction"}) == ("contradiction", "neutral", "entailment")
    assert class_order({"yes", "No", "no"}) in {("No", "yes"), ("no", "yes")}
    assert class_order({"b"}, ("b", "a")) == ("b", "a")


@pytest.mark.parametrize(
    ("stage", "start", "change", "told"),
    [
        ("nlvr", "caption", {}, "cannot judge statements about two images .it has no text encoder"),
        ("classify", "pair", {}, "cannot judge statements about one image .it reads 2 images with a text, not 1"),
        ("nlvr", "match", {"second_image": "other"}, "no row has two images, a sentence and a label"),
        ("nlvr", "match", {"label": "other"}, "the label '': give each one image or two, a sentence and a label"),
        (
            "classify",
            "match",
            {"lora": {"targets": ["text"]}},
            "or a value|leave out train_vision|a new head for the classes",
        ),
        ("nlvr", "match", {"momentum": {"alpha": 0.1}}, "momentum is for"),
        ("classify", "match", {"momentum": {"queue_size": 9}}, "momentum.queue_size is for stages that compare images"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    tmp_path: Path, data: Path, stage: str, start: str, change: dict[str, Any], told: str
) -> None:
    columns = {name: change[name] for name in change if name in ("second_image", "label")}
    settings = {name: value for name, value in change.items() if name not in columns}
    recipe = made(tmp_path, data, stage, start, **settings)
    text = (data / "claims.jsonl").read_text()
    for old, new in columns.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    (data / "claims.jsonl").write_text(text)
    with pytest.raises(OpenBlipError, match=told):
        train(load_recipe(recipe))


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path, data: Path) -> None:
    """Whichever of a pair it is; another pair takes the place of its own."""
    recipe = made(tmp_path, data, "nlvr", epochs=1)
    rows = [json.loads(line) for line in (data / "claims.jsonl").read_text().splitlines()]
    rows[3]["second_image"] = "images/broken.png"
    (data / "images/broken.png").write_bytes(b"x")
    (data / "claims.jsonl").write_text("\n".join(map(json.dumps, rows)))
    folder = train(load_recipe(recipe))
    assert "broken.png" in (folder / "skipped.csv").read_text()
    with pytest.raises(OpenBlipError, match=r"broken\.png"):
        train(load_recipe(recipe, ["on_bad_image=stop", f"output={tmp_path / 'other'}"]))


def test_weights_in_8_bits_cannot_learn(tmp_path: Path, data: Path) -> None:
    recipe = made(tmp_path, data, "classify")
    small = openblip.load(tmp_path / "match", device="cpu", dtype="int8").save(tmp_path / "int8")
    with pytest.raises(OptionError, match="is quantized and cannot be trained"):
        train(load_recipe(recipe, [f"init={small}"]))


def test_claims_stay_as_many_as_their_rows(data: Path) -> None:
    write_claims(data, "nlvr")
    source = DataSource("claims", table="claims.jsonl")
    found = load_claims(source, data)
    assert len(found) == 40 and all(len(one.images) == 2 and one.label in ("True", "False") for one in found)
    assert len(load_claims(DataSource("claims", table="claims.jsonl", held_out=5), data)) < 40
    with pytest.raises(OptionError, match="two of stage nlvr alone"):
        load_pairs(source, data)
