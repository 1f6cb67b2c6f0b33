"""BLIP's pre-training begins with files of DeiT and of BERT, in exactly their layouts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import openblip
from openblip.checkpoints.lavis.blip import to_lavis
from openblip.errors import CheckpointError, OptionError
from openblip.training.init.blip_from_parts import build_blip
from openblip.training.loop.run_identity import starting_files
from openblip.training.recipe import NewBlip, load_recipe
from openblip.training.run import train
from tests.models.blip_models import VOCABULARY
from tests.training.recipes import write_small_recipe

VIT_BLOCK = {
    "norm1.weight": (1,),
    "norm1.bias": (1,),
    "attn.qkv.weight": (3, 1),
    "attn.qkv.bias": (3,),
    "attn.proj.weight": (1, 1),
    "attn.proj.bias": (1,),
    "norm2.weight": (1,),
    "norm2.bias": (1,),
    "mlp.fc1.weight": (4, 1),
    "mlp.fc1.bias": (4,),
    "mlp.fc2.weight": (1, 4),
    "mlp.fc2.bias": (1,),
}
"""As in deit_base_patch16_224-b5f2ef4d.pth, in widths."""


def write_deit(path: Path, width: int = 192, depth: int = 2, grid: int = 2, patch: int = 16) -> dict[str, Tensor]:
    """A file of DeiT, with random weights; returns its tensors."""
    generator = torch.Generator().manual_seed(3)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + grid * grid, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    for block in range(depth):
        shapes |= {
            f"blocks.{block}.{name}": tuple(each * width for each in widths) for name, widths in VIT_BLOCK.items()
        }
    shapes |= {"norm.weight": (width,), "norm.bias": (width,), "head.weight": (1000, width), "head.bias": (1000,)}
    state = {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": state}, path)
    return state


def write_bert(folder: Path, pieces: list[str] = VOCABULARY, **sizes: Any) -> transformers.BertForPreTraining:
    """A folder as bert-base-uncased's: old names of norms, the heads of pre-training, words in vocab.txt."""
    torch.manual_seed(4)
    small = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
    config = transformers.BertConfig(vocab_size=len(pieces), **{**small, "max_position_embeddings": 64, **sizes})
    model = transformers.BertForPreTraining(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    state = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    assert {"bert.pooler.dense.weight", "cls.seq_relationship.weight", "cls.predictions.bias"} <= state.keys()
    save_file(state, folder / "model.safetensors")
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    write_deit(folder / "deit.pth")
    write_bert(folder / "bert")
    return folder


def parts_of(folder: Path) -> NewBlip:
    return NewBlip(str(folder / "deit.pth"), str(folder / "bert"), shared_width=16)


def bert_tensors(path: Path) -> dict[str, Tensor]:
    """A file of BERT under the names that LAVIS has for the same."""
    return {
        name.removeprefix("bert.").replace(".gamma", ".weight").replace(".beta", ".bias"): tensor
        for name, tensor in load_file(path).items()
    }


def test_weights_are_those_of_the_files(files: Path) -> None:
    parts = build_blip(parts_of(files), "begun", seed=1)
    found, used = to_lavis(parts.network), set()
    deit = torch.load(files / "deit.pth", weights_only=True)["model"]
    for name, tensor in deit.items():
        if not name.startswith("head."):
            used.add(f"visual_encoder.{name}")
            assert torch.equal(found[f"visual_encoder.{name}"], tensor), name
    count = len(VOCABULARY)
    for name, tensor in bert_tensors(files / "bert" / "model.safetensors").items():
        if "token_type" in name or name.startswith(("pooler.", "cls.seq_relationship.")):
            continue
        fronts = ("text_decoder.",) if name.startswith("cls.") else ("text_encoder.", "text_decoder.bert.")
        for front in fronts:
            if front + name in found:  # what both share stands under the encoder's name
                used.add(front + name)
                ours = found[front + name]
                grown = name.endswith(("word_embeddings.weight", "predictions.bias"))
                assert torch.equal(ours[:count] if grown else ours, tensor), front + name
                assert len(ours) == len(tensor) + 2 * grown
    new = {name for name in found.keys() - used if "position_ids" not in name}
    second = {"text_decoder.bert.", "text_decoder.cls.predictions.decoder."}
    fresh = {name for name in new if not any(name.startswith(front) for front in second)}
    assert {name.split(".")[0] for name in fresh if "crossattention" not in name} == {
        *("vision_proj", "text_proj", "itm_head", "temp")
    }
    cross = [name for name in fresh if "crossattention" in name]
    assert cross and all(name.startswith("text_encoder.") for name in cross)
    for name in cross:
        if name.endswith(".bias"):
            assert not found[name].any()
        elif "LayerNorm" in name:
            assert bool((found[name] == 1).all())
        else:
            assert 0.018 < float(found[name].std()) < 0.022
    rows = found["text_encoder.embeddings.word_embeddings.weight"][count:]
    assert 0.01 < float(rows.std()) < 0.03 and not found["text_decoder.cls.predictions.bias"][count:].any()
    assert float(found["temp"]) == pytest.approx(0.07)


@torch.no_grad()
def test_texts_are_read_as_bert_reads_them_without_segments(files: Path) -> None:
    parts = build_blip(parts_of(files), "begun", seed=1)
    theirs = transformers.BertForPreTraining.from_pretrained(files / "bert").eval()
    theirs.bert.embeddings.token_type_embeddings.weight.zero_()
    assert parts.matching is not None and parts.tokenizer is not None
    ids, mask = parts.matching.batch(["a photo of a dog", "what is this ?"])
    expected = theirs.bert(ids, mask).last_hidden_state
    seen = mask.bool()
    assert torch.allclose(parts.network.encoder(ids, mask)[seen], expected[seen], atol=1e-5)
    head = parts.network.decoder.logits(expected)[..., : len(VOCABULARY)]
    assert torch.allclose(head, theirs.cls.predictions(expected), atol=1e-4)
    assert parts.tokenizer.start_id == len(VOCABULARY) == parts.network.config.decode_id


def test_a_bert_without_its_head_begins_with_a_new_one(files: Path, tmp_path: Path) -> None:
    shutil.copytree(files, tmp_path / "parts")
    path = tmp_path / "parts" / "bert" / "model.safetensors"
    state = {name: tensor for name, tensor in load_file(path).items() if name.startswith("bert.")}
    save_file(state, path)
    one, two = (build_blip(parts_of(tmp_path / "parts"), "begun", seed).network for seed in (1, 1))
    assert all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert 0.015 < one.decoder.head.dense.weight.std().item() < 0.025
    assert torch.equal(one.encoder.layers[0].ffn.fc1.weight, state["bert.encoder.layer.0.intermediate.dense.weight"])


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def vision(**sizes: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        write_deit(folder / "deit.pth", **sizes)

    return change


def also(name: str, shape: tuple[int, ...]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        state = torch.load(folder / "deit.pth", weights_only=True)["model"]
        torch.save({"model": {**state, name: torch.zeros(shape)}}, folder / "deit.pth")

    return change


def less(file: str, name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        if file == "deit.pth":
            state = torch.load(folder / file, weights_only=True)["model"]
            del state[name]
            torch.save({"model": state}, folder / file)
        else:
            tensors = load_file(folder / file)
            del tensors[name]
            save_file(tensors, folder / file)

    return change


def configured(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "bert" / "config.json"
        content = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return change


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without("deit.pth"), r"deit\.pth is missing: new_blip\.vision is the weights file of a ViT"),
        (also("dist_token", (1, 1, 192)), r"deit\.pth: the image encoder has no place for dist_token"),
        (vision(width=128), r"5 positions of width 128: give a ViT .* and a width of 192, 384, 768, 1024"),
        (also("pos_embed", (1, 6, 192)), "6 positions of width 192: give a ViT with one class token"),
        (less("deit.pth", "blocks.1.mlp.fc2.bias"), r"deit\.pth is incomplete: blocks\.1\.mlp\.fc2\.bias is missing"),
        (less("deit.pth", "patch_embed.proj.weight"), r"not a ViT .*: patch_embed\.weight is missing or has other"),
        (also("norm.bias", (3,)), r"deit\.pth does not fit BLIP: final_norm\.bias has shape \[3\], expected \[192\]"),
        (without("bert/vocab.txt"), r"vocab\.txt is missing: new_blip\.bert is a folder"),
        (without("bert/config.json"), r"config\.json is missing"),
        (configured(num_attention_heads=None), "not the configuration of a BERT: it has no num_attention_heads"),
        (configured(num_attention_heads=5), "config.json.*5"),
        (configured(hidden_act="relu"), "has hidden_act 'relu': give a BERT with gelu"),
        (less("bert/model.safetensors", "cls.predictions.bias"), r"bert is incomplete: head\.bias is missing"),
    ],
)
def test_files_of_other_models_are_refused(
    files: Path, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    folder = tmp_path / "parts"
    shutil.copytree(files, folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=words) as raised:
        build_blip(parts_of(folder), "begun", seed=1)
    assert "\n" not in str(raised.value)


def recipe_of(folder: Path, data: Path, files: Path, **changes: Any) -> Path:
    new = parts_of(files)
    settings: dict[str, Any] = {
        "stage": "pretrain",
        "init": None,
        "new_blip": {"vision": new.vision, "bert": new.bert, "shared_width": new.shared_width},
        "train_vision": True,
        "cache": None,
        "batch_size": 5,
        "epochs": 1,
        "momentum": {"queue_size": 10},
        **changes,
    }
    return write_small_recipe(folder, data, folder, **settings)


def test_a_run_begins_with_them_at_another_size(files: Path, tmp_path: Path, data: Path) -> None:
    recipe = load_recipe(recipe_of(tmp_path, data, files, image_size=48, log_every=1))
    model = openblip.load(str(train(recipe)), device="cpu", dtype="float32")
    assert model.abilities == ("caption", "match", "embed", "classify")
    assert model.network.config.vision.image_size == 48 and model.network.vision.positions.shape == (1, 10, 192)
    begun = build_blip(parts_of(files), "begun", recipe.seed).network.state_dict()
    learnt = model.network.state_dict()
    assert begun.keys() == learnt.keys()
    assert all(not torch.equal(begun[name], learnt[name]) for name in begun if name.endswith("mlp.fc1.weight"))
    assert str(model.caption(data / "images/00.png")) is not None
    told = starting_files(recipe)
    assert {path.name for path in told["new_blip.bert"]} == {"config.json", "model.safetensors", "vocab.txt"}
    assert [path.name for path in told["new_blip.vision"]] == ["deit.pth"]


def test_what_does_not_go_with_new_parts_is_refused(files: Path, tmp_path: Path, data: Path) -> None:
    with pytest.raises(OptionError, match="give either init"):
        load_recipe(recipe_of(tmp_path, data, files, init="blip_pretrain/base"))
    with pytest.raises(OptionError, match="new_blip is for pretrain: leave it out of stage retrieval"):
        load_recipe(recipe_of(tmp_path, data, files, stage="retrieval"))
    with pytest.raises(OptionError, match=r"with lora .* give it as init"):
        load_recipe(recipe_of(tmp_path, data, files, train_vision=False, lora={"rank": 4}))


@pytest.mark.slow
def test_one_step_at_the_size_of_bert_base_and_deit_b(tmp_path: Path, data: Path) -> None:
    words = [f"[unused{number}]" for number in range(30522)]
    words[:4] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    for place, piece in enumerate(piece for piece in VOCABULARY if piece not in words):
        words[1000 + place] = piece
    write_deit(tmp_path / "deit.pth", 768, 12, 14)
    write_bert(
        tmp_path / "bert",
        words,
        **{
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "max_position_embeddings": 512,
        },
    )
    recipe = load_recipe(recipe_of(tmp_path, data, tmp_path, batch_size=10))
    recipe = replace(recipe, new_blip=replace(parts_of(tmp_path), shared_width=256))
    model = openblip.load(str(train(recipe)), device="cpu", dtype="float32")
    assert model.network.config == openblip.list_models("blip_pretrain/base")[0].config()
