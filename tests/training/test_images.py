"""Runs that read their images as they go, or whose images, disk or numbers are bad."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from torch import nn

from openblip.checkpoints.model_parts import ModelParts
from openblip.data.feature_store import FeatureStore
from openblip.errors import ImageError, OpenBlipError
from openblip.training.loop import checkpoint
from openblip.training.loop.nonfinite import first_nonfinite
from openblip.training.loop.optim import make_optimizer, rate_share, set_rate
from openblip.training.recipe import OptimizerSection, load_recipe
from openblip.training.run import train
from openblip.training.tasks.task import Views

from .recipes import write_small_recipe


@pytest.fixture
def recipe(tmp_path: Path, data: Path, tiny_model_folder: Path) -> Path:
    return write_small_recipe(tmp_path, data, tiny_model_folder, stage="stage1", epochs=2, batch_size=4)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def skipped(folder: Path) -> list[str]:
    with (folder / "skipped.csv").open(newline="") as file:
        return [Path(row["image"]).name for row in csv.DictReader(file)]


@pytest.mark.parametrize("cache", ["null", "features"])
def test_images_that_cannot_be_read_are_listed_and_left_out(
    recipe: Path, data: Path, tmp_path: Path, cache: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (data / "images/03.png").write_bytes(b"no image")
    (data / "images/11.png").unlink()
    whole = (data / "images/07.png").read_bytes()
    (data / "images/07.png").write_bytes(whole[: len(whole) // 2])
    place = cache if cache == "null" else str(tmp_path / cache)
    folder = train(load_recipe(recipe, [f"cache={place}"]))
    assert sorted(skipped(folder)) == ["03.png", "07.png", "11.png"]
    said = "".join(capfd.readouterr())
    assert said.count("cannot be read") >= 1 and "see skipped.csv" in said
    with pytest.raises(ImageError, match=r"(03|07|11)\.png"):
        train(load_recipe(recipe, [f"cache={place}", "on_bad_image=stop", f"output={tmp_path / 'stopped'}"]))


def test_paths_that_lead_nowhere_stop_the_run(recipe: Path, data: Path) -> None:
    for path in (data / "images").iterdir():
        path.unlink()
    with pytest.raises(OpenBlipError, match="20 of the 20 images of balls cannot be read"):
        train(load_recipe(recipe))
    with pytest.raises(OpenBlipError, match="none of 20 images in a row can be read"):
        train(load_recipe(recipe, ["cache=null"]))


def test_uncropped_images_train_as_their_features_do(recipe: Path, tmp_path: Path) -> None:
    """The same numbers but for the float16 of the features."""
    single = json.dumps([{"name": "balls", "captions": "captions.jsonl", "views": 1, "augment": False}])
    runs = [
        weights(train(load_recipe(recipe, [f"data={single}", f"cache={cache}", f"output={tmp_path / name}"])))
        for name, cache in (("cached", tmp_path / "features"), ("read", "null"))
    ]
    gaps = [float((runs[0][name] - runs[1][name]).float().abs().mean()) for name in runs[0]]
    assert 0 < max(gaps) < 1e-3


@pytest.mark.parametrize(
    "extra", ["ema=0.9", "accumulate=2", "precision=bf16", pytest.param("precision=fp16", marks=pytest.mark.slow)]
)
def test_a_run_that_reads_images_resumes_to_the_same_weights(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: str
) -> None:
    """Stopped by its disk, which is full (a limit on the size of files) from the second checkpoint on."""
    settings = ["cache=null", "train_vision=true", "dropout=0.2", "epochs=3", extra]
    whole = train(load_recipe(recipe, [*settings, f"output={tmp_path / 'whole'}"]))
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    write, calls = checkpoint.write_whole, []

    def limited(content: Any, path: Path) -> None:
        calls.append(path)
        if len(calls) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        write(content, path)

    monkeypatch.setattr(checkpoint, "write_whole", limited)
    try:
        with pytest.raises(OpenBlipError, match="cannot be written, the disk is full"):
            train(load_recipe(recipe, [*settings, f"output={tmp_path / 'stopped'}"]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        monkeypatch.setattr(checkpoint, "write_whole", write)
    assert not (tmp_path / "stopped/model.safetensors").exists()
    resumed = train(load_recipe(recipe, [*settings, f"output={tmp_path / 'stopped'}"]))
    expected, found = weights(whole), weights(resumed)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    start = weights(Path(str(load_recipe(recipe).init)))
    assert any(not torch.equal(found[name], start[name]) for name in found if name.startswith("vision."))


def test_a_broken_shard_is_computed_again(recipe: Path, tmp_path: Path) -> None:
    first = weights(train(load_recipe(recipe)))
    shards = list((tmp_path / "features").glob("*/*.npy"))
    for shard in shards:
        shard.write_bytes(shard.read_bytes()[:-1000])
    broken = FeatureStore(shards[0].parent).broken
    assert broken and broken[0] in shards
    again = weights(train(load_recipe(recipe, [f"output={tmp_path / 'again'}"])))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_averaged_weights_follow_the_run(recipe: Path, tmp_path: Path) -> None:
    plain = weights(train(load_recipe(recipe, ["epochs=4"])))
    mean = weights(train(load_recipe(recipe, ["epochs=4", "ema=0.5", f"output={tmp_path / 'mean'}"])))
    start = weights(Path(str(load_recipe(recipe).init)))
    name = "qformer.queries"
    gone, followed = (plain[name] - start[name]).norm(), (mean[name] - start[name]).norm()
    assert 0.5 * gone < followed < gone


def test_the_first_bad_number_is_named(tiny_parts: ModelParts) -> None:
    network = tiny_parts.network
    pixels = torch.zeros(1, 3, 64, 64)
    seen = Views(pixels=pixels)
    assert first_nonfinite(network, Views(pixels=pixels / 0), lambda: None) == "the pixels that came in"

    def overflow() -> None:
        network.qformer.layers[0](torch.full((1, 4, 32), 1e38) * 1e38, None, None, None)

    handle = network.vision_norm.register_forward_hook(lambda *_: torch.full((1,), float("inf")))
    try:
        assert first_nonfinite(network, seen, lambda: network.vision_norm(torch.zeros(1, 2, 1288))) in (
            "what vision_norm gives",
        )
    finally:
        handle.remove()
    assert first_nonfinite(network, seen, lambda: None) == "the loss itself"


def test_lower_vision_blocks_learn_more_slowly() -> None:
    section = OptimizerSection(vision_layer_decay=0.5)
    shares = [
        rate_share(name, 3, section) for name in ("vision.patch.weight", *(f"vision.blocks.{i}.w" for i in range(3)))
    ]
    assert shares == [0.5**4, 0.5**3, 0.5**2, 0.5]
    assert rate_share("qformer.queries", 3, section) == 1.0
    parameters = {
        name: nn.Parameter(torch.ones(shape))
        for name, shape in (("vision.blocks.0.w", (2, 2)), ("vision.blocks.1.w", (2, 2)), ("qformer.b", (2,)))
    }
    optimizer = make_optimizer(parameters, OptimizerSection(vision_layer_decay=0.5))
    set_rate(optimizer, 1.0)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (0.25, 0.05),
        (0.5, 0.05),
        (1.0, 0.0),
    ]


def test_two_runs_do_not_write_to_one_folder(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run/.lock"), pytest.raises(OpenBlipError, match="another run is writing to"):
        train(load_recipe(recipe))
    (tmp_path / "file").write_text("")
    with pytest.raises(OpenBlipError, match=r"output .*file cannot be written"):
        train(load_recipe(recipe, [f"output={tmp_path / 'file'}"]))
    assert (train(load_recipe(recipe)) / "model.safetensors").exists()
