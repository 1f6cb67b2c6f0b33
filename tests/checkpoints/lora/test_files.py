"""Adapters in files: written and read bit for bit, found by name, refused with a sentence where they are of no use."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import openblip
from openblip.checkpoints.loading import load_parts
from openblip.checkpoints.lora.files import Adapter, LowRank, read_adapter, write_adapter
from openblip.checkpoints.lora.fit import find_adapter
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.read_options import ReadOptions
from openblip.checkpoints.tools.inspect import inspect
from openblip.checkpoints.tools.merge import merge_adapter
from openblip.errors import CheckpointError, DownloadError, OpenBlipError, OptionError
from tests.checkpoints.web import Web, add_repository, serve

QUERY = "language_model.model.decoder.layers.0.self_attn.q_proj"
FFN = "language_model.model.decoder.layers.1.fc1"
DENSE = "qformer.encoder.layer.0.output_query.dense"
WIDTH, WIDE = 32, 64


def low_rank(inputs: int = WIDTH, outputs: int = WIDTH, rank: int = 3, alpha: float = 6, **more: Any) -> LowRank:
    random = torch.Generator().manual_seed(inputs + outputs + rank)
    a, b = torch.randn(rank, inputs, generator=random), torch.randn(outputs, rank, generator=random)
    return LowRank(a * 0.2, b * 0.2, alpha, **more)


def adapter_of(base: str | None, folder: Path) -> Adapter:
    layers = {QUERY: low_rank(), FFN: low_rank(outputs=WIDE, rank=2, alpha=3), DENSE: low_rank(WIDE, WIDTH)}
    return Adapter(folder, base, layers, dropout=0.1)


@pytest.fixture
def folder(tmp_path: Path, tiny_model_folder: Path) -> Path:
    """An adapter for the tiny model that may be changed."""
    made = tmp_path / "adapter"
    write_adapter(adapter_of(str(tiny_model_folder), made), made)
    return made


def with_adapter(model: Path, adapter: str | Path) -> ModelParts:
    return load_parts(model, ReadOptions(adapter=find_adapter(adapter)))


def edit(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def change(folder: Path, do: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    do(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def test_what_is_written_is_read(folder: Path) -> None:
    found, expected = read_adapter(folder), adapter_of("", folder)
    assert found.layers.keys() == expected.layers.keys() and found.dropout == 0.1
    for name, one in expected.layers.items():
        assert torch.equal(found.layers[name].a, one.a) and torch.equal(found.layers[name].b, one.b)
        assert (found.layers[name].alpha, found.layers[name].rank) == (one.alpha, one.rank)


def test_merging_changes_what_it_should(folder: Path, tiny_model_folder: Path) -> None:
    before = load_parts(tiny_model_folder).network.state_dict()
    after = with_adapter(tiny_model_folder, folder).network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        "decoder.layers.0.qkv.weight",
        "decoder.layers.1.fc1.weight",
        "qformer.layers.0.query_ffn.fc2.weight",
    }
    name = "decoder.layers.0.qkv.weight"
    one = read_adapter(folder).layers[QUERY]
    assert torch.equal(after[name][WIDTH:], before[name][WIDTH:])
    assert torch.allclose(after[name][:WIDTH], before[name][:WIDTH] + 2.0 * one.b @ one.a, atol=1e-6)


def test_lengths_of_rows_are_those_that_were_learnt(folder: Path, tiny_model_folder: Path) -> None:
    lengths = torch.rand(WIDTH) + 0.5
    write_adapter(Adapter(folder, None, {QUERY: low_rank(magnitude=lengths)}), folder)
    merged = with_adapter(tiny_model_folder, folder).network.decoder.layers[0].qkv.weight
    assert torch.allclose(merged[:WIDTH].norm(dim=1), lengths, atol=1e-6)


def test_a_folder_with_an_adapter_alone_is_a_model(
    folder: Path, tiny_model_folder: Path, tmp_path: Path, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = openblip.load(tiny_model_folder, adapter=folder, device="cpu")
    assert expected.name == "tiny + adapter"
    captions = expected.caption(image_paths)
    assert captions != openblip.load(tiny_model_folder, device="cpu").caption(image_paths)
    assert openblip.load(folder, device="cpu").caption(image_paths) == captions
    # Beside the adapter, too, wherever one is.
    (tmp_path / "base").symlink_to(tiny_model_folder)
    edit(folder, base_model_name_or_path="../base")
    monkeypatch.chdir("/")
    assert openblip.load(folder, device="cpu").caption(image_paths) == captions
    merged = merge_adapter(folder, tmp_path / "merged").parent
    assert openblip.load(merged, device="cpu").caption(image_paths) == captions
    assert openblip.load(merged, device="cpu").name == "merged"
    whole, again = (load_parts(place).network.state_dict() for place in (folder, merged))
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def test_pickled_tensors_are_read_and_nothing_else(folder: Path, tiny_model_folder: Path) -> None:
    expected = with_adapter(tiny_model_folder, folder).network.state_dict()
    weights = folder / "adapter_model.safetensors"
    torch.save(load_file(weights), folder / "adapter_model.bin")
    weights.unlink()
    found = with_adapter(tiny_model_folder, folder).network.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"x": Evil()}))
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin is broken"):
        with_adapter(tiny_model_folder, folder)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("it was run",))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peft_type": "IA3"}, "of peft_type 'IA3': only LORA"),
        ({"peft_type": None}, "of peft_type None"),
        ({"bias": "all"}, "the model's biases were trained, too"),
        ({"lora_bias": True}, r"has biases of its own \(lora_bias\)"),
        ({"trainable_token_indices": [1]}, "changes the vectors of some words"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes the model under the adapter"),
        ({"r": 4}, "has rank 3, and adapter_config.json says 4"),
        ({"rank_pattern": {"(": 3}}, "adapter: "),
        ({"rank_pattern": [3]}, "adapter: "),
        ({"lora_alpha": "much"}, "says that lora_alpha is 'much', not a number"),
        ({"lora_alpha": None}, "says that lora_alpha is None, not a number"),
        ({"r": "3"}, "says that r is '3', not a number"),
        ({"lora_dropout": [0.1]}, r"says that lora_dropout is \[0.1\], not a number"),
        ({"use_rslora": "no"}, "says that use_rslora is 'no', not true or false"),
        ({"lora_alpha": float("nan")}, "is infinite or none: the training has failed"),
        ({"use_dora": True}, r"lengths of rows \(DoRA\) that do not fit"),
    ],
)
def test_adapters_of_another_kind(folder: Path, tiny_model_folder: Path, settings: dict[str, Any], said: str) -> None:
    edit(folder, **settings)
    with pytest.raises(CheckpointError, match=said):
        with_adapter(tiny_model_folder, folder)


def key(layer: str, factor: str) -> str:
    return f"base_model.model.{layer}.lora_{factor}.weight"


@pytest.mark.parametrize(
    ("do", "said"),
    [
        (lambda t: t.pop(key(QUERY, "B")), r"q_proj has lora_A without lora_B"),
        (
            lambda t: t.update({key(QUERY, "B"): torch.ones(40, 3)}),
            r"q_proj is \[40, 32\] in the adapter and \[32,",
        ),
        (
            lambda t: t.update({key(QUERY, "A"): torch.ones(3, 31)}),
            r"q_proj is \[32, 31\] in the adapter and \[32,",
        ),
        (lambda t: t.update({key(QUERY, "A"): torch.ones(5, 32)}), r"lora_A \[5, 32\] and lora_B \[32, 3\]: they are"),
        (lambda t: t.update({key(QUERY, "A"): torch.ones(3, 8, 4)}), r"lora_A \[3, 8, 4\]"),
        (lambda t: t.update({key(QUERY, "A"): torch.full((3, 32), torch.nan)}), "is infinite or none"),
        (lambda t: t.update({"base_model.model.x.lora_embedding_A": torch.ones(3, 9)}), "holds more than adapters"),
        (lambda t: t.update({"base_model.model.language_projection.weight": torch.ones(2, 2)}), "holds more than"),
        (lambda t: [t.pop(name) for name in list(t)], "holds no adapter"),
        (
            lambda t: t.update({name.replace("layers.0", "layers.9"): t.pop(name) for name in list(t)}),
            r"which was trained on .*tiny, does not fit this model: it has no linear layer .*layers\.9\.self_attn",
        ),
        (
            lambda t: t.update(
                {
                    key("language_model.model.decoder.embed_tokens", "A"): torch.ones(3, 32),
                    key("language_model.model.decoder.embed_tokens", "B"): torch.ones(320, 3),
                }
            ),
            "it has no linear layer language_model.model.decoder.embed_tokens",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    folder: Path, tiny_model_folder: Path, do: Callable[[dict[str, Tensor]], Any], said: str
) -> None:
    change(folder, do)
    with pytest.raises(CheckpointError, match=said):
        with_adapter(tiny_model_folder, folder)


def test_broken_folders(folder: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="is broken"):
        with_adapter(tiny_model_folder, folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is missing"):
        with_adapter(tiny_model_folder, folder)
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds no JSON object"):
        with_adapter(tiny_model_folder, folder)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json is missing"):
        with_adapter(tiny_model_folder, tiny_model_folder)
    with pytest.raises(CheckpointError, match="the adapter nowhere is not there"):
        with_adapter(tiny_model_folder, "nowhere")


@pytest.mark.parametrize(
    ("base", "kind", "said"),
    [
        (None, CheckpointError, "holds an adapter that does not say of which model: give the model's name or folder"),
        ("", CheckpointError, "does not say of which model"),
        (7, CheckpointError, "does not say of which model"),
        ("/gone/away", CheckpointError, "holds an adapter of /gone/away, which is not there"),
        ("mininy", CheckpointError, "cannot be read: mininy is neither a model folder nor a known model"),
        (".", CheckpointError, "holds an adapter of another adapter"),
    ],
)
def test_a_base_that_is_not_known(folder: Path, base: object, kind: type[OpenBlipError], said: str) -> None:
    edit(folder, base_model_name_or_path=base)
    with pytest.raises(kind, match=said):
        openblip.load(folder)


def test_an_adapter_for_an_adapter(folder: Path, tmp_path: Path, tiny_model_folder: Path) -> None:
    with pytest.raises(OptionError, match="holds an adapter itself: merge it with `openblip merge`"):
        openblip.load(folder, adapter=folder)
    with pytest.raises(OptionError, match="storage 'int3' is not one of"):
        merge_adapter(folder, tmp_path / "merged", storage="int3")
    with pytest.raises(OptionError, match="is not empty"):
        merge_adapter(folder, tiny_model_folder)
    assert not (tmp_path / "merged").exists()


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    with serve() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def test_adapters_on_the_hub(web: Web, folder: Path, tiny_model_folder: Path) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    add_repository(web, "someone/an-adapter", {**files, "optimizer.pt": b"no use", "README.md": b"mine"})
    expected = load_parts(folder).network.state_dict()
    for _ in range(2):
        # By its own name, and for a model; the second time nothing is asked for.
        for parts in (
            load_parts("someone/an-adapter"),
            with_adapter(tiny_model_folder, "someone/an-adapter"),
        ):
            assert parts.name == "tiny + an-adapter"
            found = parts.network.state_dict()
            assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        assert not web.gets("/someone/an-adapter/resolve/main/optimizer.pt")
        web.asked.clear()
    assert web.asked == []
    edit(folder, base_model_name_or_path="someone/else")
    with pytest.raises(DownloadError, match=r"the model under the adapter .* cannot be read: someone/else is not on"):
        load_parts(folder)


def test_the_folder_of_a_run_is_inspected_by_its_adapter(folder: Path) -> None:
    torch.save({"position": {}}, folder / "checkpoint.pt")
    found = inspect(folder)
    assert found.adapter is not None and found.format == "LoRA adapter"
