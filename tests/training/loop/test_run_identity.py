"""What a run is told by: it goes on from its own checkpoint, and from no other."""

from __future__ import annotations

import json
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from openblip.checkpoints.blip2_models import MINI
from openblip.errors import OpenBlipError
from openblip.training.loop.checkpoint import CHECKPOINT_FILE
from openblip.training.loop.run_identity import FREE, changes, identity_of, starting_files
from openblip.training.lora.adapters import LoraSection
from openblip.training.recipe import Precision, Recipe, Stage, load_recipe
from openblip.training.run import train
from tests.training.recipes import EVALUATED, write_small_recipe

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "89abcdef0123456789abcdef0123456789abcdef"


@pytest.fixture
def recipe(tmp_path: Path, data: Path, tiny_model_folder: Path) -> Path:
    """Stage 1 on images."""
    return write_small_recipe(
        tmp_path, data, tiny_model_folder, stage="stage1", cache=None, epochs=6, batch_size=5, save_every=1000
    )


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the hub's own library, empty, without the hub."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "home/hub"


def first_epoch(path: Path, *overrides: str) -> Path:
    """A run whose checkpoint is there."""
    return train(load_recipe(path, ["epochs=1", *overrides]))


def test_a_starting_model_that_changed_is_noticed(recipe: Path, tmp_path: Path, tiny_model_folder: Path) -> None:
    start = tmp_path / "start"
    start.mkdir()
    for file in tiny_model_folder.iterdir():
        (start / file.name).write_bytes(file.read_bytes())
    folder = first_epoch(recipe, f"init={start}")
    # A copy elsewhere is the same model, whatever its times.
    moved = start.rename(tmp_path / "moved")
    os.utime(moved / "model.safetensors", (1, 1))
    (moved / "notes.md").write_text("no part of the model")
    assert first_epoch(recipe, f"init={moved}") == folder
    state = load_file(moved / "model.safetensors")
    frozen = next(name for name in state if name.startswith("vision.") and state[name].ndim == 4)
    size = (moved / "model.safetensors").stat().st_size
    state[frozen].view(-1)[0] += 1
    save_file(state, moved / "model.safetensors", metadata={"format": "pt"})
    assert (moved / "model.safetensors").stat().st_size == size
    with pytest.raises(OpenBlipError, match=r"started from has changed since: model\.safetensors of init\. Put back"):
        first_epoch(recipe, f"init={moved}")


def test_a_model_of_the_hub_is_told_by_its_files(recipe: Path, hub: Path, tiny_model_folder: Path) -> None:
    """As the hub's own library lays them out: links in a snapshot to files that are named by their content."""
    cache = hub / "models--someone--tiny"
    snapshot, blobs = cache / "snapshots" / COMMIT, cache / "blobs"
    for place in (snapshot, blobs, cache / "refs"):
        place.mkdir(parents=True)
    (cache / "refs/main").write_text(COMMIT)
    for number, file in enumerate(sorted(tiny_model_folder.iterdir())):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(blobs / str(number))
    folder = first_epoch(recipe, f"init={tiny_model_folder}")
    # The same weights by another name are the same start.
    assert first_epoch(recipe, "init=someone/tiny") == folder
    config = (snapshot / "config.json").resolve()
    config.write_text(config.read_text() + "\n")
    with pytest.raises(
        OpenBlipError, match=r"differs in file config\.json of init|changed since: config\.json of init"
    ):
        first_epoch(recipe, "init=someone/tiny")


def test_the_bundled_model_is_told_by_its_own_files(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `init`, where it is a name; whatever else is called so in the current folder is what other keys mean."""
    monkeypatch.chdir(tmp_path)
    Path("mini").mkdir()
    own = Path("mini").absolute() / "model.safetensors"
    own.write_bytes(b"another")
    settings = ["init=mini", "decoder=mini", "fresh_qformer=mini"]
    found = starting_files(load_recipe(recipe, settings))
    assert (MINI.folder / "model.safetensors") in found["init"]
    assert found["decoder"] == found["fresh_qformer"] == [own]
    own.unlink()
    own.parent.rmdir()
    Path("mini").write_bytes(b"a file")
    again = starting_files(load_recipe(recipe, settings))
    assert again["init"] == found["init"] and again["decoder"] == [Path("mini")]


def test_a_language_model_is_told_by_the_files_of_its_revision(
    tmp_path: Path, data: Path, tiny_model_folder: Path, hub: Path
) -> None:
    cache = hub / "models--someone--words"
    settings: dict[str, Any] = {"language_model": "someone/words", "language_model_revision": "v2"}
    path = write_small_recipe(tmp_path, data, tiny_model_folder, stage="stage2", **settings)

    def arrives(revision: str, commit: str) -> Path:
        snapshot = cache / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (cache / "refs").mkdir(exist_ok=True)
        (cache / "refs" / revision).write_text(commit)
        for file in ("config.json", "tokenizer.json", "model.safetensors"):
            (snapshot / file).write_text(json.dumps({"revision": revision}))
        return snapshot

    pinned = arrives("v2", COMMIT)
    found = starting_files(load_recipe(path))["language_model"]
    assert {file.parent.resolve() for file in found} == {pinned.resolve()}
    arrives("main", OTHER)
    assert starting_files(load_recipe(path))["language_model"] == found


def test_a_checkpoint_from_before_a_key_was_there_is_gone_on_from(recipe: Path, tmp_path: Path) -> None:
    first_epoch(recipe, *EVALUATED)
    path = tmp_path / "run" / CHECKPOINT_FILE
    content = torch.load(path, weights_only=True)
    del content["identity"]["vision_blocks"]
    sources, evaluation = (json.loads(content["identity"][key]) for key in ("data", "evaluation"))
    for source in (*sources, evaluation["data"]):
        del source["readers"]
    content["identity"] |= {"data": json.dumps(sources), "evaluation": json.dumps(evaluation)}
    optimizer = json.loads(content["identity"]["optimizer"])
    del optimizer["vision_rate"]
    content["identity"]["optimizer"] = json.dumps(optimizer)
    torch.save(content, path)
    (tmp_path / "run/model.safetensors").unlink()
    assert (first_epoch(recipe, *EVALUATED) / "model.safetensors").exists()
    for changed, named in (
        (["optimizer.vision_rate=0.5"], "optimizer"),
        (["train_vision=true", "vision_blocks=2"], "train_vision, vision_blocks"),
        (["data.0.min_area=0.5"], "data"),
        (["evaluation.data.min_area=0.5"], "evaluation"),
    ):
        with pytest.raises(OpenBlipError, match=f"differs in {named}: "):
            first_epoch(recipe, *EVALUATED, *changed)


def test_a_starting_model_that_changes_meanwhile_is_noticed(
    recipe: Path, tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = tmp_path / "start"
    start.mkdir()
    for file in tiny_model_folder.iterdir():
        (start / file.name).write_bytes(file.read_bytes())
    config = (start / "config.json").read_text()
    from openblip.training.loop.trainer import Trainer

    run = Trainer.run

    def changing(self: Trainer) -> Any:
        learnt = run(self)
        (start / "config.json").write_text(config + "\n")
        return learnt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", changing)
        with pytest.raises(OpenBlipError, match=r"changed since: config\.json of init"):
            first_epoch(recipe, f"init={start}")
    assert not (tmp_path / "run/model.safetensors").exists()
    (start / "config.json").write_text(config)
    assert (first_epoch(recipe, f"init={start}") / "model.safetensors").exists()


def test_what_changes_nothing_may_change_between_two_sittings(recipe: Path) -> None:
    plain = ["epochs=1", "evaluation.every=1"]
    train(load_recipe(recipe, plain))
    # Without data to evaluate on, nothing of it matters.
    train(load_recipe(recipe, ["epochs=1", "evaluation.every=3", "evaluation.limit=7", "evaluation.samples=0"]))


def test_patience_may_grow(recipe: Path) -> None:
    evaluated = [*EVALUATED, "evaluation.patience=3"]
    train(load_recipe(recipe, evaluated))
    train(load_recipe(recipe, [*evaluated, "evaluation.samples=1", "evaluation.patience=5"]))
    train(load_recipe(recipe, [*EVALUATED, "evaluation.patience=0"]))
    for changed, named in (
        (["evaluation.patience=2"], "evaluation.patience"),
        (["evaluation.patience=3", "evaluation.every=2"], "evaluation"),
        (["evaluation.patience=3", "evaluation.metric=text_to_image_at_1"], "evaluation"),
    ):
        with pytest.raises(OpenBlipError, match=f"differs in {named}: "):
            train(load_recipe(recipe, [*EVALUATED, *changed]))


@pytest.mark.parametrize("key", sorted({field.name for field in fields(Recipe)} - {*FREE, "new", "new_blip"}))
def test_what_was_set_otherwise_is_told_with_both_values(recipe: Path, key: str) -> None:
    usual = load_recipe(recipe)
    value = getattr(usual, key)
    sections: dict[str, tuple[Any, str, str, str]] = {
        "stage": (Stage.STAGE2, "stage", "stage1", "stage2"),
        "data": ([replace(usual.data[0], min_area=0.5)], "data.0.min_area", "0.6", "0.5"),
        "optimizer": (replace(usual.optimizer, lr=0.01), "optimizer.lr", "0.001", "0.01"),
        "momentum": (replace(usual.momentum, alpha=0.3), "momentum.alpha", str(usual.momentum.alpha), "0.3"),
        "mixture": (replace(usual.mixture, questions=0.25), "mixture.questions", str(usual.mixture.questions), "0.25"),
        "lora": (LoraSection(rank=4), "lora", "null", '{"rank": 4,'),
        "precision": (Precision.BF16, "precision", "float32", "bf16"),
        "qformer_precision": (Precision.BF16, "qformer_precision", "float32", "bf16"),
    }
    if key in sections:
        after, name, then, now = sections[key]
    elif value is None or isinstance(value, str):
        after, name, then, now = "no/where", key, value or "null", "no/where"
    else:
        after = (not value) if isinstance(value, bool) else value + 1
        name, then, now = key, json.dumps(value), json.dumps(after)
    found = changes(identity_of(usual, []), identity_of(replace(usual, **{key: after}), []))
    then = "a model on this machine" if key == "init" else then
    assert [(change.key, change.then) for change in found] == [(name, then)]
    assert found[0].now.startswith(now)
    assert str(found[0]) == f"{name} was {then}, now {found[0].now}"


def test_a_changed_setting_is_told_with_how_to_go_on(recipe: Path, tmp_path: Path) -> None:
    first_epoch(recipe)
    told = (
        r"checkpoint\.pt is of another run, which differs in optimizer, cached: delete it, or give this run another "
        r"output folder, or go on with its settings: optimizer\.lr was 0\.001, now 0\.01; "
        r"optimizer\.min_lr was .*, now 0\.002; cache was null, now a folder$"
    )
    with pytest.raises(OpenBlipError, match=told):
        first_epoch(recipe, "optimizer.lr=0.01", "optimizer.min_lr=0.002", f"cache={tmp_path / 'features'}")
