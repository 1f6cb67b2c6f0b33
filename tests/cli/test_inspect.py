"""`openblip inspect`."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch

from openblip.checkpoints.lora.files import read_adapter, write_adapter
from tests.checkpoints.lora.test_files import adapter_of

from .conftest import Run


def test_it_tells_parts_types_and_what_is_missing(run: Run, tmp_path: Path) -> None:
    # what tells OPT-2.7b from others, and nothing more
    state = {
        "query_tokens": torch.ones(1, 32, 768),
        "Qformer.bert.encoder.layer.0.crossattention.self.key.weight": torch.ones(768, 1408).half(),
        "opt_proj.weight": torch.ones(2560, 768),
    }
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": state, "epoch": 4}, path)
    ran = run("inspect", path)
    assert (ran.code, ran.err) == (0, "")
    assert ran.lines[0].startswith(f"{path}: LAVIS file, 10.1 MB, 3.1 M weights")
    assert [line.split() for line in ran.lines[1:3]] == [
        ["Q-Former", "1.1", "M", "float16,", "float32"],
        ["projection", "2.0", "M", "float32"],
    ]
    assert "  image encoder   not in here: eva_vit_g.pth has it" in ran.lines
    assert "  language model  not in here: facebook/opt-2.7b has it" in ran.lines
    assert ran.lines[-2:] == ["  beside the weights: epoch", "  most likely: blip2_opt/pretrain_opt2.7b"]
    (record,) = run("inspect", path, "--json").records
    assert record["guess"] == ["blip2_opt/pretrain_opt2.7b"]
    assert record["parts"]["Q-Former"] == {
        "parameters": 768 * 1408 + 32 * 768,
        "types": {"float16": 768 * 1408, "float32": 32 * 768},
    }
    assert record["parameters"] == sum(tensor.numel() for tensor in state.values())


def test_a_model_folder(run: Run, tiny_model_folder: Path) -> None:
    ran = run("inspect", tiny_model_folder)
    assert ran.lines[0].startswith(f"{tiny_model_folder}: OpenBLIP folder")
    assert ran.lines[-1] == "  most likely: tiny"


def test_an_adapter_says_of_which_model_it_is(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    write_adapter(adapter_of("Salesforce/blip2-opt-2.7b", folder), folder)
    adapter = read_adapter(folder)
    ran = run("inspect", folder)
    assert (ran.code, ran.err) == (0, "")
    assert ran.lines[0].startswith(f"{folder}: LoRA adapter, ")
    first = next(iter(adapter.layers.values()))
    ranks = ", ".join(map(str, sorted({one.rank for one in adapter.layers.values()})))
    ends = ", ".join(sorted({name.rpartition(".")[2] for name in adapter.layers}))
    assert ran.lines[-1] == (
        f"  of Salesforce/blip2-opt-2.7b: rank {ranks}, alpha {first.alpha:g}, on {len(adapter.layers)} layers: {ends}"
    )
    assert not any(line.split()[0] == "other" for line in ran.lines)
    (record,) = run("inspect", folder, "--json").records
    assert record["format"] == "LoRA adapter"
    assert record["adapter"]["base"] == "Salesforce/blip2-opt-2.7b"
    (beside,) = run("inspect", folder / "adapter_model.safetensors", "--json").records
    assert beside["adapter"] == record["adapter"], "the file knows as much as its folder"
    (plain,) = run("inspect", lone_file(tmp_path), "--json").records
    assert plain["adapter"] is None


def lone_file(tmp_path: Path) -> Path:
    torch.save({"query_tokens": torch.ones(1, 32, 768)}, tmp_path / "plain.pth")
    return tmp_path / "plain.pth"


def test_bad_files_are_one_sentence(run: Run, tmp_path: Path) -> None:
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(print))
    for name in ("evil.pth", "nowhere.pth"):
        ran = run("inspect", tmp_path / name)
        assert (ran.code, ran.out) == (2, "")
        assert ran.err.startswith(f"error: {tmp_path / name} ")
        assert ran.err.count("\n") == 1
