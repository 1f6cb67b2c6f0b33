"""Runs in which the upper blocks of an image encoder learn, and those below are frozen and on disk."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from openblip.checkpoints.loading import load_parts
from openblip.checkpoints.tools.quantize import quantize_model
from openblip.errors import OptionError
from openblip.nn import recompute
from openblip.nn.efficientnet import EfficientNet, EfficientNetConfig
from openblip.nn.vit import VisionTransformer, VitConfig
from openblip.training import run
from openblip.training.loop.checkpoint import TrainingState
from openblip.training.loop.optim import rate_share
from openblip.training.recipe import OptimizerSection, Precision, load_recipe
from openblip.training.run import encoder_for, train

from .recipes import write_small_recipe

UPPER = 2
VIT = VitConfig(image_size=28, patch_size=14, width=16, depth=3, num_heads=2, mlp_width=32, final_norm=True)
LITE = EfficientNetConfig(image_size=64, width_scale=0.25, depth_scale=0.5, place_width=8)


@pytest.fixture
def recipe(tmp_path: Path, data: Path, tiny_model_folder: Path) -> Path:
    balls = {"name": "balls", "captions": "captions.jsonl", "views": 1, "augment": False}
    settings = {"train_vision": True, "vision_blocks": UPPER, "epochs": 2, "batch_size": 4, "log_every": 1}
    return write_small_recipe(tmp_path, data, tiny_model_folder, stage="stage1", data=[balls], **settings)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def apart(first: dict[str, Tensor], second: dict[str, Tensor], names: set[str]) -> float:
    return sum(float((first[name] - second[name]).square().sum()) for name in names) ** 0.5


def first_losses(folder: Path) -> list[float]:
    with (folder / "curves.csv").open(newline="") as file:
        return [float(value) for value in list(csv.reader(file))[1][3:]]


def make(kind: str) -> tuple[VisionTransformer | EfficientNet, Tensor]:
    torch.manual_seed(0)
    if kind == "vit":
        return VisionTransformer(VIT).eval(), torch.randn(2, 3, 28, 28)
    encoder = EfficientNet(LITE).eval()
    if kind == "folded":
        encoder.fold()
    return encoder, torch.randn(5, 3, 64, 64)


@pytest.mark.parametrize("kind", ["vit", "efficientnet", "folded"])
def test_an_encoder_is_what_is_below_and_what_is_above(kind: str) -> None:
    encoder, pixels = make(kind)
    whole = encoder(pixels)
    for blocks in range(len(encoder.blocks) + 1):
        assert torch.equal(encoder.above(encoder.below(pixels, blocks), blocks), whole)
    with pytest.raises(ValueError, match=f"has {len(encoder.blocks)} blocks"):
        encoder.upper(len(encoder.blocks) + 1)


@pytest.mark.parametrize("kind", ["vit", "efficientnet"])
def test_nothing_outside_the_upper_modules_changes_what_is_above(kind: str) -> None:
    encoder, pixels = make(kind)
    hidden = encoder.below(pixels, UPPER).detach()
    upper = tuple(f"{name}." for name in encoder.upper(UPPER))
    encoder.above(hidden, UPPER).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is not None) == name.startswith(upper), name


def test_statistics_stay_those_of_pretraining_while_weights_learn() -> None:
    encoder, pixels = make("efficientnet")
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    expected = encoder(pixels)
    assert torch.equal(encoder.train()(pixels), expected)
    assert all(torch.equal(before[name], value) for name, value in encoder.named_buffers())


@pytest.mark.parametrize("settings", [[], ["stage=stage2", "train_decoder=true"]], ids=["stage1", "stage2"])
def test_what_is_below_comes_from_disk_to_the_same_end(recipe: Path, tmp_path: Path, settings: list[str]) -> None:
    """The same numbers as with images at every step, but for the float16 of what is on disk."""
    cached = weights(train(load_recipe(recipe, settings)))
    read = weights(train(load_recipe(recipe, [*settings, "cache=null", f"output={tmp_path / 'read'}"])))
    start = weights(Path(str(load_recipe(recipe).init)))
    learnt = {name for name in cached if name.startswith("vision.") and not torch.equal(cached[name], start[name])}
    upper = ("vision.blocks.8.", "vision.blocks.9.", "vision.head.")
    assert learnt == {name for name in cached if name.startswith(upper) and name.endswith((".weight", ".bias"))}
    # AdamW's first steps are as large for the smallest gradients, so that roundings grow from step to step.
    assert 0 < apart(cached, read, learnt) < 0.5 * apart(cached, start, learnt)
    assert first_losses(tmp_path / "run") == pytest.approx(first_losses(tmp_path / "read"), rel=2e-3)


def test_the_gain_is_that_of_the_blocks_below(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(load_recipe(recipe))
    assert "with the blocks below about" in " ".join(capsys.readouterr().out.split())


def test_a_model_whose_upper_blocks_have_learnt_shares_what_is_below(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(load_recipe(recipe))
    stores = [path for path in (tmp_path / "features").iterdir() if path.is_dir()]

    def refuse(*_: object) -> None:
        raise AssertionError("what is below is on disk")

    monkeypatch.setattr(run, "encoder_for", refuse)
    second = train(load_recipe(recipe, [f"init={first}", "stage=stage2", f"output={tmp_path / 'second'}"]))
    assert not torch.equal(weights(first)["vision.head.conv.weight"], weights(second)["vision.head.conv.weight"])
    assert [path for path in (tmp_path / "features").iterdir() if path.is_dir()] == stores
    monkeypatch.undo()
    # Another number of blocks is another point of the encoder.
    train(load_recipe(recipe, ["vision_blocks=1", f"output={tmp_path / 'third'}"]))
    assert len([path for path in (tmp_path / "features").iterdir() if path.is_dir()]) == 2


def test_a_stopped_run_goes_on_to_the_same_weights(recipe: Path, tmp_path: Path) -> None:
    whole = weights(train(load_recipe(recipe, ["precision=bf16", f"output={tmp_path / 'whole'}"])))
    save = TrainingState.save

    def stop(state: TrainingState, folder: Path) -> None:
        save(state, folder)
        raise KeyboardInterrupt

    stopped = load_recipe(recipe, ["precision=bf16", "save_every=3"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingState, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            train(stopped)
    resumed = weights(train(stopped))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("settings", [["vision_blocks=2"], ["vision_blocks=0"], ["cache=null"]])
def test_blocks_that_learn_are_computed_again_where_memory_is_short(
    recipe: Path, tmp_path: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    once, again = ([*settings, f"output={tmp_path / name}"] for name in ("once", "again"))
    kept = weights(train(load_recipe(recipe, once)))
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return checkpoint(*args, **kwargs)

    monkeypatch.setattr(recompute, "checkpoint", counted)
    less = weights(train(load_recipe(recipe, [*again, "gradient_checkpointing=true"])))
    steps, learning = 2 * 5, 10 if "vision_blocks=0" in settings else UPPER
    assert calls == steps * learning
    assert all(torch.equal(kept[name], less[name]) for name in kept)


def test_what_is_quantized_does_not_learn(recipe: Path, tmp_path: Path, tiny_model_folder: Path) -> None:
    small = quantize_model(tiny_model_folder, tmp_path / "small", 8).parent
    for settings in (["vision_blocks=2"], ["vision_blocks=0"], ["train_vision=false", "vision_blocks=0"]):
        with pytest.raises(OptionError, match=r"small is quantized, and such weights cannot learn"):
            train(load_recipe(recipe, [f"init={small}", *settings]))


def test_what_computes_features_stops_below_the_blocks_that_learn(tiny_model_folder: Path) -> None:
    parts = load_parts(tiny_model_folder)
    pixels = torch.randn(3, 3, 64, 64)
    found = encoder_for(parts, Precision.FLOAT32, UPPER)(pixels)
    torch.testing.assert_close(found, parts.network.vision.below(pixels, UPPER), rtol=1e-3, atol=1e-3)
    whole = parts.network.vision.above(found, UPPER)
    torch.testing.assert_close(whole, parts.network.vision(pixels), rtol=1e-3, atol=1e-3)


def test_rates_of_an_encoder() -> None:
    section = OptimizerSection(vision_rate=0.1, vision_layer_decay=0.5)
    names = ("vision.stem.conv.weight", "vision.blocks.2.weight", "vision.head.conv.weight", "vision.final_norm.bias")
    assert [rate_share(name, 3, section) for name in names] == pytest.approx([0.1 / 16, 0.05, 0.05, 0.05])
    assert rate_share("vision_norm.weight", 3, section) == 1.0


def test_what_contradicts_itself_is_told(recipe: Path) -> None:
    for settings, sentence in (
        (["train_vision=false"], "give train_vision=true"),
        (["vision_blocks=99"], "vision_blocks is 99, the image encoder has 10"),
        (["vision_blocks=-1"], "vision_blocks is -1: it must be at least 0"),
        (["optimizer.vision_rate=0"], "optimizer.vision_rate is 0"),
    ):
        with pytest.raises(OptionError, match=sentence):
            train(load_recipe(recipe, settings))
