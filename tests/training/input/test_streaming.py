"""Tars that are read as training goes: shared out, mixed, resumed, and whatever is wrong with them left out."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from openblip.data.image_files import OnBadImage
from openblip.data.pairs import DataSource, ImageText
from openblip.data.sources.open import tar_paths
from openblip.errors import OpenBlipError
from openblip.images.transform import ImageTransform
from openblip.training.input import loader as feeding
from openblip.training.input.streaming import InMemoryImages, RowSource, StreamedTars, StreamLoader
from openblip.training.loop.checkpoint import CHECKPOINT_FILE
from openblip.training.parallel.processes import ALONE, World
from openblip.training.recipe import NewModel, Recipe, Stage, problems_of
from openblip.training.run import train
from tests.data.tiny_images import write_tar
from tests.training.conftest import COLOURS
from tests.training.parallel.test_processes import together
from tests.training.recipes import train_until_killed

RED = list(COLOURS)


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    colour = list(COLOURS.values())[number % 4]
    Image.new("RGB", (24, 20), tuple(max(0, part - number % 7) for part in colour)).save(buffer, "JPEG")
    return buffer.getvalue()


def members(numbers: range) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for number in numbers:
        found[f"{number:04}.jpg"] = jpeg(number)
        found[f"{number:04}.json"] = json.dumps({"url": "x"}).encode()
        found[f"{number:04}.txt"] = f"a {RED[number % 4]} ball".encode()
    return found


def write_shards(folder: Path, *rows: int) -> Path:
    for number, count in enumerate(rows):
        first = sum(rows[:number])
        write_tar(folder / f"{number:05}.tar", members(range(first, first + count)))
    return folder


def recipe_of(folder: Path, **changes: object) -> Recipe:
    source = DataSource("web", table="*.tar", stream=True, shuffle=8, readers=2)
    recipe = Recipe(Stage.STAGE1, "out", [source], data_root=str(folder), init="x", cache=None, batch_size=4)
    return replace(recipe, **changes)  # type: ignore[arg-type]


def feed_of(recipe: Recipe, world: World = ALONE, *more: RowSource) -> StreamLoader:
    streamed = [StreamedTars(source, tar_paths(source, Path(recipe.data_root))) for source in recipe.data]
    return StreamLoader(recipe, [*streamed, *more], ImageTransform(16), lambda image: bool(image.captions), world)


def names(loader: StreamLoader, epoch: int = 0, skip: int = 0, batches: int | None = None) -> list[str]:
    count = loader.steps - skip if batches is None else batches
    taken = islice(loader.batches(epoch, skip), count)
    return [drawn.pair.image.name for rows, _ in taken for drawn in rows]


@pytest.mark.parametrize("rows", [(6, 6, 6, 6), (24,), (12, 3, 9)], ids=["tars", "one-tar", "three-tars"])
def test_processes_see_disjoint_rows_that_together_are_an_epoch(tmp_path: Path, rows: tuple[int, ...]) -> None:
    write_shards(tmp_path, *rows)
    recipe = recipe_of(tmp_path)
    recipe.data[0].rows = 24
    size = 2 if len(rows) != 3 else 4  # with fewer tars than processes, rows are shared out
    feeds = [feed_of(recipe, World(rank, size)) for rank in range(size)]
    assert {loader.steps for loader in feeds} == {6}
    first, second = ([names(loader, epoch) for loader in feeds] for epoch in (0, 1))
    for epoch in (first, second):
        assert sorted(name for seen in epoch for name in seen) == [f"{number:04}.jpg" for number in range(24)]
    assert first != second and first[0] != sorted(first[0])
    assert first == [names(feed_of(recipe, World(rank, size))) for rank in range(size)]
    numbers = {drawn.number for loader in feeds for rows, _ in islice(loader.batches(0, 0), 6) for drawn in rows}
    assert len(numbers) == 24


def test_a_process_with_fewer_rows_begins_anew_and_takes_as_many_steps(tmp_path: Path) -> None:
    write_shards(tmp_path, 3, 11)
    recipe = recipe_of(tmp_path, steps_per_epoch=6, accumulate=2)
    seen = [names(feed_of(recipe, World(rank, 2))) for rank in range(2)]
    assert [len(each) for each in seen] == [24, 24]
    assert not set(seen[0][:3]) & set(seen[1][:3])


def test_an_epoch_goes_on_from_any_batch_and_opens_no_image_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path, 9, 14, 5)
    (tmp_path / "00002.tar").write_bytes((tmp_path / "00002.tar").read_bytes()[:3000])
    recipe = recipe_of(tmp_path, steps_per_epoch=7)
    known = InMemoryImages(DataSource("more"), [ImageText(tmp_path / f"{n}.png", (f"{n}",)) for n in range(5)])
    for number in range(5):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    recipe.data[0].rows = 28

    def shown(skip: int, count: int) -> list[list[tuple[str, float, float]]]:
        taken = islice(feed_of(recipe, World(1, 2), known).batches(3, skip), count)
        return [
            [
                (drawn.pair.image.name, drawn.rng.random(), float(row.sum()))
                for drawn, row in zip(rows, views.pixels, strict=True)
            ]
            for rows, views in taken
            if views is not None and views.pixels is not None
        ]

    whole = shown(0, 7)
    kinds = Counter(name[-3:] for batch in whole for name, _, _ in batch)
    assert len(kinds) == 2, "both sources have their share"
    opened: list[str] = []
    look = feeding.open_image
    monkeypatch.setattr(feeding, "open_image", lambda each: opened.append(each.name) or look(each))
    for skip in range(7):
        assert shown(skip, 7 - skip) == whole[skip:]
    opened.clear()
    shown(6, 1)
    assert len(opened) <= 2 + max(2, 2 * 8)  # a batch, and what is read ahead of it


def test_what_is_wrong_is_left_out_and_listed(tmp_path: Path) -> None:
    write_shards(tmp_path, 8)
    odd = members(range(100, 108))
    odd["0100.jpg"] = b"no image"
    odd["0101.jpg"] = odd["0101.jpg"][: len(odd["0101.jpg"]) // 2]
    odd["0102.json"] = b'{"half": '
    del odd["0103.txt"]
    odd["0104.txt"] = b" \n"
    odd = {name: content for name, content in odd.items() if name != "0105.jpg"}  # a row without an image is none
    write_tar(tmp_path / "00001.tar", odd)
    cut = write_tar(tmp_path / "00002.tar", members(range(200, 208)))
    cut.write_bytes(cut.read_bytes()[:9000])
    (tmp_path / "00003.tar").write_bytes(b"rubbish" * 99)
    recipe = recipe_of(tmp_path, steps_per_epoch=12)
    recipe.data[0].table = "{00000..00004}.tar"
    loader = feed_of(recipe)
    seen = set(names(loader))
    bad = {str(each.image).rpartition("/")[2]: each.problem for each in loader.take_unreadable()}
    assert not loader.take_unreadable()
    assert bad.keys() == {*(f"{number:04}.jpg" for number in range(100, 105)), *(f"0000{n}.tar" for n in (1, 2, 3, 4))}
    assert bad["00001.tar"] == "has files that are left out: texts without an image of their name (2, 0105.json first)"
    assert "its JSON cannot be read" in bad["0102.jpg"] and "nothing that this stage" in bad["0103.jpg"]
    assert "is cut short" in bad["00002.tar"] and "is no tar" in bad["00003.tar"] and "No such" in bad["00004.tar"]
    assert seen >= {"0000.jpg", "0107.jpg", "0200.jpg"} and not seen & bad.keys()
    with pytest.raises(OpenBlipError, match=r"cannot be read|cut short|no tar|nothing that|no image"):
        names(feed_of(replace(recipe, on_bad_image=OnBadImage.STOP)))


def test_a_batch_that_is_all_bad_waits_for_the_next(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {f"{n:04}.jpg": b"bad" for n in range(5)} | members(range(5, 12)))
    recipe = recipe_of(tmp_path, steps_per_epoch=6, batch_size=2)
    recipe.data[0].shuffle = 1
    whole = names(feed_of(recipe))
    assert len(whole) == 12 and set(whole) <= {f"{n:04}.jpg" for n in range(5, 12)}
    for skip in range(6):
        assert names(feed_of(recipe), skip=skip) == whole[2 * skip :]
    write_tar(tmp_path / "a.tar", {f"{n:04}.jpg": b"bad" for n in range(5)})
    with pytest.raises(OpenBlipError, match="none of 40 images in a row can be read"):
        names(feed_of(recipe))


def test_a_process_whose_only_tar_is_broken_reads_the_others(tmp_path: Path) -> None:
    write_shards(tmp_path, 6, 6)
    (tmp_path / "00000.tar").write_bytes(b"")
    recipe = recipe_of(tmp_path, steps_per_epoch=3)
    seen = [names(feed_of(recipe, World(rank, 2))) for rank in range(2)]
    assert all(len(each) == 6 and set(each) <= {f"{n:04}.jpg" for n in range(6, 12)} for each in seen)
    (tmp_path / "00001.tar").write_bytes(b"")
    with pytest.raises(OpenBlipError, match="'web' has no rows"):
        names(feed_of(recipe))


def test_held_out_rows_are_not_learnt_from(tmp_path: Path) -> None:
    write_shards(tmp_path, 20)
    recipe = recipe_of(tmp_path, steps_per_epoch=5)
    recipe.data[0].held_out = 3
    assert 8 <= len(set(names(feed_of(recipe)))) < 20


@pytest.mark.parametrize(
    ("changes", "source", "words"),
    [
        ({}, {}, "nobody knows how long an epoch of web is.*give steps_per_epoch, or rows"),
        ({"steps_per_epoch": 2, "cache": "features"}, {}, "give cache=null"),
        ({"steps_per_epoch": 2}, {"table": None, "dataset": "coco_caption"}, "which is for tars"),
        ({"steps_per_epoch": 2}, {"split": "train"}, "have no splits"),
        ({"steps_per_epoch": 2}, {"readers": 0}, "readers of web is 0"),
        ({"steps_per_epoch": 2}, {"stream": False}, "steps_per_epoch is for data that are streamed"),
        ({"steps_per_epoch": -1}, {}, "steps_per_epoch is -1"),
        ({"steps_per_epoch": 2, "stage": Stage.STAGE2, "self_critical": 2}, {}, "need all texts before"),
        ({"steps_per_epoch": 2, "init": None, "new": NewModel("a", "b")}, {}, "need all texts before"),
    ],
)
def test_what_does_not_go_with_a_stream_is_said(
    tmp_path: Path, changes: dict[str, object], source: dict[str, object], words: str
) -> None:
    recipe = recipe_of(tmp_path)
    recipe = replace(recipe, **changes, data=[replace(recipe.data[0], **source)])  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(list(problems_of(recipe)))


def write_recipe(folder: Path, shards: Path, model: Path, **changes: object) -> Path:
    path = folder / "recipe.yaml"
    content = {
        "stage": "stage1",
        "init": model.as_posix(),
        "data_root": shards.as_posix(),
        "cache": None,
        "output": (folder / "run").as_posix(),
        "data": [{"name": "web", "table": "{00000..00003}.tar", "stream": True, "shuffle": 5, "readers": 2}],
        "epochs": 2,
        "steps_per_epoch": 4,
        "batch_size": 4,
        "save_every": 1,
        "threads": 1,
        "dropout": 0.2,
        "device": "cpu",
        "optimizer": {"lr": 1.0e-3, "warmup_steps": 2},
        "monitor": {"tensorboard": False},
    }
    path.write_text(json.dumps(content | changes))
    return path


def run(recipe: Path, output: Path, *extras: str) -> list[str]:
    return ["-m", "openblip", "train", str(recipe), f"output={output}", *extras]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path, tiny_model_folder: Path, stage: str) -> None:
    from openblip.training.recipe import load_recipe

    shards = write_shards(tmp_path / "shards", 5, 7, 4)  # the fourth is missing
    recipe = write_recipe(tmp_path, shards, tiny_model_folder, stage=stage)
    whole = train(load_recipe(recipe, [f"output={tmp_path / 'whole'}"]))
    killed = tmp_path / "killed"
    train_until_killed(load_recipe(recipe, [f"output={killed}"]), 6)
    position = torch.load(killed / CHECKPOINT_FILE, weights_only=True)["position"]
    assert position["total"] == 6
    train(load_recipe(recipe, [f"output={killed}"]))
    expected, found = (load_file(folder / "model.safetensors") for folder in (whole, killed))
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    with (killed / "skipped.csv").open(newline="") as file:
        assert [Path(row["image"]).name for row in csv.DictReader(file)] == ["00003.tar"]
    start = load_file(tiny_model_folder / "model.safetensors")
    assert any(not torch.equal(start[name], found[name]) for name in start)


def test_two_processes_with_unequal_tars_train_together(tmp_path: Path, tiny_model_folder: Path) -> None:
    shards = write_shards(tmp_path / "shards", 2, 9, 3)
    write_tar(shards / "00003.tar", {f"{n}.jpg": b"bad" for n in range(3)})
    recipe = write_recipe(tmp_path, shards, tiny_model_folder)
    output = tmp_path / "two"
    together(run(recipe, output), 2)
    assert (output / "model.safetensors").is_file()
    with (output / "skipped.csv").open(newline="") as file:
        listed = {Path(row["image"]).name for row in csv.DictReader(file)}
    assert listed == {"0.jpg", "1.jpg", "2.jpg"}
    with (output / "curves.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 8
