"""What files of weights are taken for: official ones by their real names and shapes, ours, others, and bad ones."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from openblip.checkpoints.blip2_models import OFFICIAL
from openblip.checkpoints.hub.sources import WebFile
from openblip.checkpoints.model_entry import LANGUAGE, PROJECTION, QFORMER, TEXT, VISION, ModelEntry
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.openblip.folder import save_native
from openblip.checkpoints.tools import inspect as contents
from openblip.checkpoints.tools.inspect import inspect, part_of
from openblip.errors import CheckpointError
from tests.checkpoints.official import FILES, shapes_of
from tests.checkpoints.theirs import Theirs, write_matcher, write_writer


def write_header(path: Path, shapes: Mapping[str, tuple[int, ...]], kind: str = "F32") -> Path:
    """A safetensors file of these shapes and of full length, of which only the header takes room on the disk."""
    size, offset, header = {"F32": 4, "F16": 2}[kind], 0, {}
    for name, shape in shapes.items():
        end = offset + prod(shape) * size
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return path


def supplied_by(file: str) -> ModelEntry:
    return next(model for model in OFFICIAL if any(source.name == file for source in model.files))


@pytest.mark.parametrize("file", [file for file in FILES if file != "eva_vit_g.pth"])
def test_official_files_are_recognized(tmp_path: Path, file: str) -> None:
    found = inspect(write_header(tmp_path / "some.safetensors", shapes_of(file)))
    model = supplied_by(file)
    assert (found.format, found.guess) == ("LAVIS file", (model.name,))
    supplied = next(source for source in model.files if source.name == file).supplies
    for part, parameters in model.params.items():
        if part in supplied:
            assert found.parts[part].parameters == parameters
    sources = {part: source.name for source in model.files for part in source.supplies if source.name != file}
    assert found.elsewhere == sources


def test_what_official_files_lack_is_told(tmp_path: Path) -> None:
    found = inspect(write_header(tmp_path / "x.safetensors", shapes_of("blip2_pretrained_opt2.7b.pth"), "F16"))
    assert found.elsewhere == {VISION: "eva_vit_g.pth", LANGUAGE: "facebook/opt-2.7b"}
    assert found.parts[QFORMER].types == {"float16": 105_162_240}
    assert found.size == pytest.approx(2 * found.parameters, rel=0.001)


def test_frozen_parts_are_recognized(tmp_path: Path) -> None:
    encoder = inspect(write_header(tmp_path / "a.safetensors", shapes_of("eva_vit_g.pth"), "F16"))
    assert (encoder.format, encoder.guess) == ("safetensors file", ("eva_vit_g.pth",))
    assert encoder.parts.keys() == {VISION}
    words = {"model.decoder.embed_tokens.weight": (50272, 2560), "lm_head.weight": (50272, 2560)}
    layers = {f"model.decoder.layers.{index}.fc1.weight": (10240, 2560) for index in range(32)}
    language = inspect(write_header(tmp_path / "b.safetensors", words | layers))
    assert language.guess == ("facebook/opt-2.7b",)
    # the head is the word table once more
    assert language.parts[LANGUAGE].parameters == 50272 * 2560 + 32 * 10240 * 2560
    words = {"shared.weight": (32128, 4096), "lm_head.weight": (32128, 4096)}
    layers = {f"decoder.block.{index}.layer.0.SelfAttention.q.weight": (4096, 4096) for index in range(24)}
    flan = inspect(write_header(tmp_path / "c.safetensors", words | layers))
    assert flan.guess == ("google/flan-t5-xxl",)
    assert flan.parts[LANGUAGE].parameters == 2 * 32128 * 4096 + 24 * 4096 * 4096


def test_folders_of_transformers_are_recognized(tmp_path: Path) -> None:
    shapes = {
        "query_tokens": (1, 32, 768),
        "vision_model.embeddings.position_embedding": (1, 677, 1408),
        "vision_model.post_layernorm.weight": (1408,),
        "qformer.encoder.layer.0.crossattention.attention.key.weight": (768, 1408),
        "qformer.encoder.layer.0.intermediate_query.dense.weight": (3072, 768),
        "language_projection.weight": (2560, 768),
        "language_model.model.decoder.embed_tokens.weight": (50304, 2560),
        "language_model.lm_head.weight": (50304, 2560),
    }
    write_header(tmp_path / "one.safetensors", dict(list(shapes.items())[:4]))
    write_header(tmp_path / "two.safetensors", dict(list(shapes.items())[4:]))
    index = {name: "one.safetensors" if place < 4 else "two.safetensors" for place, name in enumerate(shapes)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (tmp_path / "config.json").write_text('{"model_type": "blip-2"}')
    found = inspect(tmp_path)
    assert (found.format, found.guess) == ("transformers folder", ("Salesforce/blip2-opt-2.7b-coco",))
    assert found.parts.keys() == {VISION, QFORMER, PROJECTION, LANGUAGE}
    assert found.parts[LANGUAGE].parameters == 50304 * 2560
    assert found.notes == ()
    (tmp_path / "one.safetensors").unlink()
    assert inspect(tmp_path).notes == ("one.safetensors is missing",)
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(CheckpointError, match="none of its files is there"):
        inspect(tmp_path)


@pytest.mark.parametrize(("write", "last"), [(write_writer, {PROJECTION, LANGUAGE}), (write_matcher, {TEXT})])
def test_what_transformers_itself_writes_is_counted_exactly(
    tmp_path: Path, write: Callable[[Path], Theirs], last: set[str]
) -> None:
    theirs = write(tmp_path)
    found = inspect(tmp_path)
    assert (found.format, found.guess) == ("transformers folder", ())
    assert found.parts.keys() == {VISION, QFORMER} | last
    assert found.parameters == sum(parameter.numel() for parameter in theirs.model.parameters())


@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_our_folders_are_recognized(tmp_path: Path, tiny_parts: ModelParts, storage: str) -> None:
    save_native(tiny_parts, tmp_path, storage)
    found = inspect(tmp_path)
    assert (found.format, found.guess) == ("OpenBLIP folder", ("tiny",))
    assert found.parameters == sum(tensor.numel() for tensor in tiny_parts.network.state_dict().values())
    assert found.parts.keys() == {VISION, QFORMER, TEXT, PROJECTION, LANGUAGE}
    assert any("int8" in part.types for part in found.parts.values()) == (storage == "int8")


def test_every_name_of_ours_belongs_to_a_part(tiny_parts: ModelParts) -> None:
    assert {part_of(name) for name in tiny_parts.network.state_dict()} == {VISION, QFORMER, TEXT, PROJECTION, LANGUAGE}


def test_pickled_files_are_read_with_what_is_beside(tmp_path: Path) -> None:
    state = {"Qformer.bert.embeddings.LayerNorm.weight": torch.ones(8).half(), "opt_proj.weight": torch.ones(4, 8)}
    torch.save({"model": state, "epoch": 3, "config": {"lr": 0.1}}, tmp_path / "a.pth")
    found = inspect(tmp_path / "a.pth")
    assert found.format == "LAVIS file"
    assert {name: dict(part.types) for name, part in found.parts.items()} == {
        QFORMER: {"float16": 8},
        PROJECTION: {"float32": 32},
    }
    assert found.notes == ("beside the weights: epoch, config",)
    assert found.guess == ()
    torch.save(state, tmp_path / "b.bin")
    assert inspect(tmp_path / "b.bin").parameters == 40
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert inspect(tmp_path / "old.pt").parameters == 40


def test_a_large_pickled_file_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: asked.append(options) or load(*args, **options))
    torch.save({"model": {"t5_proj.weight": torch.ones(4, 8)}}, tmp_path / "a.pth")
    inspect(tmp_path / "a.pth")
    assert asked == [{"map_location": "cpu", "weights_only": True, "mmap": True}]


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("with_torch", [True, False], ids=["torch", "pickle"])
def test_a_file_that_would_run_code_is_refused(tmp_path: Path, with_torch: bool) -> None:
    path, victim = tmp_path / "evil.pth", tmp_path / "victim"
    content = {"model": {"opt_proj.weight": Hostile(f"echo > {victim}")}}
    if with_torch:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=r"evil\.pth is broken or holds more than tensors, which could run code"):
        inspect(path)
    assert not victim.exists()


def test_what_holds_no_weights_is_told(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    save_file({"a": torch.ones(9)}, tmp_path / "short.safetensors")
    whole = (tmp_path / "short.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(whole[:-4])
    (tmp_path / "lies.safetensors").write_bytes(whole[:8] + b"?" * (len(whole) - 8))
    (tmp_path / "tiny.safetensors").write_bytes(b"123")
    (tmp_path / "text.pth").write_text("hello, I am no weights at all")
    (tmp_path / "empty").mkdir()
    for name, message in {
        "list.pth": "holds no named tensors",
        "numbers.pth": "holds no named tensors",
        "short.safetensors": "bytes, its header says",
        "lies.safetensors": "is no whole safetensors file",
        "tiny.safetensors": "is no whole safetensors file",
        "text.pth": "is broken",
        "empty": "holds no weights",
        ".": "holds several files of weights: give one",
        "nowhere": "does not exist",
    }.items():
        with pytest.raises(CheckpointError, match=message) as raised:
            inspect(tmp_path / name)
        assert "\n" not in str(raised.value)


def test_an_unknown_file_is_still_counted(tmp_path: Path) -> None:
    save_file({"linear.weight": torch.ones(3, 4)}, tmp_path / "model.safetensors")
    found = inspect(tmp_path)
    assert (found.format, found.guess) == ("safetensors file", ())
    assert found.parts[contents.OTHER].parameters == 12


def test_every_zoo_file_has_a_name_that_inspect_tells() -> None:
    assert {source.name for model in OFFICIAL for source in model.files if isinstance(source, WebFile)} >= set(FILES)
    assert supplied_by("blip2_finetune_coco.pth").files[0].name == "blip2_finetune_coco.pth"
