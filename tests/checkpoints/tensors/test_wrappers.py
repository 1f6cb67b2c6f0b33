"""What training programs put around tensors and in front of their names changes nothing, in any layout."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from openblip.checkpoints.lavis.read import LavisFiles, read_lavis
from openblip.checkpoints.loading import load_parts
from openblip.checkpoints.lora.files import Adapter, LowRank, read_adapter, write_adapter
from openblip.checkpoints.tensors.wrappers import BLIP2_ROOTS, peel, unwrap
from openblip.checkpoints.tools.inspect import inspect
from openblip.checkpoints.transformers.read import load_transformers
from openblip.errors import CheckpointError
from tests.checkpoints.theirs import Theirs, write_writer
from tests.pairs.lavis import recorded_config, recorded_weights

FRONTS = ("", "module.", "_orig_mod.", "model.", "blip2.", "base_model.model.", "base_model.model.model.", "net.model.")
ENTRIES = ("model", "state_dict", "model_state_dict", "module")
INSIDE = ("", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
BESIDE = {"epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "pytorch-lightning_version": "2.5"}

fronts = st.lists(st.sampled_from(FRONTS), max_size=3).map("".join)
entries = st.lists(st.sampled_from(ENTRIES), max_size=3)
inside = st.sampled_from(INSIDE)
some = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def renamed(state: dict[str, Tensor], front: str, within: str) -> dict[str, Tensor]:
    """A wrapper around the whole, and one around every part that has names within."""
    return {front + name.replace(".", f".{within}", 1): tensor for name, tensor in state.items()}


def wrapped(state: object, names: list[str]) -> Any:
    for name in names:
        state = {**BESIDE, name: state}
    return state


def same(found: nn.Module, expected: dict[str, Tensor]) -> bool:
    state = found.state_dict()
    return state.keys() == expected.keys() and all(
        torch.equal(state[name], tensor) for name, tensor in expected.items()
    )


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Theirs:
    return write_writer(tmp_path_factory.mktemp("writer"))


@some
@given(front=fronts, within=inside, names=entries, safe=st.booleans())
def test_folders_of_transformers(
    writer: Theirs, tmp_path: Path, front: str, within: str, names: list[str], safe: bool
) -> None:
    expected = load_transformers(writer.folder).network.state_dict()
    folder = Path(shutil.copytree(writer.folder, tmp_path / "copy", dirs_exist_ok=True))
    state = renamed(load_file(writer.folder / "model.safetensors"), front, within)
    for name in ("model.safetensors", "pytorch_model.bin"):
        (folder / name).unlink(missing_ok=True)
    if safe:
        save_file(state, folder / "model.safetensors")
    else:
        torch.save(wrapped(state, names), folder / "pytorch_model.bin")
    assert same(load_transformers(folder).network, expected)
    assert inspect(folder).parts == inspect(writer.folder).parts


@some
@given(front=fronts, within=inside, names=entries, safe=st.booleans())
def test_files_of_lavis(tmp_path: Path, front: str, within: str, names: list[str], safe: bool) -> None:
    config, state = recorded_config(1), recorded_weights(1)
    encoder = {name: tensor for name, tensor in state.items() if name.startswith("visual_encoder.")}
    trained = {name: tensor for name, tensor in state.items() if name not in encoder}
    plain = LavisFiles(tmp_path / "plain.pth", tmp_path / "plain_vit.pth")
    torch.save({"model": trained}, plain.checkpoint)
    bare = {name.removeprefix("visual_encoder."): tensor for name, tensor in encoder.items()}
    torch.save(bare, tmp_path / "plain_vit.pth")
    expected = read_lavis(config, plain).state_dict()
    ending = "safetensors" if safe else "pth"
    files = LavisFiles(tmp_path / f"trained.{ending}", tmp_path / "vit.pth")
    content = renamed(trained, front, within)
    if safe:
        save_file({name: tensor.contiguous().clone() for name, tensor in content.items()}, files.checkpoint)
    else:
        torch.save(wrapped(content, names), files.checkpoint)
    torch.save(wrapped(renamed(bare, front, ""), names), tmp_path / "vit.pth")
    assert same(read_lavis(config, files), expected)


@some
@given(front=fronts, names=entries, own=st.sampled_from(["", "default.", "mine."]), pickled=st.booleans())
def test_adapters(tmp_path: Path, front: str, names: list[str], own: str, pickled: bool) -> None:
    layers = {
        "language_model.model.decoder.layers.0.self_attn.q_proj": LowRank(torch.randn(2, 5), torch.randn(4, 2), 4.0),
        "qformer.encoder.layer.0.output_query.dense": LowRank(torch.randn(2, 3), torch.randn(6, 2), 4.0),
    }
    folder = tmp_path / "adapter"
    weights = write_adapter(Adapter(folder, "base", layers), folder)
    state = {front + name.removeprefix("base_model.model."): tensor for name, tensor in load_file(weights).items()}
    state = {name.replace(".weight", f".{own}weight"): tensor for name, tensor in state.items()}
    (folder / "adapter_model.bin").unlink(missing_ok=True)
    if pickled:
        weights.unlink()
        torch.save(wrapped(state, names), folder / "adapter_model.bin")
    else:
        save_file(state, weights)
    found = read_adapter(folder).layers
    assert found.keys() == layers.keys()
    assert all(torch.equal(found[name].a, one.a) and torch.equal(found[name].b, one.b) for name, one in layers.items())


@some
@given(front=fronts, within=inside)
def test_folders_of_ours(tiny_model_folder: Path, tmp_path: Path, front: str, within: str) -> None:
    folder = Path(shutil.copytree(tiny_model_folder, tmp_path / "copy", dirs_exist_ok=True))
    save_file(renamed(load_file(tiny_model_folder / "model.safetensors"), front, within), folder / "model.safetensors")
    assert same(load_parts(folder).network, load_parts(tiny_model_folder).network.state_dict())


# What is odd is named


def test_strangers_beside_a_wrapped_model_are_named(writer: Theirs, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(writer.folder, tmp_path / "copy"))
    state = {f"model.{name}": one for name, one in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    torch.save({"state_dict": {**state, "criterion.weight": torch.ones(2)}}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"criterion\.weight in pytorch_model\.bin is unknown"):
        load_transformers(folder)
    torch.save({**state, "_orig_mod.model.query_tokens": state["model.query_tokens"]}, folder / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"has query_tokens twice, as model\.query_tokens and as _orig_mod\.model"
    ):
        load_transformers(folder)
    missing = {name: one for name, one in state.items() if name != "model.query_tokens"}
    torch.save(missing, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"query_tokens is missing from pytorch_model\.bin"):
        load_transformers(folder)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"hyper_parameters": argparse.Namespace(lr=1), "state_dict": {}},
            r"could run code \(it names argparse.Namespace",
        ),
        ({"state_dict": {"a": torch.ones(1), "b": [1]}}, r"more than named tensors, 'b': .*save model\.state_dict\(\)"),
        ({"epoch": 3, "optimizer": {"state": {}}}, r"more than named tensors, 'epoch', 'optimizer'"),
    ],
)
def test_what_is_no_state_is_named(writer: Theirs, tmp_path: Path, content: object, words: str) -> None:
    folder = Path(shutil.copytree(writer.folder, tmp_path / "copy"))
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=words):
        load_transformers(folder)


def test_several_adapters_in_one_file_are_named(tmp_path: Path) -> None:
    layer = "qformer.encoder.layer.0.output_query.dense"
    weights = write_adapter(
        Adapter(tmp_path, "base", {layer: LowRank(torch.randn(2, 3), torch.randn(6, 2), 4.0)}), tmp_path
    )
    state = load_file(weights)
    both = {name.replace(".weight", f".{own}.weight"): one.clone() for own in ("a", "b") for name, one in state.items()}
    save_file(both, weights)
    with pytest.raises(CheckpointError, match="holds several adapters, a, b: save one"):
        read_adapter(tmp_path)


def test_a_front_is_taken_off_only_where_all_have_it() -> None:
    path = Path("x")
    assert peel(path, ["model.query_tokens", "query_tokens"], BLIP2_ROOTS) == {
        "model.query_tokens": "model.query_tokens",
        "query_tokens": "query_tokens",
    }
    assert peel(path, ["vision_model.embeddings.class_embedding"], BLIP2_ROOTS) == {
        "vision_model.embeddings.class_embedding": "vision_model.embeddings.class_embedding"
    }
    assert peel(path, ["a.b", "c"], BLIP2_ROOTS) == {"a.b": "a.b", "c": "c"}
    assert unwrap(json.loads("[1]")).tensors == {} and unwrap({"model": {"model": 3}}).tensors == {}
