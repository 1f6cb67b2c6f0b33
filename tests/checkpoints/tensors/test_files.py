"""Files of weights that are not what they seem."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from openblip.checkpoints.tensors.files import PickledFile, SafetensorsFile, WeightFolder
from openblip.checkpoints.tools.inspect import inspect
from openblip.errors import CheckpointError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 9\n"


def shards(folder: Path, first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> Path:
    for number, tensors in enumerate((first, second), start=1):
        save_file(tensors, folder / f"model-0000{number}-of-00002.safetensors")
    places = dict.fromkeys(first, "model-00001-of-00002.safetensors")
    places |= dict.fromkeys(second, "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def test_a_tensor_in_two_shards_has_to_be_the_same(tmp_path: Path) -> None:
    folder = shards(tmp_path, {"a": torch.ones(2), "b": torch.zeros(3)}, {"a": torch.ones(2)})
    assert set(WeightFolder(folder).shapes) == {"a", "b"}
    shards(tmp_path, {"a": torch.ones(2), "b": torch.zeros(3)}, {"a": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"has a in model-\S+ and model-\S+, and they differ"):
        WeightFolder(folder)


def test_a_compressed_archive_is_not_unfolded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    for read in (PickledFile, inspect):
        with pytest.raises(CheckpointError, match=r"bomb\.pth is compressed, as PyTorch never saves"):
            read(path)


def test_files_from_before_archives_are_read(tmp_path: Path) -> None:
    torch.save({"model": {"x": torch.ones(2)}}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(PickledFile(tmp_path / "old.pth").read("x"), torch.ones(2))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    ("content", "message"), [(POINTER, r"is a Git LFS pointer.* `git lfs pull`"), (b"", "is empty: get the file again")]
)
def test_stand_ins_are_told(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    for read in (WeightFolder, inspect):
        with pytest.raises(CheckpointError, match=f"{name} {message}"):
            read(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes")
def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(CheckpointError, match="is neither a file nor a folder"):
        inspect(tmp_path / "pipe.pth")
    with pytest.raises(CheckpointError, match="is no file"):
        PickledFile(tmp_path / "pipe.pth")


def entry(shape: list[int], end: int, kind: object = "F32") -> dict[str, object]:
    return {"dtype": kind, "shape": shape, "data_offsets": [0, end]}


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry([-1, 5], 0)},
        {"a": entry([10**12, 10**12], 0)},
        {"a": entry([2000], 8)},
        {"a": entry([2], 8, kind=7)},
        {"a": entry([2], 8), "b": entry([2], 8)},
        "[" * 100_000,
    ],
    ids=["negative", "huge", "short", "no type", "overlapping", "nested"],
)
def test_headers_that_lie(tmp_path: Path, header: object) -> None:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8 if b"8]" in text else 0))
    for read in (SafetensorsFile, inspect):
        with pytest.raises(CheckpointError, match=r"model\.safetensors is (broken|no whole)") as raised:
            read(path)
        assert "\n" not in str(raised.value)


def test_a_wrong_ending_changes_nothing(tmp_path: Path) -> None:
    save_file({"qformer.queries": torch.ones(1, 2, 3)}, tmp_path / "weights.pth")
    found = inspect(tmp_path / "weights.pth")
    assert (found.format, found.parameters) == ("safetensors file", 6)


def test_codes_of_four_bits_are_two_weights_a_byte(tmp_path: Path) -> None:
    codes = {"decoder.layers.0.fc1.weight": torch.zeros(16, 32, dtype=torch.uint8)}
    codes["decoder.layers.0.fc1.weight:scale"] = torch.ones(1, 16, 2, dtype=torch.bfloat16)
    save_file(codes, tmp_path / "model.safetensors")
    assert inspect(tmp_path).parameters == 16 * 64


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process as Linux tells it")
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_what_was_read_can_be_let_go(ending: str, tmp_path: Path) -> None:
    tensors = {name: torch.randn(1_000_003, generator=torch.Generator().manual_seed(ord(name))) for name in "abc"}
    path = tmp_path / f"large.{ending}"
    if ending == "pth":
        torch.save({"model": tensors}, path)
    else:
        save_file(tensors, path)
    file = PickledFile(path) if ending == "pth" else SafetensorsFile(path)

    def mapped() -> int:
        parts = Path("/proc/self/smaps").read_text().split(path.name)[1:]
        lines = [next(line for line in part.splitlines() if line.startswith("Rss:")) for part in parts]
        return sum(1024 * int(line.split()[1]) for line in lines)

    held = {name: file.read(name) for name in tensors}
    for _ in range(2):
        assert all(torch.equal(held[name], tensors[name]) for name in tensors)
        assert mapped() > 11_000_000
        for name in tensors:
            file.read(name)
        file.let_go()
        assert mapped() < 1_000_000
