"""Weights that are quantized on their way from a file, and folders that keep them so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import openblip
from openblip.checkpoints.loading import load_parts
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.openblip.folder import _read_into, empty_network, pack, save_native, stored_state
from openblip.checkpoints.read_options import ReadOptions
from openblip.checkpoints.tensors import mmap as mapped
from openblip.checkpoints.tensors.assign import Placer
from openblip.checkpoints.tools.quantize import quantize_model
from openblip.errors import CheckpointError, OptionError
from openblip.nn.blip2 import Blip2Config, Blip2Network
from openblip.nn.opt import OptConfig
from openblip.nn.qformer import QFormerConfig
from openblip.nn.quant import swap as quantized
from openblip.nn.quant.int4 import Int4Linear
from openblip.nn.quant.int4_wide import Int4WideLinear
from openblip.nn.quant.int8 import Int8Linear, Int8WordTable
from openblip.nn.vit import VitConfig
from tests.checkpoints.theirs import write_matcher, write_writer
from tests.cli.conftest import Run
from tests.cli.conftest import run as run


def same(first: ModelParts, second: ModelParts) -> bool:
    ours, theirs = first.network.state_dict(), second.network.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("write", [write_writer, write_matcher])
def test_quantized_as_it_is_read_or_afterwards(
    write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,  # type: ignore[no-untyped-def]
) -> None:
    monkeypatch.setattr(quantized, "MIN_ELEMENTS", 256)
    folder = write(tmp_path / "theirs").folder
    afterwards = load_parts(folder)
    quantized.quantize(afterwards.network, 8)
    assert any(isinstance(module, Int8Linear) for module in afterwards.network.modules())
    assert same(load_parts(folder, ReadOptions(bits=8)), afterwards)
    # Our own folder of floats, and one of what is quantized already.
    save_native(load_parts(folder), tmp_path / "floats")
    assert same(load_parts(tmp_path / "floats", ReadOptions(bits=8)), afterwards)
    save_native(afterwards, tmp_path / "codes")
    assert same(load_parts(tmp_path / "codes"), afterwards)


@pytest.mark.parametrize(("bits", "kind"), [(8, Int8Linear), (4, Int4Linear)])
def test_the_command_keeps_what_a_load_makes(
    bits: int, kind: type[Int8Linear | Int4Linear], tmp_path: Path, run: Run, image_paths: list[Path]
) -> None:
    folder = tmp_path / "small"
    ran = run("quantize", "mini", folder, "--bits", str(bits))
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(str(folder / "model.safetensors"))
    stored = load_parts(folder)
    assert same(stored, load_parts("mini", ReadOptions(bits=bits)))
    assert any(isinstance(module, kind) for module in stored.network.modules())
    # Asked for by name, so that the rest is in the same type, which on some CPUs is bfloat16.
    kept, made = (openblip.load(place, dtype=f"int{bits}") for place in (folder, "mini"))
    assert kept.caption(image_paths[:3]) == made.caption(image_paths[:3])
    # Asked for floats, a folder of codes gives floats.
    floats = load_parts(folder, ReadOptions(bits=0)).network
    assert not quantized.quantized_layers(floats)
    assert all(tensor.is_floating_point() for tensor in floats.parameters())


def test_mini_says_the_same_in_8_bits(image_paths: list[Path]) -> None:
    examples = sorted((Path(__file__).parents[3] / "examples").glob("*.jpg"))
    floats, small = openblip.load("mini", dtype="float32"), openblip.load("mini", dtype="int8")
    texts = [str(path) for path in examples]
    agreed = sum(a == b for a, b in zip(floats.caption(texts), small.caption(texts), strict=True))
    assert agreed >= len(examples) - 2
    ours, theirs = (
        floats.scores(image_paths, ["a dog", "a red ball"]),
        small.scores(image_paths, ["a dog", "a red ball"]),
    )
    assert (ours.itc - theirs.itc).abs().max() < 0.05


@pytest.mark.parametrize("bits", [8, 4])
def test_codes_stay_in_their_file(bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load reads none of them, what is written to them stays in memory, and the file may go while they are there."""
    monkeypatch.setattr(quantized, "MIN_ELEMENTS", 256)
    monkeypatch.setattr(mapped, "MAPPED_TOGETHER", 65_536)  # places in a file have to be multiples of that on Windows
    config = Blip2Config(
        VitConfig(image_size=32, patch_size=16, width=64, depth=2, num_heads=2, mlp_width=128),
        QFormerConfig(image_width=64, num_queries=2, width=64, depth=2, num_heads=2, ffn_width=512),
        OptConfig(vocab_size=700, width=128, depth=3, num_heads=2, ffn_width=256, max_positions=40),
    )
    network = Blip2Network(config).eval()
    quantized.quantize(network, bits)
    kinds = {type(layer) for layer in quantized.quantized_layers(network).values()}
    assert kinds == {Int8Linear, Int8WordTable} | ({Int4Linear, Int4WideLinear} if bits == 4 else set())
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network.image_features(pixels)
    state = stored_state(network)
    before = {name: tensor.clone() for name, tensor in state.items()}
    path = tmp_path / "model.safetensors"
    save_file(pack(state, "float32"), path)
    empty = empty_network(config, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "copy_", None)  # quantizing and packing would
        loaded = _read_into(Placer(empty, tmp_path, ReadOptions(bits=bits)), tmp_path)
    content = path.read_bytes()
    assert {name for name, tensor in stored_state(loaded).items() if not torch.equal(tensor, before[name])} == set()
    quantized.prepare_layers(loaded)
    with torch.inference_mode():
        assert torch.equal(loaded.image_features(pixels), expected)
    for layer in quantized.quantized_layers(loaded).values():
        layer.weight.data.fill_(1)
    assert path.read_bytes() == content
    if os.name == "posix":
        path.unlink()
        assert all((layer.weight == 1).all() for layer in quantized.quantized_layers(loaded).values())


def test_wrong_wishes_are_refused(tmp_path: Path, run: Run) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OptionError, match="is not empty"):
        quantize_model("mini", tmp_path, 8)
    ran = run("quantize", "mini", tmp_path / "new", "--bits", "3")
    assert ran.code == 2
    assert "bits is 3: give 8 or 4" in ran.err
    assert not (tmp_path / "new").exists()
    with pytest.raises(OptionError, match="float32, bfloat16, float16, int8, int4"):
        openblip.load("mini", dtype="int3")


def test_broken_codes_are_told(tmp_path: Path) -> None:
    path = quantize_model("mini", tmp_path / "small", 4)
    tensors = load_file(path)
    name = "decoder.layers.0.fc1.weight"
    save_file({**tensors, name: tensors[name][:-1].clone()}, path)
    with pytest.raises(CheckpointError, match=r"decoder\.layers\.0\.fc1\.weight is"):
        openblip.load(tmp_path / "small")
    save_file({**tensors, f"{name}:scale": tensors[f"{name}:scale"][:, :-1].clone()}, path)
    with pytest.raises(CheckpointError, match="scales"):
        openblip.load(tmp_path / "small")


def test_a_weight_that_is_no_number_names_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "MIN_ELEMENTS", 256)
    folder = write_writer(tmp_path / "theirs").folder
    tensors = load_file(folder / "model.safetensors")
    broken = next(name for name in tensors if name.endswith("layers.1.fc1.weight") and "language" in name)
    tensors[broken][0, 0] = float("inf")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"decoder\.layers\.1\.fc1\.weight cannot be quantized"):
        load_parts(folder, ReadOptions(bits=8))
