"""peft on BLIP and CLIP: all linear layers of our classes are those of transformers', and adapters go both ways."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor

import openblip
from openblip.integrations import transformers as ours
from tests.checkpoints.clip_theirs import SIDE, clip_tokenizer, write_clip
from tests.integrations.blip_theirs import NAMES, write_pair
from tests.pairs.gaps import difference

CLOSE = 1e-4
HEAD = "text_decoder.cls.predictions.decoder"
"""Of transformers alone: the word table once more, which an adapter would change in one place of two."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("folders")
    found = {NAMES[task]: write_pair(task, folder / task).folder for task in NAMES}
    write_clip(folder / "clip")
    return {**found, "CLIPModel": folder / "clip"}


def inputs_of(kind: str) -> dict[str, Tensor]:
    torch.manual_seed(2)
    pixels, count = torch.randn(2, 3, SIDE if kind == "CLIPModel" else 32, SIDE if kind == "CLIPModel" else 32), 2
    ids = torch.tensor([[2, 7, 9, 12, 3], [2, 6, 8, 20, 3]])
    if kind == "CLIPModel":
        count = len(clip_tokenizer())
        ids[:, 0], ids[:, -1] = count - 2, count - 1
    asked = {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones_like(ids)}
    if kind == "BlipForQuestionAnswering":
        asked |= {"labels": ids, "decoder_input_ids": ids}
    elif kind == "BlipForConditionalGeneration":
        asked["labels"] = ids
    return asked


def told(model: Any, kind: str) -> Tensor:
    found = model(**inputs_of(kind))
    names = {"BlipForConditionalGeneration": "logits", "BlipForImageTextRetrieval": "itm_score"}
    result: Tensor = found[names.get(kind, "loss" if kind.endswith("Answering") else "logits_per_image")]
    return result


@pytest.mark.parametrize("kind", [*NAMES.values(), "CLIPModel"])
def test_all_linear_layers(kind: str, folders: Mapping[str, Path], tmp_path: Path) -> None:
    models = []
    for library in (ours, transformers):
        torch.manual_seed(3)
        bare = getattr(library, kind).from_pretrained(folders[kind])
        has_head = library is transformers and kind.endswith(("Generation", "Answering"))
        left_out = HEAD if has_head else None
        config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", exclude_modules=left_out)
        models.append(peft.get_peft_model(bare, config).eval())
    learning = [{n: p for n, p in model.named_parameters() if p.requires_grad} for model in models]
    shapes = [{name: parameter.shape for name, parameter in named.items()} for named in learning]
    assert shapes[0] == shapes[1] != {}
    with torch.no_grad():
        for name, parameter in learning[0].items():
            parameter.add_(0.02 * torch.randn(parameter.shape))
            learning[1][name].copy_(parameter)
    theirs = told(models[1], kind)
    theirs.float().square().sum().backward()
    expected = theirs.detach()
    found = told(models[0], kind)
    assert difference(found.detach(), expected) <= CLOSE * max(1, float(expected.abs().max()))
    with torch.no_grad(), models[0].disable_adapter():
        assert difference(told(models[0], kind), expected) > 1e-3
    found.float().square().sum().backward()
    largest = max(float(one.grad.abs().max()) for one in learning[1].values() if one.grad is not None)
    for name, parameter in learning[1].items():  # what one result does not use has no gradient
        mine = learning[0][name].grad
        assert (mine is None) == (parameter.grad is None), name
        if mine is not None and parameter.grad is not None:
            assert difference(mine, parameter.grad) <= CLOSE * largest, name
    models[0].save_pretrained(tmp_path / "ours")
    bare = getattr(transformers, kind).from_pretrained(folders[kind])
    again = peft.PeftModel.from_pretrained(bare, tmp_path / "ours").eval()
    with torch.no_grad():
        assert difference(told(again, kind), expected) <= CLOSE * max(1, float(expected.abs().max()))
        merged = models[0].merge_and_unload()
        assert difference(told(merged, kind), expected) <= CLOSE * max(1, float(expected.abs().max()))
    # OpenBLIP reads the same adapter over the same folder.
    model = openblip.load(tmp_path / "ours", device="cpu", dtype="float32")
    for name, tensor in merged.parts.network.state_dict().items():
        assert difference(model.network.state_dict()[name], tensor) <= CLOSE, name


def test_clip_has_transformers_names_of_weights(folders: Mapping[str, Path]) -> None:
    model = ours.CLIPModel.from_pretrained(folders["CLIPModel"])
    theirs = transformers.CLIPModel.from_pretrained(folders["CLIPModel"])
    before = told(model, "CLIPModel").detach()
    changed = {name: tensor + 0.01 for name, tensor in theirs.state_dict().items() if name != "logit_scale"}
    model.load_state_dict(changed, strict=False)
    theirs.load_state_dict(changed, strict=False)
    with torch.no_grad():
        expected = told(theirs, "CLIPModel")
        assert difference(told(model, "CLIPModel"), expected) <= CLOSE * float(expected.abs().max())
        assert difference(before, expected) > 1e-3
