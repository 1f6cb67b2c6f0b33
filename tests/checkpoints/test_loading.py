"""What `openblip.load` says to what is no model; models without a part; which files are behind a name."""

from __future__ import annotations

import inspect
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

import openblip
from openblip import errors
from openblip.checkpoints.hub import download as hub_download
from openblip.checkpoints.lavis.read import read_lavis
from openblip.checkpoints.loading import load_parts
from openblip.checkpoints.lora.files import write_adapter
from openblip.checkpoints.origin import origin_of
from openblip.checkpoints.read_options import ReadOptions
from openblip.checkpoints.tensors.assign import VISION
from openblip.checkpoints.tensors.files import SafetensorsFile
from openblip.errors import CheckpointError, OpenBlipError, OptionError
from openblip.nn.blip2 import Blip2Network
from tests.checkpoints.lavis.test_read import lay_out
from tests.checkpoints.lora.test_files import adapter_of
from tests.checkpoints.theirs import write_writer
from tests.pairs.lavis import recorded_config, recorded_weights


def test_every_error_can_be_caught_by_its_public_name() -> None:
    known = {name for name, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, OpenBlipError)}
    assert known <= set(openblip.__all__)
    assert all(getattr(openblip, name) is getattr(errors, name) for name in known)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        (None, OptionError, "the model is None: give its name"),
        (b"mini", OptionError, "the model is b'mini'"),
        (5, OptionError, "the model is 5"),
        ("", CheckpointError, "name is empty"),
        (" ", CheckpointError, "name is empty"),
        ("./nowhere", CheckpointError, r"\./nowhere is neither a model folder"),
        ("C:\\models\\blip2", CheckpointError, "is neither a model folder"),
        ("x" * 5000, CheckpointError, "cannot be looked at|is neither a model folder"),
        ("a\0b", CheckpointError, "is neither a model folder|cannot be looked at"),
        (Path("mini"), CheckpointError, "mini is neither a model folder"),
    ],
)
def test_what_is_no_name(
    name: object, kind: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=message):
        openblip.load(name)  # type: ignore[arg-type]


def test_a_checkpoint_is_looked_for_before_anything_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_download, "download", lambda *_, **__: pytest.fail("15 GB for nothing"))
    with pytest.raises(CheckpointError, match=r"nowhere\.pth is no file"):
        openblip.load("blip2_opt/pretrain_opt2.7b", checkpoint=tmp_path / "nowhere.pth")


COUNTED = "num_batches_tracked"
"""A number that PyTorch makes up where a file has none."""


def only_lacks_vision(found: Blip2Network, expected: dict[str, Tensor]) -> bool:
    state = found.state_dict()
    return state.keys() == expected.keys() and all(
        tensor.is_meta if name.startswith(VISION) else torch.equal(tensor, expected[name])
        for name, tensor in state.items()
        if not name.endswith(COUNTED)
    )


@pytest.mark.parametrize(("kind", "bits"), [("ours", None), ("theirs", 0), ("theirs", 8)])
def test_a_part_that_is_left_out_is_not_read(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, bits: int | None
) -> None:
    folder = tiny_model_folder if kind == "ours" else write_writer(tmp_path / "theirs").folder
    expected = load_parts(folder, ReadOptions(bits=bits)).network.state_dict()
    names: list[str] = []
    read = SafetensorsFile.read
    monkeypatch.setattr(SafetensorsFile, "read", lambda file, name: names.append(name) or read(file, name))
    assert only_lacks_vision(load_parts(folder, ReadOptions(bits=bits, left_out=(VISION,))).network, expected)
    of_encoder = [name for name in names if name.startswith((VISION, "vision_model."))]
    # transformers counts the norm behind the encoder to it.
    assert names and all(name.startswith("vision_model.post_layernorm.") for name in of_encoder)
    names.clear()
    outline = load_parts(folder, ReadOptions(left_out=("",))).network
    assert not names and all(parameter.is_meta for parameter in outline.parameters())


def test_lavis_files_without_the_encoder(tmp_path: Path) -> None:
    config, files = recorded_config(1), lay_out(tmp_path, recorded_weights(1))
    expected = read_lavis(config, files).state_dict()
    assert only_lacks_vision(read_lavis(config, files, ReadOptions(left_out=(VISION,))), expected)


def test_the_files_behind_a_name(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))
    (folder / "checkpoint.pt").write_text("a run's own")
    first = origin_of(str(folder))
    assert first is not None
    assert {Path(path).name for path, _, _ in first} == {path.name for path in tiny_model_folder.iterdir()}
    assert first == origin_of(str(folder)) != origin_of(str(tiny_model_folder))
    write_adapter(adapter_of(str(folder), tmp_path / "adapter"), tmp_path / "adapter")
    above = origin_of(str(tmp_path / "adapter"))
    assert above is not None and set(first) < set(above)
    os.utime(folder / "model.safetensors", ns=(0, 1))
    assert origin_of(str(folder)) != first and origin_of(str(tmp_path / "adapter")) != above
    assert origin_of("mini")
    assert origin_of(str(tmp_path / "nowhere")) is None
    assert origin_of("nobody/nothing-of-the-kind") is None
    assert origin_of("x" * 5000) is origin_of("a\0b") is None
