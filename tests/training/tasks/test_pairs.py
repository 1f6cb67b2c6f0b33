"""Runs of BLIP's stages retrieval and pretrain, which keep momentum copies and queues."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import openblip
from openblip.checkpoints.lavis.blip import to_lavis
from openblip.checkpoints.openblip.folder import save_native
from openblip.errors import OpenBlipError
from openblip.training.loop.checkpoint import CHECKPOINT_FILE
from openblip.training.momentum import NO_IMAGE, Momentum
from openblip.training.parallel.processes import World
from openblip.training.recipe import load_recipe
from openblip.training.run import check_world, train
from openblip.training.tasks.pairs import start_momentum
from tests.models.blip_models import small_parts
from tests.training.parallel.test_processes import check_two_train_as_one
from tests.training.recipes import train_until_killed, write_small_recipe

COLOURS = ("red", "green", "blue", "white")


def made(folder: Path, data: Path, task: str, **changes: Any) -> Path:
    """A recipe that starts from a small random BLIP."""
    start = folder / task
    save_native(small_parts(task, folder / "words"), start)
    settings = {
        "stage": "pretrain" if task == "pretrain" else "retrieval",
        "train_vision": True,
        "cache": None,
        "batch_size": 4,
        "momentum": {"queue_size": 12},
        "dropout": 0.1,
        **changes,
    }
    return write_small_recipe(folder, data, start, **settings)


def curves(folder: Path) -> list[dict[str, str]]:
    with (folder / "curves.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def moved(start: Path, folder: Path) -> set[str]:
    before, after = (load_file(each / "model.safetensors") for each in (start, folder))
    assert before.keys() == after.keys()  # neither momentum copies nor queues
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("task", ["match", "pretrain"])
def test_a_run_learns_to_match(tmp_path: Path, data: Path, task: str) -> None:
    recipe = load_recipe(
        made(
            tmp_path,
            data,
            task,
            epochs=8,
            save_every=100,
            dropout=0.0,
            momentum={"queue_size": 12, "decay": 0.9},
            log_every=1,
        )
    )
    folder = train(recipe)
    rows = curves(folder)
    names = ("itc", "itm", "lm") if task == "pretrain" else ("itc", "itm")
    for name in names:
        losses = [float(row[name]) for row in rows]
        assert sum(losses[-5:]) < 0.8 * sum(losses[:5]), name
    start, model = (openblip.load(str(each), device="cpu", dtype="float32") for each in (recipe.init, folder))
    assert model.abilities == start.abilities
    images = [data / f"images/{number:02d}.png" for number in range(4)]
    texts = [f"a {word} ball" for word in COLOURS]

    def right(one: openblip.Model) -> float:
        odds = one.scores(images, texts, itm=True).itm
        assert odds is not None
        return float(odds.diag().sum() - odds.fill_diagonal_(0).sum() / 3)

    assert right(model) > right(start) + 0.5
    if task == "pretrain":
        assert "ball" in str(model.caption(images[0]))
        assert any(name.startswith("decoder.") for name in moved(Path(str(recipe.init)), folder))


@pytest.mark.parametrize(
    ("task", "changes"),
    [("match", {}), ("pretrain", {"accumulate": 2, "ema": 0.9}), ("match", {"train_vision": False, "cache": "kept"})],
    ids=["retrieval", "pretrain", "frozen"],
)
def test_a_killed_run_goes_on_to_the_same_weights(
    tmp_path: Path, data: Path, task: str, changes: dict[str, Any]
) -> None:
    """Queues and copies come back, too: without them, the losses would be others."""
    if "cache" in changes:
        changes = {**changes, "cache": (tmp_path / "features").as_posix()}
    recipe = made(tmp_path, data, task, epochs=2, save_every=1, log_every=1, **changes)
    whole = train(load_recipe(recipe, [f"output={tmp_path / 'whole'}"]))
    train_until_killed(load_recipe(recipe), 4 if "accumulate" not in changes else 2)
    state = torch.load(tmp_path / "run" / CHECKPOINT_FILE, weights_only=True)["others"]
    assert state["place"].item() and (state["ids"].max() >= 0) == (task == "match")
    assert any(name.startswith("vision.") for name in state) == ("train_vision" not in changes)
    resumed = train(load_recipe(recipe))
    one, two = (load_file(each / "model.safetensors") for each in (whole, resumed))
    assert all(torch.equal(one[name], two[name]) for name in one)
    learnt = moved(tmp_path / task, whole)
    assert any(name.startswith("vision.") for name in learnt) == ("train_vision" not in changes)
    assert [row["itc"] for row in curves(whole)][-1] == [row["itc"] for row in curves(resumed)][-1]


def test_retrieval_of_a_pretrained_model_leaves_the_decoder_out(tmp_path: Path, data: Path) -> None:
    recipe = load_recipe(made(tmp_path, data, "pretrain", stage="retrieval", epochs=1))
    folder = train(recipe)
    model = openblip.load(str(folder), device="cpu", dtype="float32")
    assert model.abilities == ("match", "embed", "classify")
    before, after = (load_file(each / "model.safetensors") for each in (Path(str(recipe.init)), folder))
    assert after.keys() == {name for name in before if not name.startswith("decoder.")}
    assert {"encoder.words.weight", "itm_head.weight"} <= {n for n in after if not torch.equal(before[n], after[n])}


def test_two_processes_train_the_model_that_one_trains(tmp_path: Path, data: Path) -> None:
    recipe = made(tmp_path, data, "match", epochs=1, dropout=0.0)
    check_two_train_as_one(recipe, tmp_path)


def test_copies_and_queues_of_a_file_are_taken_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = small_parts("match", tmp_path).network
    state = to_lavis(network)
    roots = ("visual_encoder", "text_encoder", "vision_proj", "text_proj")
    for name in list(state):
        root, _, rest = name.partition(".")
        if root in roots:
            state[f"{root}_m.{rest}"] = state[name] + 1
    queue = torch.arange(16 * 12, dtype=torch.float32).view(16, 12)
    state |= {"image_queue": queue, "text_queue": -queue, "idx_queue": torch.ones(1, 12, dtype=torch.int64)}
    state["ptr_queue"] = torch.tensor([5])
    folder = tmp_path / "file"
    folder.mkdir()
    torch.save({"model": state, "epoch": 3}, folder / "checkpoint.pth")
    momentum = Momentum(network, 12, 0.9)
    with caplog.at_level(logging.WARNING):
        start_momentum(momentum, network, str(folder))
    assert not caplog.records
    assert torch.equal(momentum.images, queue.T) and torch.equal(momentum.texts, -queue.T)
    assert momentum.place.tolist() == [5] and set(momentum.ids.tolist()) == {NO_IMAGE}
    for name, weight in momentum.weights.items():
        assert torch.equal(weight, network.get_parameter(name) + 1)
    other = Momentum(network, 8, 0.9)
    with caplog.at_level(logging.WARNING):
        start_momentum(other, network, str(folder))
    assert "of other sizes: they start from the model itself" in caplog.text
    assert all(torch.equal(weight, network.get_parameter(name)) for name, weight in other.weights.items())
    # A file without them, which is what LAVIS' own runs leave.
    torch.save({"model": to_lavis(network)}, folder / "checkpoint.pth")
    caplog.clear()
    start_momentum(other, network, str(folder))
    assert not caplog.records


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("match", {"momentum": {"queue_size": 3}}, "momentum.queue_size is 3, which has no room for a batch of 4"),
        ("match", {"momentum": {"queue_size": -1}}, "momentum.queue_size is -1: it must be at least 0"),
        ("match", {"momentum": {"decay": 1.0}}, "momentum.decay is 1.0: it must be at least 0 and below 1"),
        ("match", {"momentum": {"alpha": 1.5}}, "momentum.alpha is 1.5: it must be from 0 to 1"),
        ("match", {"batch_size": 1}, "batch_size is 1: retrieval compares the images of a batch"),
        ("match", {"keep_matching": 1.0}, "keep_matching is for stage2: leave it out of stage retrieval"),
        ("match", {"stage": "pretrain"}, "cannot learn stage pretrain: give a model whose encoder and decoder share"),
        ("embed", {}, "cannot learn stage retrieval: give a model that compares images and texts by contrast and"),
        ("match", {"stage": "stage1", "momentum": {}}, "is of the family blip, which has no stage stage1: give"),
    ],
)
def test_what_does_not_fit_is_said(
    tmp_path: Path, data: Path, task: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(OpenBlipError, match=message):
        train(load_recipe(made(tmp_path, data, task, **changes)))


def test_processes_that_divide_weights_are_refused(tmp_path: Path, data: Path) -> None:
    recipe = load_recipe(made(tmp_path, data, "match"), ["parallel=fsdp"])
    with pytest.raises(OpenBlipError, match="stage retrieval keeps copies of whole weights, which parallel=fsdp"):
        check_world(recipe, World(0, 2))
