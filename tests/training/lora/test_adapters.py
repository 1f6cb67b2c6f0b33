"""Adapters trained here are peft's on transformers' model: outputs, gradients, files; and everything runs with them."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import openblip
from openblip.checkpoints.loading import load_parts, with_language_model
from openblip.checkpoints.lora.files import LowRank
from openblip.checkpoints.lora.fit import find_adapter
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.openblip.folder import save_native
from openblip.checkpoints.read_options import ReadOptions
from openblip.checkpoints.tools.merge import merge_adapter
from openblip.devices import choose_placement
from openblip.errors import CheckpointError, OpenBlipError, OptionError
from openblip.integrations.transformers import Blip2ForConditionalGeneration
from openblip.models.load import model_of
from openblip.nn.blip2 import Blip2Config, Blip2Network, itc_similarity
from openblip.nn.efficientnet import EfficientNetConfig
from openblip.nn.opt import Opt, OptConfig
from openblip.nn.qformer import QFormerConfig
from openblip.nn.quant.int8 import Int8Linear
from openblip.nn.quant.swap import quantize
from openblip.training.lora.adapters import (
    LoraSection,
    adapter_modules,
    adapter_parameters,
    adapts_vision,
    add_lora,
    has_adapters,
    load_adapter,
    save_adapter,
)
from openblip.training.lora.targets import targets_of
from tests.checkpoints.theirs import FLAN, QUERIES, T5, Theirs, write_matcher, write_t5_writer, write_writer
from tests.language_models import write_language_model

TOLERANCE = 2e-5
MERGED = 1e-5
IDS = torch.tensor([[7, 21, 35, 9], [14, 6, 50, 8]])
PIXELS = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(5))


@dataclass(frozen=True)
class Case:
    """A model, what its adapters stand on, and how both libraries are asked for numbers."""

    theirs: Theirs
    section: LoraSection

    @property
    def is_matcher(self) -> bool:
        return not hasattr(self.theirs.model, "language_model")

    def ours(self, network: Blip2Network) -> Tensor:
        features = network.image_features(PIXELS)
        if self.is_matcher:
            itm = network.itm_logits(IDS, torch.ones_like(IDS), features)
            text = network.project_text(network.qformer.text(IDS))
            itc = itc_similarity(network.project_queries(network.qformer.image(features)), text)
            return torch.cat([itm, itc], dim=1)
        language = network.own_language_model
        embeds = torch.cat([network.visual_prompt(features), language.embed(IDS)], dim=1)
        if isinstance(language, Opt):
            return language.logits(language(embeds))
        return language.logits(language.hidden_before(embeds, None, IDS))

    def of(self, model: Any) -> Tensor:
        if self.is_matcher:
            seen = torch.ones_like(IDS)
            itm = model(PIXELS, input_ids=IDS, attention_mask=seen, use_image_text_matching_head=True).logits_per_image
            itc = model(PIXELS, input_ids=IDS, attention_mask=seen).logits_per_image
            return torch.cat([itm, itc], dim=1)
        image = torch.full((2, QUERIES), self.theirs.model.config.image_token_index)
        ids = torch.cat([image, IDS], dim=1)
        labels = {} if self.theirs.model.config.use_decoder_only_language_model else {"labels": IDS}
        logits: Tensor = model(pixel_values=PIXELS, input_ids=ids, attention_mask=torch.ones_like(ids), **labels).logits
        return logits


KINDS: dict[str, Callable[[Path], Theirs]] = {
    "opt": write_writer,
    "flan": lambda folder: write_t5_writer(folder, {**FLAN, "dense_act_fn": "gelu"}),
    "t5": lambda folder: write_t5_writer(folder, T5),
    "matcher": write_matcher,
}
SECTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "opt": ("opt", {"targets": ["language_model"]}),
    "opt's queries and values, one layer whole": (
        "opt",
        {"targets": ["q_proj", "v_proj", "decoder.layers.1.*"], "rank": 2, "rslora": True},
    ),
    "opt's q-former and image encoder": ("opt", {"targets": ["qformer", "vision", "language_projection"]}),
    "opt with dora": ("opt", {"targets": ["language_model", "vision"], "dora": True}),
    "flan": ("flan", {"targets": ["language_model", "wi_0", "ffn.fc2"]}),
    "t5": ("t5", {"targets": ["k", "wi"], "alpha": 1}),
    "matcher": ("matcher", {"targets": ["qformer", "text_ffn.fc1", "itm_head"], "rank": 2}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Theirs]:
    written: dict[str, Theirs] = {}

    def model(kind: str) -> Theirs:
        if kind not in written:
            written[kind] = KINDS[kind](tmp_path_factory.mktemp(kind))
        return written[kind]

    return model


@pytest.fixture(params=SECTIONS)
def case(request: pytest.FixtureRequest, models: Callable[[str], Theirs]) -> Case:
    kind, settings = SECTIONS[request.param]
    return Case(models(kind), LoraSection(**{"rank": 3, "alpha": 6, "dropout": 0.0, **settings}))


def learnt(parts: ModelParts, section: LoraSection, std: float = 0.1) -> ModelParts:
    """The model with adapters that have learnt something."""
    torch.manual_seed(2)
    for name, parameter in add_lora(parts, section).parameters.items():
        with torch.no_grad():
            if "magnitude" in name:
                parameter.mul_(torch.empty_like(parameter).uniform_(0.9, 1.1))
            else:
                parameter.normal_(std=std)
    return parts


def apart(found: Tensor, expected: Tensor) -> float:
    with torch.no_grad():
        return float((found - expected).abs().max() / expected.abs().max())


# Parity


def test_outputs_and_gradients_are_those_of_peft(case: Case, tmp_path: Path) -> None:
    parts = learnt(load_parts(case.theirs.folder), case.section)
    save_adapter(parts, tmp_path, str(case.theirs.folder))
    model = peft.PeftModel.from_pretrained(copy.deepcopy(case.theirs.model), tmp_path, is_trainable=True).eval()
    found, expected = case.ours(parts.network), case.of(model)
    assert apart(found, expected) <= TOLERANCE
    untouched = case.of(case.theirs.model)
    assert apart(untouched, expected) > 0.01
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    for logits in (found, expected):
        (logits * weights).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    learning = adapter_parameters(parts.network)
    assert len(gradients) == len(learning) > 0
    named = {name.replace("base_model.model.", "").replace(".default", ""): grad for name, grad in gradients.items()}
    ours = _by_their_names(parts, learning)
    assert ours.keys() == named.keys()
    largest = max(float(gradient.abs().max()) for gradient in named.values() if gradient is not None)
    for name, expected_gradient in named.items():
        gradient = ours[name].grad
        assert gradient is not None and expected_gradient is not None
        assert float((gradient - expected_gradient).abs().max()) <= TOLERANCE * largest, name


def _by_their_names(parts: ModelParts, learning: dict[str, Any]) -> dict[str, Any]:
    paths = {target.path: target.theirs for target in targets_of(parts.network)}
    named = {}
    for name, parameter in learning.items():
        path, _, rest = name.partition(".lora_")
        named[f"{paths[path]}.lora_{rest}".replace(".default", "")] = parameter
    return named


def test_merged_is_unmerged_is_transformers_merged(case: Case, tmp_path: Path) -> None:
    parts = learnt(load_parts(case.theirs.folder), case.section)
    save_adapter(parts, tmp_path, str(case.theirs.folder))
    merged = load_parts(tmp_path)
    assert merged.name == f"{case.theirs.folder.name} + {tmp_path.name}"
    assert merged.network.state_dict().keys() == load_parts(case.theirs.folder).network.state_dict().keys()
    with torch.no_grad():
        found = case.ours(merged.network)
        assert apart(found, case.ours(parts.network)) <= MERGED
        model = peft.PeftModel.from_pretrained(copy.deepcopy(case.theirs.model), tmp_path).merge_and_unload()
        assert apart(found, case.of(model)) <= TOLERANCE


def test_what_is_saved_comes_back_bit_for_bit(case: Case, tmp_path: Path) -> None:
    parts = learnt(load_parts(case.theirs.folder), case.section)
    save_adapter(parts, tmp_path / "one")
    again = load_parts(case.theirs.folder)
    added = load_adapter(again, tmp_path / "one")
    for (name, parameter), (other, expected) in zip(
        added.parameters.items(), adapter_parameters(parts.network).items(), strict=True
    ):
        assert name == other and torch.equal(parameter, expected) and parameter.requires_grad
    save_adapter(again, tmp_path / "two")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


THEIR_TARGETS: dict[str, tuple[str, Any]] = {
    "list": ("opt", {"target_modules": ["q_proj", "v_proj", "k_proj", "out_proj"], "lora_dropout": 0.05}),
    "expression": ("opt", {"target_modules": r".*qformer.*\.(query|value)"}),
    "all-linear": ("opt", {"target_modules": "all-linear", "use_rslora": True}),
    "all-linear of flan": ("flan", {"target_modules": "all-linear"}),
    "ranks that differ": (
        "flan",
        {"target_modules": ["q", "v", "wo"], "rank_pattern": {"EncDecAttention.q": 5}, "alpha_pattern": {r".*\.v": 3}},
    ),
    "dora of queries alone": ("opt", {"target_modules": ["q_proj", "qkv"], "use_dora": True}),
    "a layer as a whole": ("opt", {"target_modules": ["q_proj"], "modules_to_save": ["language_projection"]}),
    "stage 1": ("matcher", {"target_modules": ["query", "dense"], "modules_to_save": ["itm_head"]}),
}


@pytest.mark.parametrize("kind", THEIR_TARGETS)
def test_what_peft_saved_of_transformers_runs_here(kind: str, models: Callable[[str], Theirs], tmp_path: Path) -> None:
    torch.manual_seed(6)
    name, settings = THEIR_TARGETS[kind]
    case = Case(models(name), LoraSection())
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, **settings})
    model: Any = peft.get_peft_model(copy.deepcopy(case.theirs.model), config).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape) * 0.05
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = case.of(model)
        merged = load_parts(case.theirs.folder, ReadOptions(adapter=find_adapter(tmp_path))).network
        assert apart(case.ours(merged), expected) <= TOLERANCE < apart(case.of(case.theirs.model), expected)
        if "modules_to_save" in settings:
            with pytest.raises(CheckpointError, match=r"holds whole layers, too \((language_projection|itm_head)"):
                load_adapter(load_parts(case.theirs.folder), tmp_path)
        else:
            parts = load_parts(case.theirs.folder)
            load_adapter(parts, tmp_path)
            assert apart(case.ours(parts.network), expected) <= TOLERANCE
            save_adapter(parts, tmp_path / "again")
            theirs = load_file(tmp_path / "adapter_model.safetensors")
            again = load_file(tmp_path / "again" / "adapter_model.safetensors")
            assert again.keys() == theirs.keys() and all(torch.equal(again[name], theirs[name]) for name in theirs)
    if case.is_matcher:
        return
    image = torch.full((2, QUERIES), case.theirs.model.config.image_token_index)
    ids = torch.cat([image, IDS], dim=1)
    asked = {"pixel_values": PIXELS, "input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 9}
    said = model.generate(**asked, num_beams=1)
    here = peft.PeftModel.from_pretrained(
        Blip2ForConditionalGeneration.from_pretrained(case.theirs.folder), tmp_path
    ).generate(**asked)
    assert torch.equal(here, said)


# Use


def test_adapters_start_as_nothing_and_alone_learn(tiny_model_folder: Path) -> None:
    parts = load_parts(tiny_model_folder)
    network = parts.network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    ids = torch.randint(0, 50, (3, 7))
    with torch.no_grad():
        untouched = network.decoder.logits(network.decoder(network.decoder.embed(ids)))
    added = add_lora(parts, LoraSection(rank=2, targets=["language_model", "qformer"]))
    assert added.trained == sum(parameter.numel() for parameter in added.parameters.values())
    assert added.total == sum(tensor.numel() for tensor in network.parameters())
    assert str(added).startswith(f"{len(added.layers)} adapters: {added.trained:,} of {added.total:,} weights learn (")
    learning = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert learning == added.parameters.keys() == adapter_parameters(network).keys()
    assert not any(module.training for module in network.modules())
    for module in adapter_modules(network):
        module.train()
    assert {parameter for module in adapter_modules(network) for parameter in module.parameters()} == set(
        added.parameters.values()
    )
    assert not network.decoder.layers[0].training and not adapts_vision(network)
    with torch.no_grad():
        assert torch.equal(network.decoder.logits(network.decoder(network.decoder.embed(ids))), untouched)
    optimizer = torch.optim.AdamW(added.parameters.values(), lr=0.05)
    for _ in range(3):
        features = network.normalize(torch.randn(3, 4, 1288))
        embeds = torch.cat([network.visual_prompt(features), network.decoder.embed(ids)], dim=1)
        logits = network.decoder.logits(network.decoder(embeds))[:, -7:]
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = {name.replace(".base_layer", ""): tensor for name, tensor in network.state_dict().items()}
    assert before.keys() <= after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    # The queries are cut off from the text: the last layer's own text side has learnt nothing.
    assert all(parameter.abs().max() > 0 for name, parameter in added.parameters.items() if "lora_B" in name)


def test_captions_answers_and_search_with_unmerged_adapters(
    tiny_model_folder: Path, tmp_path: Path, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = learnt(load_parts(tiny_model_folder), LoraSection(rank=2, targets=["language_model", "qformer"]), std=0.2)
    monkeypatch.chdir(tiny_model_folder.parent)
    save_adapter(parts, tmp_path, tiny_model_folder.name)
    monkeypatch.chdir("/")
    model = model_of(parts, choose_placement("cpu", "float32"))
    merged = openblip.load(tmp_path, device="cpu")
    untrained = openblip.load(tiny_model_folder, device="cpu")
    assert merged.caption(image_paths) == model.caption(image_paths) != untrained.caption(image_paths)
    questions = ["what is it?", "what color is the ball?", "how many?"]
    # One prefix, several prompts behind it.
    assert merged.ask(image_paths[0], questions, num_beams=3) == model.ask(image_paths[0], questions, num_beams=3)
    assert merged.caption(image_paths[1], num_captions=3, num_beams=4) == model.caption(
        image_paths[1], num_captions=3, num_beams=4
    )
    texts = ["a dog", "a red ball"]
    found, expected = model.scores(image_paths, texts, itm=True), merged.scores(image_paths, texts, itm=True)
    assert apart(found.itc, expected.itc) <= 1e-4
    assert found.itm is not None and expected.itm is not None and apart(found.itm, expected.itm) <= 1e-4


@pytest.mark.parametrize(("rslora", "factor"), [(False, 2.0), (True, 2.0**0.5)])
def test_scale(rslora: bool, factor: float) -> None:
    a, b = torch.randn(4, 6), torch.randn(5, 4)
    one = LowRank(a, b, 8, rslora)
    assert torch.allclose(one.merged(torch.zeros(5, 6)), b @ a * (8 / 2 if rslora else 8 / 4))
    twice = LowRank(torch.cat([a, a]), torch.cat([b, b], dim=1), 8, rslora)
    assert one.scale / twice.scale == pytest.approx(factor)


def test_alpha_and_rank_reach_peft(tiny_model_folder: Path) -> None:
    results = []
    for alpha in (0, 4, 8):
        parts = load_parts(tiny_model_folder)
        if alpha:
            learnt(parts, LoraSection(rank=2, alpha=alpha, targets=["decoder.layers.1.fc2"]))
        decoder = parts.network.decoder
        with torch.no_grad():
            results.append(decoder.layers[1].fc2(torch.ones(1, 64)))
    assert torch.allclose(results[2] - results[0], 2 * (results[1] - results[0]), atol=1e-5)


def test_adapters_learn_over_quantized_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Blip2Config(
        vision=EfficientNetConfig(image_size=64, width_scale=0.25, depth_scale=0.5, place_width=8),
        qformer=QFormerConfig(image_width=1288, width=32, depth=1, num_heads=2, ffn_width=64, vocab_size=0),
        language=OptConfig(vocab_size=300, width=128, depth=2, num_heads=2, ffn_width=192),
    )
    for bits in (8, 4):
        network = Blip2Network(config).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim == 2:
                    parameter.normal_(std=0.1)
        quantize(network, bits)
        parts: Any = _Parts("quantized", network)
        decoder = network.decoder
        embeds = torch.randn(2, 5, 128, requires_grad=True)
        with torch.no_grad():
            before = decoder.logits(decoder(embeds))
        added = add_lora(parts, LoraSection(rank=2, dropout=0.0, targets=["language_model", "decoder.layers.*.fc1"]))
        assert len(added.layers) == 2 * 5
        assert bits == 4 or isinstance(decoder.layers[0].qkv, Int8Linear)
        logits = decoder.logits(decoder(embeds))
        assert apart(logits, before) < 0.1
        logits.square().sum().backward()
        grown = [parameter for name, parameter in added.parameters.items() if "lora_B" in name]
        assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in grown)
        # The gradient is that of a step along it.
        with torch.no_grad():
            slope = sum(float(parameter.grad.square().sum()) for parameter in grown if parameter.grad is not None)
            step = 1e-3 / slope**0.5
            for parameter in grown:
                parameter += step * parameter.grad  # type: ignore[operator]
        with torch.enable_grad():
            rise = float((decoder.logits(decoder(embeds)).square().sum() - logits.square().sum()).detach())
        assert rise == pytest.approx(step * slope, rel=0.1)
        with pytest.raises(OptionError, match="leave dora out"):
            add_lora(_Parts("quantized", quantized_copy(config, bits)), LoraSection(dora=True))  # type: ignore[arg-type]


def quantized_copy(config: Any, bits: int) -> Blip2Network:
    network = Blip2Network(config).eval()
    quantize(network, bits)
    return network


@dataclass
class _Parts:
    name: str
    network: Blip2Network


def test_a_quantized_model_has_the_adapter_in_its_weights(tmp_path: Path, image_paths: list[Path]) -> None:
    base = load_parts("mini")
    learnt(base, LoraSection(rank=4, targets=["language_model", "qformer"]), std=0.06)
    save_adapter(base, tmp_path, "mini")
    plain = openblip.load("mini", device="cpu").parts.network.decoder.layers[0].qkv.weight
    merged = openblip.load(tmp_path, device="cpu").parts.network.decoder.layers[0].qkv.weight
    small = openblip.load("mini", adapter=tmp_path, device="cpu", dtype="int8").parts.network.decoder.layers[0].qkv
    assert isinstance(small, Int8Linear)
    dequantized = small.codes().float() * small.scale[:, None]
    assert (dequantized - merged).abs().max() <= small.scale.max() * 0.51 < (plain - merged).abs().max()


def test_adapters_over_half_precision_learn_in_float32(tiny_model_folder: Path) -> None:
    parts = load_parts(tiny_model_folder, ReadOptions(dtype=torch.bfloat16))
    added = add_lora(parts, LoraSection(rank=2, dropout=0.0, targets=["language_model", "qformer"]))
    assert {parameter.dtype for parameter in added.parameters.values()} == {torch.float32}
    network = parts.network
    features = torch.randn(2, 5, 1288, dtype=torch.bfloat16)
    ids = torch.tensor([[5, 9, 7], [8, 4, 6]])
    optimizer = torch.optim.AdamW(added.parameters.values(), lr=0.02)
    losses = []
    for _ in range(12):
        embeds = torch.cat([network.visual_prompt(network.normalize(features)), network.decoder.embed(ids)], dim=1)
        logits = network.decoder.logits(network.decoder(embeds))
        assert logits.dtype == torch.bfloat16
        losses.append(torch.nn.functional.cross_entropy(logits[:, -4:-1].flatten(0, 1).float(), ids.flatten()))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bart"])
def test_a_external_language_model(kind: str, tmp_path: Path, tiny_model_folder: Path, image_paths: list[Path]) -> None:
    language = write_language_model(kind, tmp_path / kind)
    folder = tmp_path / "model"
    parts = with_language_model(load_parts(tiny_model_folder), language)
    save_native(parts, folder)
    parts = load_parts(folder)
    added = add_lora(parts, LoraSection(rank=2, dropout=0.0, targets=["language_model", "qformer"]))
    # The network holds what learns of it, and nothing else of it.
    assert added.parameters.keys() == {name for name, p in parts.network.named_parameters() if p.requires_grad}
    held = [name for name, _ in parts.network.named_parameters() if name.startswith("external")]
    assert held and all(".lora_" in name for name in held)
    inside = {parameter for parameter in parts.network.external.model.parameters() if parameter.requires_grad}  # type: ignore[union-attr]
    assert inside == {added.parameters[name] for name in held}
    assert not any("lm_head" in name for name in added.layers)
    for parameter in added.parameters.values():
        torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(parts, tmp_path / "adapter", "../model")
    prompts = torch.randn(2, 6, parts.network.language_model.config.token_width)
    labels = torch.tensor([[5, 9, 7], [8, 4, 6]])

    def scores(some: ModelParts) -> Tensor:
        model = some.network.language_model
        return model.logits(model.hidden_before(prompts, None, labels))

    found = scores(parts)
    found.sum().backward()
    assert all(
        parameter.grad is not None for name, parameter in added.parameters.items() if name.startswith("external")
    )
    with torch.no_grad():
        assert apart(scores(load_parts(tmp_path / "adapter")), found) <= TOLERANCE
        again = load_parts(folder)
        assert apart(scores(again), found) > 0.01
        load_adapter(again, tmp_path / "adapter")
        assert torch.equal(scores(again), found)
    with pytest.raises(CheckpointError, match="only uses: load it with adapter="):
        merge_adapter(tmp_path / "adapter", tmp_path / "merged")


# Errors


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rank": 0}, "rank is 0: it must be at least 1"),
        ({"rank": 33}, "weights of 32 x 32: give a rank of at most 32, or other targets"),
        ({"rank": 3, "targets": ["itm_head"]}, "itm_head has weights of 2 x 32: give a rank of at most 2"),
        ({"alpha": 0}, "alpha is 0: it must be above 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"targets": []}, "targets is empty"),
        ({"targets": ["decoder"]}, "no linear layer is called so: give language_model, qformer, or names such"),
        ({"targets": ["vision"]}, "no linear layers in such a part"),
        ({"targets": ["language_model", "embed_tokens"]}, "no linear layer is called so"),
    ],
)
def test_settings_that_make_no_sense(tiny_parts: ModelParts, settings: dict[str, Any], said: str) -> None:
    parts = replace(tiny_parts, network=copy.deepcopy(tiny_parts.network))
    with pytest.raises(OptionError, match=said):
        add_lora(parts, LoraSection(**settings))
    assert not has_adapters(parts.network)


def test_what_has_adapters_is_no_plain_model(tiny_parts: ModelParts, tmp_path: Path) -> None:
    parts = replace(tiny_parts, network=copy.deepcopy(tiny_parts.network))
    with pytest.raises(OptionError, match="has no adapters to save"):
        save_adapter(parts, tmp_path)
    add_lora(parts, LoraSection())
    with pytest.raises(OptionError, match="has adapters already"):
        add_lora(parts, LoraSection())
    with pytest.raises(OptionError, match="has adapters, which a model folder has no place for"):
        save_native(parts, tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_without_peft(tiny_parts: ModelParts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    parts = replace(tiny_parts, network=copy.deepcopy(tiny_parts.network))
    with pytest.raises(OpenBlipError, match=r'adapters are trained with peft: pip install "openblip\[train\]"'):
        add_lora(parts, LoraSection())
