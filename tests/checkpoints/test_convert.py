"""Round trips between the layouts, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from openblip.checkpoints.convert import convert
from openblip.checkpoints.lavis_files import LavisFiles, read_lavis
from openblip.checkpoints.loading import load_parts
from openblip.errors import OptionError
from tests.checkpoints.theirs import write_matcher, write_writer


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_parts(folder).network.state_dict()


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("write", [write_writer, write_matcher])
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
