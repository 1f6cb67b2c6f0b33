"""A weight that is no number, or none once it is cast, is named when a model is loaded, in whatever layout."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from openblip.checkpoints.lavis.read import read_lavis
from openblip.checkpoints.loading import load_parts
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.openblip.folder import save_native
from openblip.checkpoints.read_options import ReadOptions
from openblip.checkpoints.tensors.assign import copied
from openblip.checkpoints.tools.quantize import quantize_model
from openblip.errors import CheckpointError
from openblip.nn.threads import PART_ELEMENTS, PARTS_A_THREAD
from tests.checkpoints.lavis.test_read import lay_out
from tests.checkpoints.theirs import write_matcher, write_writer
from tests.pairs.lavis import recorded_config, recorded_weights

BAD = [float("nan"), float("inf"), float("-inf")]
NOT_FINITE = "holds numbers that are infinite or none"
CPU = torch.device("cpu")


def spoil(path: Path, name: str, value: float) -> None:
    """Put a value at the end of one tensor of a file."""
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    inner = state.get("model", state)
    inner[name] = inner[name].clone()
    inner[name].view(-1)[-1] = value
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            save_file(state, path, metadata=file.metadata())
    else:
        torch.save(state, path)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
def test_in_our_folders(tiny_parts: ModelParts, tmp_path: Path, storage: str, value: float) -> None:
    save_native(tiny_parts, tmp_path, storage)
    path = tmp_path / "model.safetensors"
    whole = load_file(path)
    large = next(name.removesuffix(":scale") for name in whole) if storage == "int8" else "decoder.words.weight"
    names = ["qformer.queries", "vision.head.norm.bias", "temperature", large if large in whole else "qformer.queries"]
    names += [name for name in whole if name.endswith(":scale")][:1]
    for name in names:
        if not whole[name].is_floating_point():
            continue
        spoil(path, name, value)
        with pytest.raises(CheckpointError, match=re.escape(f"{path}: {name} ") + NOT_FINITE):
            load_parts(tmp_path)
        save_file(whole, path, metadata={"format": "pt"})
    load_parts(tmp_path)


@pytest.mark.parametrize("bits", [8, 4])
def test_in_scales_that_are_kept(tiny_parts: ModelParts, tmp_path: Path, bits: int) -> None:
    save_native(tiny_parts, tmp_path / "whole")
    quantize_model(tmp_path / "whole", tmp_path / "small", bits)
    path = tmp_path / "small" / "model.safetensors"
    name = next(name for name in load_file(path) if name.endswith(":scale"))
    spoil(path, name, float("nan"))
    with pytest.raises(CheckpointError, match=re.escape(f"{path}: {name} ") + NOT_FINITE):
        load_parts(tmp_path / "small")


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("name", ["language_model.model.decoder.layers.1.self_attn.k_proj.weight", "query_tokens"])
def test_in_folders_of_transformers(tmp_path: Path, form: str, name: str, value: float) -> None:
    write_writer(tmp_path)
    path = tmp_path / "model.safetensors"
    if form == "bin":
        torch.save(load_file(path), tmp_path / "pytorch_model.bin")
        path.unlink()
        path = tmp_path / "pytorch_model.bin"
    spoil(path, name, value)
    with pytest.raises(CheckpointError, match=re.escape(f"{path}: {name} ") + NOT_FINITE):
        load_parts(tmp_path)


def test_in_a_model_that_matches(tmp_path: Path) -> None:
    write_matcher(tmp_path)
    spoil(tmp_path / "model.safetensors", "itm_head.bias", float("nan"))
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: itm_head\.bias {NOT_FINITE}"):
        load_parts(tmp_path)


@pytest.mark.parametrize(
    ("file", "theirs", "ours"),
    [("trained.pth", "query_tokens", "qformer.queries"), ("eva_vit_g.pth", "cls_token", "vision.class_token")],
)
def test_in_files_of_lavis(tmp_path: Path, file: str, theirs: str, ours: str) -> None:
    files = lay_out(tmp_path, recorded_weights(1))
    read_lavis(recorded_config(1), files)
    spoil(tmp_path / file, theirs, float("nan"))
    with pytest.raises(CheckpointError, match=rf"{file}: {re.escape(ours)} {NOT_FINITE}"):
        read_lavis(recorded_config(1), files)


def test_a_number_that_a_smaller_type_has_no_room_for(tiny_parts: ModelParts, tmp_path: Path) -> None:
    save_native(tiny_parts, tmp_path)
    spoil(tmp_path / "model.safetensors", "qformer.queries", 1e5)
    load_parts(tmp_path)
    load_parts(tmp_path, ReadOptions(dtype=torch.bfloat16))
    with pytest.raises(
        CheckpointError, match=r"qformer\.queries holds numbers up to 1e\+05, which float16 has no room"
    ):
        load_parts(tmp_path, ReadOptions(dtype=torch.float16))


def test_variances_below_zero_are_none(tiny_parts: ModelParts, tmp_path: Path) -> None:
    save_native(tiny_parts, tmp_path)
    spoil(tmp_path / "model.safetensors", "vision.head.norm.running_var", -1.0)
    with pytest.raises(CheckpointError, match=r"running_var holds variances below 0"):
        load_parts(tmp_path)


def test_large_numbers_whose_sum_is_infinite_are_finite(tiny_parts: ModelParts, tmp_path: Path) -> None:
    save_native(tiny_parts, tmp_path)
    path = tmp_path / "model.safetensors"
    state = load_file(path)
    state["qformer.queries"].fill_(3e38)
    save_file(state, path)
    assert load_parts(tmp_path).network.qformer.queries.isfinite().all()


def counted(rows: int, generator: torch.Generator) -> torch.Tensor:
    """[rows, 512] numbers 1 and -1, as many of each in every 16, but for one more in every 2,048.

    No sum of neighbours needs more than 8 bits: it is exact in every type and in every order.
    """
    order = torch.rand(rows * 32, 16, generator=generator).argsort(dim=1)
    numbers = torch.where(order % 2 == 0, 1.0, -1.0).flatten()
    numbers[::2048] += 1
    return numbers.view(rows, 512)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_pieces_are_copied_as_they_are(dtype: torch.dtype, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    generator = torch.Generator().manual_seed(0)
    for count, height in ((1, 3), (3, 700), (1, 2100)):
        pieces = [torch.randn(height, 512, generator=generator).t().t() for _ in range(count)]
        found, _ = copied(pieces, dtype, CPU)
        assert torch.equal(found, torch.cat(pieces).to(dtype))
        assert found.is_contiguous()
        for place in (0, -1):
            pieces[-1].view(-1)[place] = float("nan")
            assert copied(pieces, dtype, CPU)[1] != copied(pieces, dtype, CPU)[1]
            pieces[-1].view(-1)[place] = 0
        pieces = [counted(height, generator) for _ in range(count)]
        assert copied(pieces, dtype, CPU)[1] == float(torch.cat(pieces).double().sum()) != 0
    assert PART_ELEMENTS * PARTS_A_THREAD * 2 < 2100 * 512
    assert PART_ELEMENTS // 2048 + 16 < 2**8


def test_a_folder_that_is_copied_loads_as_before(tiny_model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model_folder, tmp_path / "again")
    expected, found = load_parts(tiny_model_folder), load_parts(tmp_path / "again")
    state = expected.network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.network.state_dict().items())
