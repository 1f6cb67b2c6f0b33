"""Headers, indexes and archives that are made to cost more than they hold, wherever they are read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import openblip
from openblip.checkpoints.hub.repositories import is_complete
from openblip.checkpoints.lora.files import read_adapter
from openblip.checkpoints.tensors.files import PickledFile, SafetensorsFile, WeightFolder
from openblip.checkpoints.tensors.header import BITS, MAX_TENSORS, read_header, read_index
from openblip.checkpoints.tensors.mmap import MappedFile
from openblip.checkpoints.tensors.pickles import unpickle
from openblip.checkpoints.tools.inspect import inspect
from openblip.checkpoints.tools.quantize import quantize_model
from openblip.errors import CheckpointError


def write(path: Path, header: object, body: bytes = b"") -> Path:
    text = (header if isinstance(header, str) else json.dumps(header)).encode("utf-8", "surrogatepass")
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def entry(shape: list[Any], start: int, end: int, kind: object = "F32") -> dict[str, object]:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


EMPTY = entry([0], 0, 0)
BAD: dict[str, tuple[object, bytes]] = {
    "long": ({"__metadata__": {"a": "b" * 12_000_000}}, b""),
    "many tensors": ({f"t{number}": EMPTY for number in range(MAX_TENSORS + 1)}, b""),
    "a long name": ({"a" * 1_000_000: EMPTY}, b""),
    "the same bytes": ({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, bytes(8)),
    "overlapping bytes": ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
    "a gap": ({"a": entry([1], 4, 8)}, bytes(8)),
    "bytes backwards": ({"a": entry([0], 8, 0)}, b""),
    "bytes beyond the end": ({"a": entry([2], 0, 8)}, bytes(4)),
    "bytes behind the end": ({"a": entry([2], 0, 8)}, bytes(12)),
    "a product of 2 ** 64": ({"a": entry([2**32, 2**32], 0, 0)}, b""),
    "a product of 2 ** 64 and some": ({"a": entry([2**62 + 1, 4], 0, 16)}, bytes(16)),
    "a huge side": ({"a": entry([2**70], 0, 0)}, b""),
    "a negative side": ({"a": entry([-1, -2], 0, 8)}, bytes(8)),
    "true for a side": ({"a": entry([True], 0, 4)}, bytes(4)),
    "a side of text": ({"a": entry(["2"], 0, 8)}, bytes(8)),
    "many sides": ({"a": entry([1] * 10_000, 0, 4)}, bytes(4)),
    "an unknown type": ({"a": entry([1], 0, 4, "F\x1b[31m")}, bytes(4)),
    "no place": ({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "a name twice": ('{"a": %s, "a": %s}' % ((json.dumps(entry([1], 0, 4)),) * 2), bytes(4)),
    "a list": ([], b""),
    "nested": ("[" * 200_000, b""),
    "no JSON": ("{", b""),
}
READERS: dict[str, Callable[[Path], object]] = {
    "header": read_header,
    "file": SafetensorsFile,
    "mapped": lambda path: MappedFile(path, read_header(path)),
    "folder": lambda path: WeightFolder(path.parent),
    "inspect": inspect,
    "load": lambda path: openblip.load(path.parent),
    "quantize": lambda path: quantize_model(path.parent, path.parent.parent / "new", 8),
    "adapter": lambda path: read_adapter(path.parent),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("fault", BAD)
def test_headers_that_lie_are_refused_everywhere(
    reader: str, fault: str, tiny_model_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    name = "model.safetensors"
    if reader == "adapter":
        name = "adapter_model.safetensors"
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    path = write(folder / name, *BAD[fault])
    with pytest.raises(CheckpointError, match=rf"{name} (is broken|is no whole|has a header|has|lists) ?") as raised:
        READERS[reader](path)
    assert len(str(raised.value)) < 1_000
    assert str(raised.value).isprintable()


@given(st.dictionaries(st.text(max_size=5), st.tuples(st.sampled_from(sorted(BITS)), st.lists(st.integers(0, 4)))))
def test_whole_headers_are_read(tmp_path_factory: pytest.TempPathFactory, tensors: Any) -> None:
    header, end = {}, 0
    for name, (kind, shape) in tensors.items():
        bits = BITS[kind]
        for side in shape:
            bits *= side
        if bits % 8 or name == "__metadata__" or len(shape) > 64:
            continue
        header[name] = entry(shape, end, end + bits // 8, kind)
        end += bits // 8
    path = write(tmp_path_factory.getbasetemp() / "whole.safetensors", header or "{}", bytes(min(end, 10**6)))
    if end <= 10**6:
        found = read_header(path)
        assert {name: (one.kind, list(one.shape)) for name, one in found.items()} == {
            name: (one["dtype"], one["shape"]) for name, one in header.items()
        }


def test_what_safetensors_writes_is_read(tmp_path: Path) -> None:
    types = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.uint8, torch.bool)
    tensors = {str(kind): torch.ones(2, 3).to(kind) for kind in (*types, torch.int64, torch.float8_e4m3fn)}
    tensors |= {"empty": torch.zeros(0, 4), "scalar": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "a.safetensors", {"format": "pt"})
    header = read_header(tmp_path / "a.safetensors")
    assert {name: one.shape for name, one in header.items()} == {name: tuple(t.shape) for name, t in tensors.items()}


# ---- indexes


@pytest.mark.parametrize(
    "shard",
    [
        *("../secret.bin", "/etc/passwd", "..", ".", "", "a/b.bin", "a\\b.bin", "C:b.bin", "a\0b", "x" * 2_000_000),
        *(None, 7, ["model.bin"], {"a": 1}),
    ],
    ids=lambda shard: repr(shard)[:20],
)
def test_an_index_leads_nowhere_out_of_its_folder(shard: object, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    torch.save({"secret": torch.ones(1)}, tmp_path / "secret.bin")
    save_file({"a": torch.ones(1)}, folder / "own.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "own.safetensors", "b": shard}}))
    (folder / "config.json").write_text('{"model_type": "blip-2"}')
    for read in (read_index, inspect):
        with pytest.raises(CheckpointError, match="which is no file of this folder") as raised:
            read(index)
        assert len(str(raised.value)) < 1_000
    for read_folder in (inspect, WeightFolder):
        with pytest.raises(CheckpointError, match="which is no file of this folder"):
            read_folder(folder)
    (folder / "tokenizer.json").write_text("{}")
    assert not is_complete(folder)


def test_an_index_of_more_tensors_than_any_model_has(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(map(str, range(MAX_TENSORS + 1)), "a.safetensors")}))
    with pytest.raises(CheckpointError, match="more than any model has"):
        read_index(index)


# ---- pickled files


def as_strided(shape: tuple[int, ...], strides: tuple[int, ...], stored: int = 100) -> torch.Tensor:
    return torch.ones(stored).as_strided(shape, strides)


UNFOLDING: dict[str, Callable[[], Any]] = {
    "no strides": lambda: as_strided((20_000, 20_000), (0, 0)),
    "one stride": lambda: as_strided((1000, 100), (0, 1)),
    "overlapping": lambda: as_strided((90, 10), (1, 1)),
    "expanded": lambda: torch.ones(1, 5).expand(1000, 5),
    "sparse": lambda: torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1), (10**9,)),
    "compressed sparse": lambda: torch.ones(4, 4).to_sparse_csr(),
    "meta": lambda: torch.empty(10**12, device="meta"),
    "nested": lambda: [{"deep": ({"er": as_strided((1000, 1000), (0, 0))},)}],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("legacy", [False, True], ids=["archive", "legacy"])
@pytest.mark.parametrize("fault", UNFOLDING)
def test_tensors_that_unfold_are_refused_everywhere(fault: str, legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"model": {"a": UNFOLDING[fault]()}}, path, _use_new_zipfile_serialization=not legacy)
    for read in (unpickle, inspect, lambda path: PickledFile(path)):
        with pytest.raises(CheckpointError, match=r"model\.pth (holds|is broken)"):
            read(path)


def test_many_tensors_of_the_same_elements(tmp_path: Path) -> None:
    table = torch.ones(1000)
    torch.save({"model": {str(number): table for number in range(4)}}, tmp_path / "tied.pth")
    assert len(PickledFile(tmp_path / "tied.pth").shapes) == 4
    torch.save({"model": {str(number): table[1:] for number in range(100)}}, tmp_path / "unfolding.pth")
    with pytest.raises(CheckpointError, match="of which it stores 4000 bytes"):
        inspect(tmp_path / "unfolding.pth")
    torch.save({"halves": list(torch.ones(1000).chunk(100))}, tmp_path / "parts.pth")
    unpickle(tmp_path / "parts.pth")


def test_names_without_end_in_pickled_files(tmp_path: Path) -> None:
    torch.save({"a\x1b[31m" + "x" * 1_000_000: torch.ones(1)}, tmp_path / "model.pth")
    for read in (inspect, PickledFile):
        with pytest.raises(CheckpointError, match="a tensor whose name has") as raised:
            read(tmp_path / "model.pth")
        assert str(raised.value).isprintable()
        assert len(str(raised.value)) < 1_000
