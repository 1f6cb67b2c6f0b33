"""Adapters of BLIP and CLIP are peft's on transformers' models: outputs, files both ways, merged and quantized."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipForQuestionAnswering

import openblip
from openblip.checkpoints.loading import load_parts
from openblip.checkpoints.lora.fit import find_adapter
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.read_options import ReadOptions
from openblip.checkpoints.tools.merge import merge_adapter
from openblip.checkpoints.transformers.blip import save_blip_folder
from openblip.errors import OptionError
from openblip.nn.quant.swap import QuantizedLinear, quantized_layers
from openblip.training.lora.adapters import LoraSection, add_lora, has_adapters, load_adapter, save_adapter
from tests.checkpoints.clip_theirs import SIDE, clip_tokenizer, write_clip
from tests.models.blip_models import small_parts

PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))
IDS = torch.tensor([[2, 9, 12, 15, 3], [2, 11, 8, 14, 3]])
TOLERANCE, QUANTIZED = 5e-5, 0.2


@dataclass(frozen=True)
class Case:
    """A model in a folder of transformers, and how both libraries are asked for numbers."""

    folder: Path
    theirs: Any
    ours: Callable[[Any], Tensor]
    of: Callable[[Any], Tensor]
    targets: list[str]


def answers(network: Any) -> Tensor:
    ids = network.begin_with_encode(IDS)
    model = network.language_model
    memory = model.answer_memory(model.embed(ids), torch.ones_like(ids), model.remember(network.image_features(PIXELS)))
    return model.logits(network.decoder.decode(model.decoder.embed(IDS), None, memory))


def their_answers(model: Any) -> Tensor:
    ids = IDS.clone()
    ids[:, 0] = model.config.text_config.bos_token_id + 1
    seen = model.vision_model(PIXELS)[0]
    asked = model.text_encoder(ids, attention_mask=torch.ones_like(ids), encoder_hidden_states=seen)[0]
    return model.text_decoder(IDS, attention_mask=torch.ones_like(ids), encoder_hidden_states=asked).logits


def captions(network: Any) -> Tensor:
    decoder = network.decoder
    return decoder.logits(decoder.decode(decoder.embed(IDS), None, decoder.remember(network.image_features(PIXELS))))


def their_captions(model: Any) -> Tensor:
    return model(pixel_values=PIXELS, input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


def matches(network: Any) -> Tensor:
    features = network.image_features(PIXELS)
    itc = network.project_images(features[:, 0]) @ network.embed_texts(IDS, torch.ones_like(IDS)).T
    return torch.cat([network.itm_logits(IDS, None, features), itc], dim=1)


def their_matches(model: Any) -> Tensor:
    ids = IDS.clone()
    ids[:, 0] = model.config.text_config.bos_token_id + 1
    given = {"pixel_values": PIXELS, "attention_mask": torch.ones_like(IDS)}
    itm = model(**given, input_ids=ids).itm_score
    return torch.cat([itm, model(**given, input_ids=IDS, use_itm_head=False).itm_score], dim=1)


def clip_ids() -> Tensor:
    """Texts between CLIP's two marks, the last of its words."""
    count, ids = len(clip_tokenizer()), IDS.clone()
    ids[:, 0], ids[:, -1] = count - 2, count - 1
    return ids


def cosines(network: Any) -> Tensor:
    ids = clip_ids()
    texts = network.embed_texts(ids, torch.ones_like(ids))
    return F.normalize(network.embed_images(PIXELS), dim=-1) @ F.normalize(texts, dim=-1).T


def their_cosines(model: Any) -> Tensor:
    ids = clip_ids()
    found = model(pixel_values=PIXELS, input_ids=ids, attention_mask=torch.ones_like(ids))
    return found.image_embeds @ found.text_embeds.T


WAYS: dict[str, tuple[Any, Any, Any, list[str]]] = {
    "caption": (BlipForConditionalGeneration, captions, their_captions, ["language_model", "vision", "fc1"]),
    "answer": (BlipForQuestionAnswering, answers, their_answers, ["language_model", "text"]),
    "match": (BlipForImageTextRetrieval, matches, their_matches, ["text", "vision_proj", "fc2"]),
}


@pytest.fixture(scope="module", params=[*WAYS, "clip"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "clip":
        assert PIXELS.shape[2] == SIDE
        theirs = write_clip(folder / "theirs", hidden_size=128, intermediate_size=256).model
        return Case(folder / "theirs", theirs, cosines, their_cosines, ["text", "vision", "visual_projection"])
    kind, ours, of, targets = WAYS[request.param]
    save_blip_folder(small_parts(request.param, folder), folder / "theirs")
    return Case(folder / "theirs", kind.from_pretrained(folder / "theirs").eval(), ours, of, targets)


def learnt(parts: ModelParts, case: Case) -> ModelParts:
    torch.manual_seed(2)
    for parameter in add_lora(parts, LoraSection(4, 8, 0.0, case.targets)).parameters.values():
        parameter.data.normal_(std=0.05)
    return parts


def far(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def test_what_is_trained_here_runs_there(case: Case, tmp_path: Path) -> None:
    parts = learnt(load_parts(case.folder), case)
    save_adapter(parts, tmp_path / "adapter", str(case.folder))
    model = peft.PeftModel.from_pretrained(copy.deepcopy(case.theirs), tmp_path / "adapter").eval()
    found, expected = case.ours(parts.network), case.of(model)
    assert apart(found, expected) <= TOLERANCE < apart(case.of(case.theirs), expected)
    merged = load_parts(tmp_path / "adapter")
    assert apart(case.ours(merged.network), expected) <= TOLERANCE
    assert not has_adapters(merged.network)
    merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    assert apart(case.ours(load_parts(tmp_path / "merged").network), expected) <= TOLERANCE


@torch.no_grad()
def test_what_is_trained_there_runs_here(case: Case, tmp_path: Path) -> None:
    torch.manual_seed(6)
    names = [".*attention.*(query|value|dense|qkv)", ".*(q_proj|v_proj|fc1)"]
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="|".join(names))
    model: Any = peft.get_peft_model(copy.deepcopy(case.theirs), config).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter += torch.randn(parameter.shape) * 0.05
    model.save_pretrained(tmp_path / "theirs")
    expected = case.of(model)
    merged = load_parts(case.folder, ReadOptions(adapter=find_adapter(tmp_path / "theirs")))
    assert apart(case.ours(merged.network), expected) <= TOLERANCE < apart(case.of(case.theirs), expected)
    parts = load_parts(case.folder)
    load_adapter(parts, tmp_path / "theirs")
    assert apart(case.ours(parts.network), expected) <= TOLERANCE
    save_adapter(parts, tmp_path / "again")
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("theirs", "again"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_quantized_model_has_the_adapter_in_its_weights_or_over_them(case: Case, tmp_path: Path) -> None:
    save_adapter(learnt(load_parts(case.folder), case), tmp_path / "adapter", str(case.folder))
    with torch.no_grad():
        whole = case.ours(load_parts(tmp_path / "adapter").network)
        small = openblip.load(case.folder, adapter=tmp_path / "adapter", device="cpu", dtype="int8").network
        assert quantized_layers(small)
        assert far(case.ours(small), whole) < QUANTIZED
    base = load_parts(case.folder, ReadOptions(bits=8))
    added = load_adapter(base, tmp_path / "adapter")
    assert any(isinstance(module, QuantizedLinear) for module in base.network.modules())
    found = case.ours(base.network)
    assert far(found.detach(), whole) < QUANTIZED
    found.square().sum().backward()
    assert all(parameter.grad is not None for parameter in added.parameters.values())


def test_parts_that_a_model_lacks_are_named(tmp_path: Path) -> None:
    for task, said in (("match", "give text, vision"), ("caption", "give language_model, vision")):
        with pytest.raises(OptionError, match=said):
            add_lora(small_parts(task, tmp_path), LoraSection(4, targets=["qformer"]))
