"""Runs whose features are all on disk go without the image encoder, to the same weights."""

from __future__ import annotations

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.tensors.files import SafetensorsFile
from openblip.data.feature_store import FeatureStore
from openblip.data.pairs import load_pairs
from openblip.errors import OpenBlipError
from openblip.nn.vit import VisionTransformer
from openblip.training.feature_cache.build import FeatureCache
from openblip.training.feature_cache.encoder_stub import EncoderStub
from openblip.training.feature_cache.index import ENCODERS_FILE, EncoderSpeed
from openblip.training.feature_cache.speedup import SPEEDUP_FILE, Speedup
from openblip.training.init.start import start_model
from openblip.training.loop.checkpoint import TrainingState
from openblip.training.loop.precision import Arithmetic
from openblip.training.loop.trainer import Trainer
from openblip.training.monitor.profile import PROFILE_FILE, peak_memory
from openblip.training.parallel.processes import World
from openblip.training.recipe import load_recipe
from openblip.training.run import encoder_for, train
from openblip.training.tasks.task import Runtime
from tests.checkpoints.theirs import write_writer

from .recipes import write_small_recipe


@pytest.fixture
def model(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))


@pytest.fixture
def recipe(tmp_path: Path, data: Path, model: Path) -> Path:
    return write_small_recipe(tmp_path, data, model, stage="stage2", epochs=1, batch_size=5, log_every=2)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tensors that are read, and "trained" where training ends."""
    names: list[str] = []
    read, run = SafetensorsFile.read, Trainer.run

    def noted(file: SafetensorsFile, name: str) -> Tensor:
        names.append(name)
        return read(file, name)

    def watched(trainer: Trainer) -> dict[str, Tensor]:
        assert isinstance(trainer.task.network.vision, EncoderStub)
        found = run(trainer)
        names.append("trained")
        return found

    monkeypatch.setattr(SafetensorsFile, "read", noted)
    monkeypatch.setattr(Trainer, "run", watched)
    return names


def seen(reads: list[str]) -> tuple[int, int]:
    """How many tensors of the encoder were read until training was over, and how many since; starts anew."""
    end = reads.index("trained") if "trained" in reads else len(reads)
    counts = [sum(name.startswith("vision.") for name in part) for part in (reads[:end], reads[end:])]
    reads.clear()
    return counts[0], counts[1]


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def same(first: dict[str, Tensor], second: dict[str, Tensor], but: str = "-") -> bool:
    names = [name for name in first if not name.startswith(but)]
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in names)


def stores(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "features").iterdir() if path.is_dir())


@pytest.mark.parametrize(
    "settings",
    [["stage=stage1"], ["precision=bf16", "train_decoder=true", "ema=0.5"]],
    ids=["stage1", "stage2"],
)
def test_the_encoder_is_read_to_compute_features_and_to_be_saved_alone(
    recipe: Path, model: Path, tmp_path: Path, reads: list[str], settings: list[str]
) -> None:
    first = weights(train(load_recipe(recipe, settings)))
    tensors = sum(name.startswith("vision.") for name in first)
    assert seen(reads) == (tensors, tensors)
    again = weights(train(load_recipe(recipe, [*settings, f"output={tmp_path / 'again'}"])))
    assert seen(reads) == (0, tensors)
    assert same(first, again)
    start = weights(model)
    assert all(torch.equal(again[name], start[name]) for name in start if name.startswith("vision."))


def test_a_run_neither_sees_nor_needs_the_encoders_numbers(recipe: Path, model: Path, tmp_path: Path) -> None:
    """They are exchanged behind its back, which only the saved model may show."""
    first = weights(train(load_recipe(recipe)))
    path = model / "model.safetensors"
    before, broken = path.stat(), weights(model)
    for name in broken:
        if name.startswith("vision.") and broken[name].is_floating_point():
            broken[name].fill_(3.0e38)  # what overflows as soon as anybody computes with it
    save_file(broken, path, metadata={"format": "pt"})
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    again = weights(train(load_recipe(recipe, [f"output={tmp_path / 'again'}"])))
    assert same(first, again, but="vision.")
    assert (again["vision.head.conv.weight"] == 3.0e38).all()


def test_an_encoder_that_was_changed_is_noticed(recipe: Path, model: Path, tmp_path: Path, reads: list[str]) -> None:
    first = weights(train(load_recipe(recipe)))
    seen(reads)
    changed = weights(model)
    changed["vision.head.norm.bias"] += 0.5
    save_file(changed, model / "model.safetensors", metadata={"format": "pt"})
    again = weights(train(load_recipe(recipe, [f"output={tmp_path / 'again'}"])))
    assert seen(reads)[0] > 0 and len(stores(tmp_path)) == 2
    assert not same(first, again, but="vision.")
    # The same numbers in files of another time are looked at once, and have their features already.
    os.utime(model / "config.json")
    for output, expected in (("third", True), ("fourth", False)):
        third = weights(train(load_recipe(recipe, [f"output={tmp_path / output}"])))
        assert (seen(reads)[0] > 0) is expected and len(stores(tmp_path)) == 2
        assert same(again, third)


def test_what_features_depend_on_is_known_apart(recipe: Path, tmp_path: Path, reads: list[str]) -> None:
    crops = json.dumps([{"name": "balls", "captions": "captions.jsonl", "views": 3}])
    for number, runtime in enumerate(["precision=float32", "precision=bf16", f"data={crops}"], start=1):
        train(load_recipe(recipe, [runtime, f"output={tmp_path / f'run{number}'}"]))
        assert seen(reads)[0] > 0 and len(stores(tmp_path)) == number


def test_a_store_that_lacks_some_is_completed(recipe: Path, tmp_path: Path, reads: list[str]) -> None:
    first = weights(train(load_recipe(recipe)))
    seen(reads)
    for path in stores(tmp_path)[0].iterdir():
        path.unlink()
    (tmp_path / "features" / ENCODERS_FILE).write_text("{")
    for output, expected in (("again", True), ("third", False)):
        again = weights(train(load_recipe(recipe, [f"output={tmp_path / output}"])))
        assert (seen(reads)[0] > 0) is expected and len(stores(tmp_path)) == 1
        assert same(first, again)


def test_images_that_nobody_can_read_need_no_encoder(
    recipe: Path, data: Path, tmp_path: Path, reads: list[str]
) -> None:
    (data / "images/03.png").write_bytes(b"no image")
    for output, expected in (("run", True), ("again", False)):
        folder = train(load_recipe(recipe, [f"output={tmp_path / output}"]))
        assert (seen(reads)[0] > 0) is expected
        assert "03.png" in (folder / "skipped.csv").read_text()


def test_a_stopped_run_goes_on_without_the_encoder(
    recipe: Path, tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights(train(load_recipe(recipe, ["epochs=2"])))
    seen(reads)
    save = TrainingState.save

    def stop(state: TrainingState, folder: Path) -> None:
        save(state, folder)
        raise KeyboardInterrupt

    stopped = load_recipe(recipe, ["epochs=2", f"output={tmp_path / 'stopped'}"])
    monkeypatch.setattr(TrainingState, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        train(stopped)
    monkeypatch.setattr(TrainingState, "save", save)
    assert same(whole, weights(train(stopped)))
    assert seen(reads)[0] == 0


def test_features_that_are_deleted_meanwhile_are_kept_in_hand(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = weights(train(load_recipe(recipe)))
    run = Trainer.run

    def deleted(trainer: Trainer) -> dict[str, Tensor]:
        shutil.rmtree(tmp_path / "features")
        return run(trainer)

    monkeypatch.setattr(Trainer, "run", deleted)
    assert same(first, weights(train(load_recipe(recipe, [f"output={tmp_path / 'again'}"]))))


def test_a_model_that_changes_under_a_run_is_not_mixed_with_what_it_learnt(
    recipe: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, path = Trainer.run, model / "model.safetensors"
    old = path.read_bytes()

    def changed(trainer: Trainer) -> dict[str, Tensor]:
        found = run(trainer)
        path.write_bytes(old[:-1] + bytes([old[-1] ^ 1]))
        return found

    monkeypatch.setattr(Trainer, "run", changed)
    with pytest.raises(OpenBlipError, match="what the run started from has changed since"):
        train(load_recipe(recipe))
    monkeypatch.setattr(Trainer, "run", run)
    path.write_bytes(old)
    assert (train(load_recipe(recipe)) / "model.safetensors").is_file()


def test_adapters_are_trained_and_saved_without_it(recipe: Path, tmp_path: Path, reads: list[str]) -> None:
    pytest.importorskip("peft")
    lora = f"lora={json.dumps({'rank': 2, 'targets': ['language_model', 'qformer']})}"
    found = []
    for output, expected in (("run", True), ("again", False)):
        folder = train(load_recipe(recipe, [lora, f"output={tmp_path / output}"]))
        before, after = seen(reads)
        assert (before > 0) is expected and after == 0
        found.append(load_file(folder / "adapter_model.safetensors"))
    assert same(*found)


def test_adapters_of_the_encoder_need_it(recipe: Path, tmp_path: Path) -> None:
    folder = write_writer(tmp_path / "theirs").folder
    for targets, needed in ((["qformer"], False), (["vision"], True), (["self_attn.qkv"], True)):
        asked = load_recipe(recipe, [f"init={folder}", f"lora={json.dumps({'rank': 2, 'targets': targets})}"])
        network = start_model(asked, [], encoder=False).network
        assert next(network.vision.parameters()).is_meta is not needed
    outline = start_model(replace(asked, lora=None, image_size=56), [], encoder=False).network.vision
    assert isinstance(outline, VisionTransformer) and outline.positions.shape[1] == 17 and outline.positions.is_meta


def test_processes_divide_the_images_whichever_is_ahead(recipe: Path, tiny_parts: ModelParts, tmp_path: Path) -> None:
    """The second finds what the first has done already, and does no more and no less than its part."""
    asked = load_recipe(recipe)
    images = [load_pairs(source, Path(asked.data_root)) for source in asked.data]
    sizes = []
    for rank in range(2):
        arithmetic = Arithmetic.of(torch.device("cpu"), asked.precision, asked.qformer_precision)
        caching = FeatureCache(asked, images, Runtime(arithmetic, World(rank, 2)))
        caching.complete(tiny_parts, lambda: encoder_for(tiny_parts, asked.precision), lambda: None)
        sizes.append(len(FeatureStore(stores(tmp_path)[0])))
    assert sizes == [10, 20]
    known = json.loads((tmp_path / "features" / ENCODERS_FILE).read_text())
    assert list(known["fingerprints"].values()) == list(known["speeds"]) == [stores(tmp_path)[0].name]


def test_a_stage_that_does_not_look_reads_no_encoder(recipe: Path, model: Path, reads: list[str]) -> None:
    found = weights(train(load_recipe(recipe, ["stage=language"])))
    before, after = seen(reads)
    assert before == 0 and after > 0
    start = weights(model)
    assert all(torch.equal(found[name], start[name]) for name in start if name.startswith("vision."))


def test_what_stands_for_the_encoder_says_so() -> None:
    encoder = EncoderStub()
    assert not list(encoder.parameters())
    with pytest.raises(OpenBlipError, match="the image encoder is not loaded"):
        encoder(torch.zeros(1, 3, 8, 8))


def test_what_features_on_disk_gain_is_said_and_written(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for output in ("run", "again"):
        folder = train(load_recipe(recipe, [f"output={tmp_path / output}"]))
        told = " ".join(capsys.readouterr().out.split())
        assert ("features of balls: " in told) is (output == "run")
        assert "with the image encoder about" in told and "times as long" in told
        found = json.loads((folder / SPEEDUP_FILE).read_text())
        store = found["stores"]["balls"]
        assert store["images"] == 20
        assert store["bytes"] == sum(load.stat().st_size - 128 for load in Path(store["folder"]).glob("*.npy"))
        assert found["times as fast, about"] > 1
        assert found["encoder measured on"] == found["machine"] == "the CPU with 1 thread"


def test_gain_is_the_encoders_time_for_the_views_of_a_step() -> None:
    speedup = Speedup({}, EncoderSpeed(0.25, "another"), views=8, machine="this")
    said = [speedup.step(seconds, last) for seconds, last in ((9.0, False), (0.5, False), (0.5, True), (0.5, True))]
    assert said[:2] == [None, None] and said[3] is None
    assert speedup.with_features == 0.5 and speedup.with_encoder == 2.5
    assert said[2] is not None and "5.0 times as long (the encoder was timed on another)" in said[2]
    assert Speedup({}, None, 8, "this").step(0.5, True) == "features from disk (0.0 MB): a step takes 0.5 s"


def test_memory_is_recorded_with_every_line(recipe: Path, data: Path) -> None:
    folder = train(load_recipe(recipe))
    with (folder / PROFILE_FILE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4"]
    assert all(float(row["images/s"]) > 0 for row in rows)
    peaks = [float(row["peak memory GB"]) for row in rows]
    # All of PyTorch is in it, and nothing is forgotten.
    assert 0.05 < peaks[0] <= peaks[1] <= peak_memory(torch.device("cpu")) / 1e9 + 1e-3
    before = peak_memory(torch.device("cpu"))
    kept = torch.ones(before // 4 + 2**23)
    assert peak_memory(torch.device("cpu")) >= kept.nbytes > before
