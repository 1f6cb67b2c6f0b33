"""Round trips between the layouts, bit for bit."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from openblip.checkpoints.lavis.read import LavisFiles, read_lavis
from openblip.checkpoints.loading import load_parts
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.openblip.folder import save_native
from openblip.checkpoints.read_options import ReadOptions
from openblip.checkpoints.tensors import writing
from openblip.checkpoints.tools.convert import convert
from openblip.checkpoints.tools.quantize import quantize_model
from openblip.errors import CheckpointError, OpenBlipError, OptionError
from openblip.images.transform import ImageTransform
from openblip.nn.blip2 import Blip2Network
from openblip.nn.quant import swap as quantized
from openblip.nn.vit import VitConfig
from tests.checkpoints.theirs import FLAN, Theirs, write_matcher, write_t5_writer, write_writer
from tests.cli.conftest import Run
from tests.cli.conftest import run as run
from tests.conftest import lively


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_parts(folder).network.state_dict()


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def write_flan(folder: Path) -> Theirs:
    return write_t5_writer(folder, {**FLAN, "dense_act_fn": "gelu"})


@pytest.mark.parametrize("write", [write_writer, write_matcher, write_flan])
def test_through_every_layout_and_back(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source = write(tmp_path / "source").folder
    expected = tensors(source)
    (own,) = convert(source, tmp_path / "own", "openblip")
    assert same(tensors(own.parent), expected)
    (theirs,) = convert(own.parent, tmp_path / "theirs", "transformers")
    assert same(tensors(theirs.parent), expected)
    files = convert(theirs.parent, tmp_path / "lavis", "lavis")
    names = {path.relative_to(tmp_path / "lavis").as_posix(): path for path in files}
    language = names.pop("language_model/model.safetensors", None)
    assert names.keys() == {"checkpoint.pth", "eva_vit_g.pth"}
    found = LavisFiles(names["checkpoint.pth"], names["eva_vit_g.pth"], language and language.parent)
    assert same(read_lavis(load_parts(source).network.config, found).state_dict(), expected)


@pytest.mark.parametrize(("side", "clip"), [(28, True), (364, False)], ids=["vitL", "364 px"])
def test_clip_and_large_images_through_lavis(side: int, clip: bool, tmp_path: Path) -> None:
    """What transformers has no place for: CLIP's encoder; and files that hold their own copy of the encoder."""
    source = load_parts(write_matcher(tmp_path / "source").folder)
    vision = VitConfig(
        side, 14, 36, 2, 3, 50, activation="quick_gelu" if clip else "gelu", pre_norm=clip, patch_bias=not clip
    )
    config = replace(
        source.network.config, vision=replace(vision, attention_bias="qkv" if clip else "qv"), vision_norm_eps=1e-5
    )
    parts = replace(source, network=lively(Blip2Network(config)), transform=ImageTransform(side))
    save_native(parts, tmp_path / "own")
    files = {path.name: path for path in convert(tmp_path / "own", tmp_path / "lavis", "lavis")}
    assert files.keys() == ({"checkpoint.pth"} if side == 364 else {"checkpoint.pth", "clip_vit_L.pth"})
    found = read_lavis(config, LavisFiles(files["checkpoint.pth"], files.get("clip_vit_L.pth")))
    assert same(found.state_dict(), parts.network.state_dict())


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_weights_become_the_floats_they_stand_for(
    bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized, "MIN_ELEMENTS", 256)
    source = write_writer(tmp_path / "source").folder
    quantize_model(source, tmp_path / "small", bits)
    assert quantized.quantized_layers(load_parts(tmp_path / "small").network)
    expected = load_parts(tmp_path / "small", ReadOptions(bits=0)).network.state_dict()
    convert(tmp_path / "small", tmp_path / "theirs", "transformers")
    assert same(tensors(tmp_path / "theirs"), expected)
    convert(tmp_path / "small", tmp_path / "lavis", "lavis")
    config = load_parts(source).network.config
    found = LavisFiles(*(tmp_path / "lavis" / name for name in ("checkpoint.pth", "eva_vit_g.pth", "language_model")))
    assert same(read_lavis(config, found).state_dict(), expected)
    # Our own layout keeps the codes.
    convert(tmp_path / "small", tmp_path / "again", "openblip")
    assert same(tensors(tmp_path / "again"), tensors(tmp_path / "small"))


def test_quantized_models_are_never_written_without_their_scales(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openblip.checkpoints.lavis.write import to_lavis
    from openblip.checkpoints.transformers.write import save_transformers

    monkeypatch.setattr(quantized, "MIN_ELEMENTS", 256)
    parts = load_parts(write_writer(tmp_path / "source").folder, ReadOptions(bits=8))
    with pytest.raises(CheckpointError, match="are quantized, which transformers cannot read"):
        save_transformers(parts, tmp_path / "theirs")
    with pytest.raises(CheckpointError, match="quantized"):
        to_lavis(parts.network.state_dict(), parts.network.config)
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize("to", ["openblip", "transformers", "lavis"])
@pytest.mark.parametrize("there", [True, False])
def test_a_full_disk_leaves_nothing(to: str, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_writer(tmp_path / "source").folder
    if there:
        (tmp_path / "new").mkdir()

    def full(tensors: object, path: Path, **_: Any) -> None:
        path.write_bytes(b"as far as it got")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def no_room(content: object, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writing, "save_file", full)
    with pytest.raises(OpenBlipError, match=r"new(/language_model)? cannot be written \(No space left on device"):
        convert(source, tmp_path / "new", to)
    monkeypatch.setattr(torch, "save", no_room)
    with pytest.raises(OpenBlipError, match=r"new(/language_model)? cannot be written \(No space left on device"):
        convert(source, tmp_path / "new", to)
    assert {path.name for path in tmp_path.iterdir()} == ({"source", "new"} if there else {"source"})
    assert not there or not any((tmp_path / "new").iterdir())


def test_what_is_cut_short_is_not_taken_for_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a power cut, when nobody tidies up: files are there up to any one of them, in the order of writing."""
    source = write_writer(tmp_path / "source").folder
    for to, last in (("openblip", "config.json"), ("transformers", "config.json"), ("lavis", "checkpoint.pth")):
        appeared: list[str] = []
        replaced = Path.replace

        def record(path: Path, target: Path, seen: list[str] = appeared, move: Any = replaced) -> Path:
            seen.append(target.name)
            return Path(move(path, target))

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", record)
            convert(source, tmp_path / to, to)
        assert appeared[-1] == last


def test_the_half_of_a_model_that_does_both(tiny_parts: ModelParts, tmp_path: Path, run: Run) -> None:
    vision = VitConfig(28, 14, 36, 2, 3, 50, attention_bias="qv")
    qformer = replace(tiny_parts.network.config.qformer, image_width=36)
    config = replace(tiny_parts.network.config, vision=vision, qformer=qformer)
    save_native(
        replace(tiny_parts, network=lively(Blip2Network(config)), transform=ImageTransform(28)), tmp_path / "both"
    )
    ran = run("convert", tmp_path / "both", tmp_path / "x", "--to", "transformers")
    assert (ran.code, ran.out) == (2, "")
    assert "give the task, write or match" in ran.err
    for half in ("write", "match"):
        assert run("convert", tmp_path / "both", tmp_path / half, "--to", "transformers", "--task", half).code == 0
    assert load_parts(tmp_path / "write").matching is None
    assert load_parts(tmp_path / "match").tokenizer is None
    ran = run("convert", tmp_path / "both", tmp_path / "x", "--to", "lavis", "--task", "match")
    assert (ran.code, "task 'match' does not go with lavis" in ran.err) == (2, True)
    assert not (tmp_path / "x").exists()


def test_storage_of_fewer_bits(tmp_path: Path) -> None:
    source = write_writer(tmp_path / "source").folder
    (whole,) = convert(source, tmp_path / "whole", "openblip")
    (half,) = convert(source, tmp_path / "half", "openblip", storage="float16")
    assert half.stat().st_size < 0.6 * whole.stat().st_size


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for to, storage, folder, words in (
        ("onnx", "float32", "new", "no layout 'onnx'"),
        ("lavis", "int8", "new", "does not go with lavis"),
        ("openblip", "int3", "new", "does not go with openblip"),
        ("openblip", "float32", "full", "is not empty"),
    ):
        with pytest.raises(OptionError, match=words):
            convert("mini", tmp_path / folder, to, storage=storage)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]
