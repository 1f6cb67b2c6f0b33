"""Training runs: killed ones continue to the same weights, frozen parts stay frozen, losses fall."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from openblip.checkpoints.model_parts import ModelParts
from openblip.errors import OpenBlipError
from openblip.training import run
from openblip.training.init.start import start_model
from openblip.training.loop.checkpoint import CHECKPOINT_FILE
from openblip.training.loop.optim import learning_rate
from openblip.training.recipe import OptimizerSection, load_recipe
from openblip.training.recipe_keys import Schedule
from openblip.training.run import train
from tests.training.recipes import train_until_killed


def write_recipe(folder: Path, data: Path, model: Path, stage: str) -> Path:
    path = folder / f"{stage}.yaml"
    path.write_text(
        f"""
stage: {stage}
init: {model.as_posix()}
data_root: {data.as_posix()}
cache: {(folder / "features").as_posix()}
output: {(folder / stage).as_posix()}
data: [{{name: balls, captions: captions.jsonl, questions: vqa.jsonl}}]
mixture: {{questions: 0.5}}
epochs: 6
batch_size: 5
save_every: 2
log_every: 1
threads: 1
optimizer: {{lr: 2.0e-3, warmup_steps: 4}}
"""
    )
    return path


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def curve(folder: Path) -> list[dict[str, str]]:
    with (folder / "curves.csv").open(newline="") as file:
        return list(csv.DictReader(file))


EXTRAS = ["keep_matching=0.5", "self_critical=3", "train_decoder=true", "patch_share=0.5", "dropout=0.3"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
@pytest.mark.parametrize(
    ("stage", "extras"),
    [("language", []), ("stage1", []), ("stage2", []), ("stage2", EXTRAS)],
    ids=["language", "stage1", "stage2", "stage2-extras"],
)
def test_a_killed_run_continues_to_the_same_weights(
    tmp_path: Path, data: Path, tiny_model_folder: Path, stage: str, extras: list[str]
) -> None:
    recipe = write_recipe(tmp_path, data, tiny_model_folder, stage)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(load_recipe(recipe, [f"output={whole}", *extras]))
    train_until_killed(load_recipe(recipe, [f"output={killed}", *extras]), 11)
    position = torch.load(killed / CHECKPOINT_FILE, weights_only=True)["position"]
    assert position["total"] == 10
    train(load_recipe(recipe, [f"output={killed}", *extras]))
    expected, found = weights(whole), weights(killed)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    assert [row["step"] for row in curve(killed)] == [str(step + 1) for step in range(24)]
    assert curve(killed) == curve(whole)


# A random language model that stays frozen can be driven only so far.
FALLS = {"language": 0.8, "stage1": 0.8, "stage2": 0.92}
LEARNS = {
    "language": ("decoder.",),
    "stage1": ("vision_norm.", "qformer.", "image_projection.", "text_projection.", "itm_head.", "temperature"),
    "stage2": ("vision_norm.", "qformer.", "prompt_projection."),
}


@pytest.mark.parametrize("stage", list(LEARNS))
def test_only_the_stages_parts_change_and_the_loss_falls(
    tmp_path: Path, data: Path, tiny_model_folder: Path, stage: str
) -> None:
    recipe = load_recipe(write_recipe(tmp_path, data, tiny_model_folder, stage), ["epochs=20"])
    before = weights(tiny_model_folder)
    after = weights(train(recipe))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    for name in changed:
        assert name.startswith(LEARNS[stage]), name
    if stage == "stage2":
        text_side = ("qformer.words", "qformer.positions", "qformer.head", "text_ffn")
        assert not [name for name in changed if any(part in name for part in text_side)]
    checkpoint = torch.load(Path(recipe.output) / CHECKPOINT_FILE, weights_only=True)
    assert changed <= set(checkpoint["parameters"])
    assert all(name.startswith(LEARNS[stage]) for name in checkpoint["parameters"])
    rows = curve(Path(recipe.output))
    parts = [name for name in rows[0] if name not in ("step", "epoch", "lr")]
    total = [sum(float(row[part]) for part in parts) for row in rows]
    assert np.mean(total[-8:]) < FALLS[stage] * np.mean(total[:8])
    assert (Path(recipe.output) / "curves.png").stat().st_size > 1000


def test_stage2_goes_on_matching_and_learns_from_its_captions_scores(
    tmp_path: Path, data: Path, tiny_model_folder: Path
) -> None:
    recipe = write_recipe(tmp_path, data, tiny_model_folder, "stage2")
    settings = ["epochs=30", "train_decoder=true", "save_every=1000", "monitor={tensorboard: false}"]
    imitator = train(load_recipe(recipe, [*settings, "optimizer.lr=5e-3"]))
    overrides = [f"init={imitator}", f"output={tmp_path / 'critic'}", *settings]
    after = train(load_recipe(recipe, [*overrides, "self_critical=4", "keep_matching=0.5"]))
    rows = curve(after)
    assert list(rows[0]) == ["step", "epoch", "lr", "lm", "cider", "itc", "itm"]

    def mean(name: str, part: slice) -> float:
        return float(np.mean([float(row[name]) for row in rows[part]]))

    for name in ("cider", "itc", "itm"):
        assert mean(name, slice(-20, None)) < mean(name, slice(0, 20)) - 0.02, name
    changed = {name for name, value in weights(after).items() if not torch.equal(value, weights(imitator)[name])}
    assert any("text_ffn" in name for name in changed) and any(name.startswith("itm_head") for name in changed)


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, data: Path, tiny_model_folder: Path) -> None:
    recipe = write_recipe(tmp_path, data, tiny_model_folder, "stage1")
    train(load_recipe(recipe, ["epochs=1"]))
    with pytest.raises(OpenBlipError, match="of another run"):
        train(load_recipe(recipe, ["epochs=2"]))
    with pytest.raises(OpenBlipError, match="differs in seed: "):
        train(load_recipe(recipe, ["epochs=1", "seed=7"]))
    train(load_recipe(recipe, ["epochs=1", "log_every=3", "save_every=5", f"cache={tmp_path / 'elsewhere'}"]))
    captions = data / "captions.jsonl"
    captions.write_text(captions.read_text().replace("a red ball", "a crimson ball"))
    with pytest.raises(OpenBlipError, match="differs in rows of the data: "):
        train(load_recipe(recipe, ["epochs=1"]))


def test_a_run_does_not_overwrite_the_model_it_starts_from(tmp_path: Path, data: Path, tiny_model_folder: Path) -> None:
    recipe = write_recipe(tmp_path, data, tiny_model_folder, "stage1")
    with pytest.raises(OpenBlipError, match="the model that the run starts from"):
        train(load_recipe(recipe, [f"output={tiny_model_folder}"]))


def poison(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let the first number of a tensor be none from the beginning of a run on: files that hold such are refused."""

    def started(*given: Any, **settings: Any) -> ModelParts:
        parts = start_model(*given, **settings)
        with torch.no_grad():
            parts.network.get_parameter(name)[0] = float("nan")
        return parts

    monkeypatch.setattr(run, "start_model", started)


def test_a_loss_that_is_not_finite_stops_and_names_the_batch(
    tmp_path: Path, data: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path, data, tiny_model_folder, "stage2")
    poison(monkeypatch, "prompt_projection.bias")
    with pytest.raises(OpenBlipError, match=r"loss lm is not finite at step 0 \(images \d\d\.png") as caught:
        train(load_recipe(recipe))
    assert "the weight prompt_projection.bias" in str(caught.value)
    rows = json.loads((tmp_path / "stage2/bad_batch/batch.json").read_text())["rows"]
    kept = load_file(tmp_path / "stage2/bad_batch/views.safetensors")
    assert len(rows) == len(kept["patches"]) == 5


@pytest.mark.parametrize("settings", [["stage=stage1"], ["keep_matching=0.5"]], ids=["stage1", "keep_matching"])
def test_scores_that_are_no_numbers_stop_a_run_that_draws_by_them(
    tmp_path: Path, data: Path, tiny_model_folder: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path, data, tiny_model_folder, "stage2")
    poison(monkeypatch, "vision_norm.weight")
    with pytest.raises(OpenBlipError, match=r"loss [a-z, ]+ is not finite at step 0 .*the weight vision_norm\.weight"):
        train(load_recipe(recipe, settings))
    assert (tmp_path / "stage2/bad_batch/batch.json").exists()


def test_schedules_by_epochs_are_those_of_lavis() -> None:
    """Numbers of `lavis.common.optims`, with a rate of 1, ten epochs, and a warm-up from 0.1 in four steps."""
    section = OptimizerSection(lr=1.0, min_lr=0.5, warmup_lr=0.1, warmup_steps=4, schedule=Schedule.EPOCH_COSINE)
    first = [learning_rate(step, 60, section, 0, 10) for step in range(6)]
    assert first == pytest.approx([0.1, 0.325, 0.55, 0.775, 1.0, 1.0])
    later = [learning_rate(6 * epoch + 3, 60, section, epoch, 10) for epoch in (1, 5, 9)]
    assert later == pytest.approx([0.98776413, 0.75, 0.51223587])
    section = replace(section, schedule=Schedule.EPOCH_STEP, decay_rate=0.9)
    later = [learning_rate(6 * epoch, 60, section, epoch, 10) for epoch in (0, 1, 2, 6, 7, 9)]
    assert later == pytest.approx([0.1, 0.9, 0.81, 0.531441, 0.5, 0.5])
    assert learning_rate(6, 60, replace(section, warmup_steps=100), 1, 10) == pytest.approx(0.9)


def test_schedule_warms_up_and_decays_to_its_ends() -> None:
    section = OptimizerSection(lr=1e-4, min_lr=1e-5, warmup_lr=1e-6, warmup_steps=10)
    rates = [learning_rate(step, 100, section) for step in range(101)]
    assert rates[0] == pytest.approx(1e-6)
    assert rates[10] == pytest.approx(1e-4)
    assert rates[100] == pytest.approx(1e-5)
    assert rates[55] == pytest.approx((1e-4 + 1e-5) / 2)
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
