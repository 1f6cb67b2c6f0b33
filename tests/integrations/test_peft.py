"""peft on the models of transformers' names: the same targets, names, files and results as on transformers' own.

In float64, where small random networks do not blow up rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

import openblip.integrations.transformers as ours
from openblip.checkpoints.loading import load_parts
from openblip.errors import CheckpointError
from openblip.nn.quant.int8 import Int8Linear
from tests.checkpoints.theirs import QUERIES, Theirs

TOLERANCE = 2e-5
EXACT = 1e-6
"""Without T5, whose norms and attention transformers always computes in float32."""
PIXELS = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(4)).double()
WORDS = torch.tensor([[7, 21, 35, 9], [14, 6, 50, 8]])


def inputs(theirs: Theirs) -> dict[str, Tensor]:
    ids = torch.cat([torch.full((2, QUERIES), theirs.model.config.image_token_index), WORDS], dim=1)
    return {"pixel_values": PIXELS, "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())


TARGETS: dict[str, dict[str, Any]] = {
    "attention": {
        "target_modules": ["q_proj", "v_proj", "k_proj", "out_proj", "q", "v", "o"],
        "task_type": "CAUSAL_LM",
    },
    "all-linear": {"target_modules": "all-linear"},
    "names in several parts": {"target_modules": ["query", "value", "fc1", "qkv", "dense", "wi_0", "wo"]},
    "expression": {"target_modules": r".*qformer.*\.(query|value)", "use_dora": True},
}


@pytest.mark.parametrize("targets", TARGETS)
def test_either_library(writer: Theirs, targets: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    models: list[Any] = []
    for library in (ours, transformers):
        bare = library.Blip2ForConditionalGeneration.from_pretrained(writer.folder).double()
        models.append(peft.get_peft_model(bare, peft.LoraConfig(r=4, lora_alpha=8, **TARGETS[targets])).eval())
    learning = [{n: p for n, p in model.named_parameters() if p.requires_grad} for model in models]
    shapes = [{name: parameter.shape for name, parameter in named.items()} for named in learning]
    assert shapes[0] == shapes[1] != {}
    with torch.no_grad():
        for parameter in learning[1].values():
            parameter += torch.randn(parameter.shape) * 0.05
    models[1].save_pretrained(tmp_path / "theirs")
    bare = ours.Blip2ForConditionalGeneration.from_pretrained(writer.folder).double()
    here = peft.PeftModel.from_pretrained(bare, tmp_path / "theirs", is_trainable=True).eval()
    here.save_pretrained(tmp_path / "ours")
    saved = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("ours", "theirs")]
    assert saved[0].keys() == saved[1].keys() and all(torch.equal(saved[0][name], saved[1][name]) for name in saved[1])
    given = inputs(writer)
    allowed = EXACT if writer.model.config.use_decoder_only_language_model else TOLERANCE
    losses = [model(**given).loss for model in (here, models[1])]
    assert close(losses[0], losses[1])
    for loss in losses:
        loss.backward()
    gradients = {name: parameter.grad for name, parameter in models[1].named_parameters() if parameter.requires_grad}
    largest = max(float(gradient.abs().max()) for gradient in gradients.values() if gradient is not None)
    for name, parameter in here.named_parameters():
        if parameter.requires_grad:
            expected = gradients[name]
            assert parameter.grad is not None and expected is not None
            assert float((parameter.grad - expected).abs().max()) <= allowed * largest, name
    asked = {**given, "max_new_tokens": 8}
    del asked["labels"]
    assert torch.equal(here.generate(**asked), models[1].generate(**asked))
    with torch.no_grad():
        expected_logits = models[1](**given).logits
        with here.disable_adapter():
            assert not close(here(**given).logits, expected_logits)
        merged = here.merge_and_unload(safe_merge=targets == "attention")
        assert close(merged(**given).logits, expected_logits)
    # And the model is a plain one again.
    merged.save_pretrained(tmp_path / "merged")
    reread = transformers.Blip2ForConditionalGeneration.from_pretrained(tmp_path / "merged", dtype=torch.float64).eval()
    with torch.no_grad():
        assert close(reread(**given).logits, expected_logits)
    assert load_parts(tmp_path / "ours").name == f"{writer.folder.name} + ours"


def test_adapters_learn_over_8_bits() -> None:
    model = ours.Blip2ForConditionalGeneration.from_pretrained("mini", load_in_8bit=True)
    adapted: Any = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj", "out_proj", "fc1", "query"])
    )
    layers = {name for name, _ in adapted.named_modules() if name.endswith("lora_A")}
    assert len(layers) == 5 * 3 + 4 + 2  # the decoder, the Q-Former to itself and to the image
    assert isinstance(model.language_model.layers[0].fc1, Int8Linear)
    ids = torch.tensor([[5, 9, 7, 3]])
    given = {"pixel_values": torch.randn(1, 3, 288, 288), "input_ids": ids, "labels": ids}
    before = model.eval()(**given).loss
    before.backward()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None
                parameter -= 0.01 * parameter.grad
    assert model(**given).loss < before


def test_adapters_of_matching(matcher: Theirs, tmp_path: Path) -> None:
    given = {"pixel_values": PIXELS, "input_ids": WORDS, "attention_mask": torch.ones_like(WORDS)}
    results = []
    for library in (transformers, ours):
        model = library.Blip2ForImageTextRetrieval.from_pretrained(matcher.folder).double()
        if library is transformers:
            model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["query", "dense", "itm_head"]))
            for parameter in model.parameters():
                parameter.data += 0.1 * torch.randn(parameter.shape) * parameter.requires_grad
            model.save_pretrained(tmp_path)
            learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        else:
            model = peft.PeftModel.from_pretrained(model, tmp_path, is_trainable=True)
            # Not the head for ITG, which is called dense here alone.
            assert learning == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        with torch.no_grad():
            model.eval()
            results.append(model(**given, use_image_text_matching_head=True).logits_per_image)
    assert close(results[1], results[0])


def test_a_model_with_adapters_is_not_written_as_a_plain_one(opt: Theirs, tmp_path: Path) -> None:
    model = ours.Blip2ForConditionalGeneration.from_pretrained(opt.folder)
    adapted: Any = peft.get_peft_model(model, peft.LoraConfig(target_modules=["out_proj"]))
    with pytest.raises(CheckpointError, match="has adapters, which this layout has no place for: merge them first"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    adapted.merge_and_unload()
    model.save_pretrained(tmp_path)


@pytest.mark.parametrize("kind", [ours.Blip2ForConditionalGeneration, ours.Blip2Model])
def test_names(writer: Theirs, kind: Callable[..., Any]) -> None:
    model = kind.from_pretrained(writer.folder)  # type: ignore[attr-defined]
    theirs = {name for name, module in writer.model.named_modules() if isinstance(module, nn.Linear)}
    named = dict(model.named_modules())
    found = {name for name, module in named.items() if isinstance(module, nn.Linear)}
    assert found == theirs - {"language_model.lm_head"}
    assert all(model.get_submodule(name) is module for name, module in named.items())
    assert len(named) == len(set(named.values())) == len(list(model.modules()))
    # What goes by names goes around.
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    assert parameters.keys() <= state.keys()
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.zero_()
    model.load_state_dict(state)
    assert all(torch.equal(parameter, state[name]) for name, parameter in parameters.items())
    with pytest.raises(AttributeError):
        model.get_submodule("language_model.nothing")
