"""Every file of every layout, damaged in every way: the model loads, or one sentence names the file or its folder.

What loads all the same (a comment more, a key that nobody reads) has to be able to write and to match afterwards.
"""

from __future__ import annotations

import copy
import json
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import openblip
from openblip.checkpoints.lavis.read import LavisFiles, read_lavis
from openblip.checkpoints.loading import load_parts
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.openblip.folder import save_native
from openblip.checkpoints.transformers.blip import save_blip_folder
from openblip.errors import CheckpointError, OpenBlipError
from openblip.models.model import Model
from tests.checkpoints.clip_theirs import write_clip
from tests.checkpoints.lavis.test_read import lay_out
from tests.checkpoints.theirs import FLAN, write_matcher, write_t5_writer, write_writer
from tests.models.blip_models import small_parts
from tests.pairs.lavis import recorded_config, recorded_weights

SEED = 18
LAYOUTS = ("float16", "int8", "opt", "t5", "matcher", "shards", "bin", "lavis", "blip", "own blip", "clip", "own clip")
DEEP = "[" * 100_000
VALUES: tuple[object, ...] = (
    *(None, True, 0, -1, 7, 2.5, 10**9, 10**30, -0.0, 1e308, float("nan"), float("inf")),
    *("", "x", "\ud800", "{", [], [None], [[]], {}, {"a": 1}, [0.5] * 3, ["0.5"] * 3),
)
"""What may stand at any key of a JSON file."""


def write_layouts(folder: Path, tiny: ModelParts) -> None:
    """One small model of each layout, in folders of those names."""
    save_native(tiny, folder / "float16", "float16")
    save_native(tiny, folder / "int8", "int8")
    write_writer(folder / "opt")
    write_t5_writer(folder / "t5", FLAN)
    write_matcher(folder / "matcher")
    for layout in ("shards", "bin"):
        shutil.copytree(folder / "opt", folder / layout)
    state = load_file(folder / "opt" / "model.safetensors")
    names = sorted(state)
    for layout, ending, write in (("shards", "safetensors", save_file), ("bin", "bin", torch.save)):
        (folder / layout / "model.safetensors").unlink()
        whole = "model" if layout == "shards" else "pytorch_model"
        places = {}
        for number in (1, 2):
            shard = f"{whole}-0000{number}-of-00002.{ending}"
            write({name: state[name].clone() for name in names[number - 1 :: 2]}, folder / layout / shard)
            places |= dict.fromkeys(names[number - 1 :: 2], shard)
        index = {"metadata": {}, "weight_map": places}
        (folder / layout / f"{whole}.{ending}.index.json").write_text(json.dumps(index))
    save_blip_folder(small_parts("caption", folder), folder / "blip")
    save_native(small_parts("match", folder), folder / "own blip", "float16")
    write_clip(folder / "clip")
    openblip.load(folder / "clip", device="cpu").save(folder / "own clip")
    (folder / "lavis").mkdir()
    lay_out(folder / "lavis", recorded_weights(1))


def read(folder: Path, layout: str) -> object:
    """The model, used for a moment; LAVIS' files give a network alone."""
    if layout == "lavis":
        files = LavisFiles(folder / "trained.pth", folder / "eva_vit_g.pth")
        network = read_lavis(recorded_config(1), files)
        return network.image_features(torch.zeros(1, 3, *[recorded_config(1).vision.image_size] * 2))
    model = openblip.load(folder, device="cpu")
    use(model)
    return model


def use(model: Model) -> None:
    image = Image.new("RGB", (40, 30), "red")
    if "caption" in model.abilities:
        model.caption(image, num_beams=1, max_new_tokens=2)
    if "ask" in model.abilities:
        model.ask(image, "what is this?", num_beams=1, max_new_tokens=2)
    if "match" in model.abilities:
        found = model.match(image, "a dog")
        assert found.itm is None or 0 <= found.itm <= 1
        assert math.isfinite(found.itc or 0)
    if not model.abilities:
        raise AssertionError("a model without any use")


Damage = Callable[[Path], None]


def bytes_damages() -> Iterator[tuple[str, Damage]]:
    """What may happen to any file."""
    yield "missing", Path.unlink
    yield "empty", lambda path: path.write_bytes(b"") and None
    yield "a folder", lambda path: (path.unlink(), path.mkdir())[1]
    yield "a pipe", lambda path: (path.unlink(), os.mkfifo(path))[1]
    yield "a loop", lambda path: (path.unlink(), path.symlink_to(path.name))[1]
    yield "half", lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]) and None
    yield "a byte short", lambda path: path.write_bytes(path.read_bytes()[:-1]) and None
    yield "nulls", lambda path: path.write_bytes(bytes(path.stat().st_size)) and None
    yield "no text", lambda path: path.write_bytes(b"\xff\xfe\x00\xd8" * 50) and None
    yield "a page", lambda path: path.write_text("<html><body>404 Not Found</body></html>") and None
    for seed in range(3):
        yield f"noise {seed}", lambda path, seed=seed: flip(path, seed)  # type: ignore[misc]


def flip(path: Path, seed: int) -> None:
    rng = random.Random(seed)
    content = bytearray(path.read_bytes())
    for _ in range(8):
        content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(content)


def json_damages(path: Path, rng: random.Random, each: int) -> Iterator[tuple[str, Damage]]:
    """Wrong values at the keys of a JSON file: `each` of them a key, of lists' and mappings' first three entries."""
    for text in (DEEP, '{"a":' * 50_000, "null", "[]", "3", '"text"', "{}", '{"a": 1'):
        yield f"is {text[:9]}", lambda path, text=text: path.write_text(text) and None  # type: ignore[misc]
    for place in places(json.loads(path.read_text(encoding="utf-8"))):
        for value in rng.sample(VALUES, each):
            shown = f"{'.'.join(map(str, place))} = {value!r}"
            yield shown, lambda path, place=place, value=value: put(path, place, value)  # type: ignore[misc]
        yield f"without {'.'.join(map(str, place))}", lambda path, place=place: put(path, place)  # type: ignore[misc]


def places(content: Any, above: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    keys = content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in list(keys)[: 3 if len(keys) > 40 else 40]:
        yield (*above, key)
        if len(above) < 4:
            yield from places(content[key], (*above, key))


def put(path: Path, place: tuple[str | int, ...], *value: object) -> None:
    """Write a value, or none, at a place of a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    if value:
        inner[place[-1]] = value[0]
    else:
        del inner[place[-1]]
    path.write_text(json.dumps(content))


def tensor_damages(path: Path) -> Iterator[tuple[str, Damage]]:
    """Files of weights that hold something else than they should."""
    pickled = path.suffix != ".safetensors"
    state = torch.load(path, weights_only=True) if pickled else load_file(path)
    inner = state.get("model", state) if pickled else state
    names = [name for name in inner if inner[name].is_floating_point() and inner[name].numel() > 1]
    name = max(names, key=lambda one: inner[one].numel())

    def rewrite(change: Callable[[dict[str, Any]], object]) -> Damage:
        def damage(path: Path) -> None:
            new = copy.copy(inner)
            kept = change(new)
            content = new if kept is None else kept
            if pickled:
                torch.save({**state, "model": content} if "model" in state else content, path)
            else:
                save_file(content, path)

        return damage

    def replace(tensor: Callable[[torch.Tensor], object]) -> Damage:
        return rewrite(lambda new: new.__setitem__(name, tensor(new[name])))

    for label, bad in (("NaN", float("nan")), ("inf", float("inf")), ("-inf", float("-inf"))):
        yield label, replace(lambda tensor, bad=bad: torch.full_like(tensor, bad))  # type: ignore[misc]
    for dtype in (torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.uint8, torch.float8_e4m3fn):
        yield str(dtype), replace(lambda tensor, dtype=dtype: tensor.to(dtype))  # type: ignore[misc]
    yield "complex", replace(lambda tensor: tensor.to(torch.complex64))
    yield "flat", replace(torch.flatten)
    yield "number", replace(lambda tensor: tensor.flatten()[0].clone())
    yield "no rows", replace(lambda tensor: tensor[:0])
    yield "nothing", rewrite(dict.clear)
    yield "one more", rewrite(lambda new: new.__setitem__("odd", torch.ones(2)))
    yield "one less", rewrite(lambda new: new.__delitem__(name))
    if pickled:
        yield "sparse", replace(torch.Tensor.to_sparse)
        yield "csr", replace(lambda tensor: tensor.flatten(1).to_sparse_csr())
        yield "meta", replace(lambda tensor: tensor.to("meta"))
        yield "nested tensor", replace(lambda tensor: torch.nested.nested_tensor([tensor, tensor]))
        yield "codes", replace(lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8))
        yield "parameter", replace(torch.nn.Parameter)
        yield "list", rewrite(lambda new: list(new.values()))
        yield "text", rewrite(lambda new: "weights")
        yield "numbers", rewrite(lambda new: {1: torch.ones(2), **new})
        yield "bytes as names", rewrite(lambda new: {b"a": torch.ones(2)})
        yield "floats", rewrite(lambda new: dict.fromkeys(new, 0.5))
        yield "nested", rewrite(lambda new: {"state": {"deep": new}})
        yield "None", rewrite(lambda new: new.__setitem__(name, None))
        yield "pickle alone", lambda path: path.write_bytes(b"\x80\x02}q\x00.") and None
        yield "code", lambda path: path.write_bytes(b"cos\nsystem\n(S'true'\ntR.") and None


def damages(folder: Path, each: int, rng: random.Random) -> Iterator[tuple[str, str, Damage]]:
    """(file, what is done to it, damage) of all files in a folder."""
    for path in sorted(folder.iterdir()):
        for label, damage in bytes_damages():
            yield path.name, label, damage
        if path.suffix == ".json":
            for label, damage in json_damages(path, rng, each):
                yield path.name, label, damage
        if path.suffix in (".safetensors", ".bin", ".pth"):
            for label, damage in tensor_damages(path):
                yield path.name, label, damage


def outcome(folder: Path, layout: str, file: str) -> str | None:
    """What is wrong with how a damaged folder was taken; None when nothing is."""
    try:
        read(folder, layout)
    except OpenBlipError as error:
        text = str(error)
        if str(folder) not in text:
            return f"does not name the file: {text}"
        if "\n" in text or len(text) > 700:
            return f"is no sentence: {text[:300]!r}"
        return None
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return None


@pytest.fixture(scope="module")
def layouts(tiny_parts: ModelParts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layouts")
    write_layouts(folder, tiny_parts)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_damaged_folder_loads_or_is_explained(layout: str, layouts: Path, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    read(layouts / layout, layout)
    wrong = {}
    chosen = list(damages(layouts / layout, 1, rng))
    for file, label, damage in rng.sample(chosen, 30):
        folder = tmp_path / "broken"
        shutil.copytree(layouts / layout, folder)
        damage(folder / file)
        problem = outcome(folder, layout, file)
        if problem is not None:
            wrong[f"{file} {label}"] = problem
        shutil.rmtree(folder)
    assert not wrong


@pytest.mark.parametrize(
    ("layout", "file", "place", "value", "message"),
    [
        ("blip", "config.json", ("text_config", "bos_token_id"), "x", "bos_token_id is x, not a number"),
        ("blip", "config.json", ("openblip", "generation", "stop_token"), "a dog", "2 tokens in this vocabulary"),
        ("own blip", "config.json", ("image", "image_size"), 7, "image_size is 7, not a multiple of its patch size 8"),
        ("blip", "config.json", ("openblip", "temperature"), "", "temperature is , not a number"),
    ],
)
def test_what_does_not_fit_together(
    layouts: Path, tmp_path: Path, layout: str, file: str, place: tuple[str, ...], value: object, message: str
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(layouts / layout, folder)
    put(folder / file, place, value)
    with pytest.raises(CheckpointError, match=message) as caught:
        openblip.load(folder, device="cpu")
    assert str(folder) in str(caught.value)


def test_a_path_with_a_null_is_no_folder() -> None:
    for name in ("a\0b", Path("a\0b")):
        with pytest.raises(OpenBlipError):
            load_parts(name)
        with pytest.raises(OpenBlipError):
            openblip.load("mini", adapter=name)
        with pytest.raises(OpenBlipError):
            openblip.load("blip2_opt/pretrain_opt2.7b", checkpoint=name)
