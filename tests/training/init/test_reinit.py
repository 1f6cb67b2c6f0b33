"""How the paper's stages start: a Q-Former from BERT, an encoder at another size."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.names.efficientnet import PACKAGE
from openblip.checkpoints.names.engine import Layout, Part
from openblip.checkpoints.openblip.folder import load_native, save_native
from openblip.errors import CheckpointError, OptionError
from openblip.nn.blip2 import Blip2Network
from openblip.nn.vit import VitConfig
from openblip.training.init.pretrained import read_efficientnet
from openblip.training.init.reinit import reinit_qformer, resize
from tests.checkpoints.test_damaged_folders import bytes_damages, tensor_damages

LAYER = {
    "attention.self.query": (32, 32),
    "attention.self.key": (32, 32),
    "attention.self.value": (32, 32),
    "attention.output.dense": (32, 32),
    "attention.output.LayerNorm": (32,),
    "intermediate.dense": (64, 32),
    "output.dense": (32, 64),
    "output.LayerNorm": (32,),
}


def bert(folder: Path, width: int = 32) -> dict[str, Tensor]:
    """A random BERT of the tiny Q-Former's sizes, in bert-base-uncased's old names."""
    torch.manual_seed(5)
    pieces = ["[PAD]", "ball", "[UNK]", "[CLS]", "dog", "unseen", "##a", "b"]
    state = {
        "bert.embeddings.word_embeddings.weight": torch.randn(len(pieces), width),
        "bert.embeddings.position_embeddings.weight": torch.randn(20, 32),
        "bert.embeddings.token_type_embeddings.weight": torch.randn(2, 32),
        "bert.embeddings.LayerNorm.gamma": torch.randn(32),
        "bert.embeddings.LayerNorm.beta": torch.randn(32),
        "cls.predictions.bias": torch.randn(3),
    }
    for layer in range(3):
        for name, shape in LAYER.items():
            weight, bias = ("gamma", "beta") if len(shape) == 1 else ("weight", "bias")
            state[f"bert.encoder.layer.{layer}.{name}.{weight}"] = torch.randn(shape)
            state[f"bert.encoder.layer.{layer}.{name}.{bias}"] = torch.randn(shape[0])
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "model.safetensors")
    (folder / "vocab.txt").write_text("\n".join(pieces))
    return state


@pytest.fixture
def parts(tiny_parts: ModelParts, tmp_path: Path) -> ModelParts:
    save_native(tiny_parts, tmp_path / "tiny")
    return load_native(tmp_path / "tiny")


def test_a_fresh_qformer_has_berts_weights_and_nothing_of_the_old(parts: ModelParts, tmp_path: Path) -> None:
    state = bert(tmp_path / "bert")
    old = {name: tensor.clone() for name, tensor in parts.network.state_dict().items()}
    network = reinit_qformer(parts, tmp_path / "bert", seed=1).network
    assert parts.matching is not None
    words = parts.matching.tokenizer
    table = state["bert.embeddings.word_embeddings.weight"]
    assert torch.equal(network.qformer.words.weight[words.token_id("dog")], table[4])
    assert torch.allclose(network.qformer.words.weight[words.token_id("[DEC]")], table.mean(0))
    layer = network.qformer.layers[1]
    for ffn in (layer.text_ffn, layer.query_ffn):
        assert torch.equal(ffn.fc1.weight, state["bert.encoder.layer.1.intermediate.dense.weight"])
        assert torch.equal(ffn.norm.bias, state["bert.encoder.layer.1.output.LayerNorm.beta"])
    kept = ("vision.", "decoder.", "prompt_projection.")
    assert network.temperature.item() == pytest.approx(0.07)
    del old["temperature"]
    for name, tensor in network.state_dict().items():
        if name not in old or (tensor.ndim < 2 and name not in kept):
            continue  # norms and biases of the tiny model are where they begin
        same = torch.equal(tensor, old[name])
        assert same == name.startswith(kept), name
    again = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    reinit_qformer(parts, tmp_path / "bert", seed=1)
    assert all(torch.equal(tensor, again[name]) for name, tensor in network.state_dict().items())


def test_a_bert_that_does_not_fit_is_refused(parts: ModelParts, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        reinit_qformer(parts, tmp_path, 1)
    bert(tmp_path / "wide", width=48)
    with pytest.raises(CheckpointError, match=r"not a consistent BERT: .*position_embeddings\.weight has"):
        reinit_qformer(parts, tmp_path / "wide", 1)
    with pytest.raises(OptionError, match="reads no text"):
        reinit_qformer(replace(parts, matching=None), tmp_path, 1)


def test_a_bert_of_other_sizes_is_refused(parts: ModelParts, tmp_path: Path) -> None:
    bert(tmp_path / "bert")
    for size, told in (("depth", "has 3 layers"), ("max_positions", "has 20 positions"), ("width", "does not fit")):
        wide = {"width": 64, "num_heads": 4, "ffn_width": 64}
        changed = wide if size == "width" else {size: 30}
        config = replace(parts.network.config, qformer=replace(parts.network.config.qformer, **changed))
        with pytest.raises(CheckpointError, match=told):
            reinit_qformer(replace(parts, network=Blip2Network(config)), tmp_path / "bert", 1)


def test_a_damaged_bert_is_read_or_named(parts: ModelParts, tmp_path: Path) -> None:
    folder, broken = tmp_path / "bert", tmp_path / "broken"
    bert(folder)
    read, refused = 0, 0
    for name in ("model.safetensors", "vocab.txt"):
        weights = tensor_damages(folder / name) if name == "model.safetensors" else ()
        for label, damage in (*bytes_damages(), *weights):
            shutil.copytree(folder, broken)
            damage(broken / name)
            try:
                network = reinit_qformer(parts, broken, 1).network
            except CheckpointError as error:
                assert str(broken / name) in str(error) and "\n" not in str(error), label
                refused += 1
            else:
                assert all(bool(tensor.isfinite().all()) for tensor in network.qformer.parameters()), label
                read += 1
            shutil.rmtree(broken)
    assert read and refused > 20


def test_a_damaged_efficientnet_is_read_or_named(parts: ModelParts, tmp_path: Path) -> None:
    layout = Layout("EfficientNet-Lite", [Part("", "", PACKAGE)])
    vision = parts.network.vision
    whole, broken = tmp_path / "whole.pth", tmp_path / "broken.pth"
    torch.save(layout.to_theirs({name: tensor.clone() for name, tensor in vision.state_dict().items()}), whole)
    expected = {name: tensor.clone() for name, tensor in vision.state_dict().items()}
    read_efficientnet(whole, vision)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in vision.state_dict().items())
    refused = 0
    for label, damage in (*bytes_damages(), *tensor_damages(whole)):
        shutil.copy(whole, broken)
        damage(broken)
        try:
            read_efficientnet(broken, vision)
        except CheckpointError as error:
            assert str(broken) in str(error) and "\n" not in str(error), label
            refused += 1
        else:
            assert all(bool(tensor.isfinite().all()) for tensor in vision.state_dict().values()), label
        if broken.is_dir():
            broken.rmdir()
        else:
            broken.unlink(missing_ok=True)
    assert refused > 20


def test_another_size_gives_what_interpolating_on_the_way_gives(parts: ModelParts, tmp_path: Path) -> None:
    config = replace(
        parts.network.config,
        vision=VitConfig(28, 14, width=12, depth=1, num_heads=2, mlp_width=12),
        qformer=replace(parts.network.config.qformer, image_width=12),
    )
    torch.manual_seed(0)
    seen = replace(parts, network=Blip2Network(config).eval(), transform=replace(parts.transform, image_size=28))
    pixels = torch.randn(1, 3, 56, 56)
    expected = seen.network.vision(pixels)
    larger = resize(seen, 56)
    assert larger.transform.image_size == 56 and larger.network.vision(pixels).shape == (1, 17, 12)
    assert torch.allclose(larger.network.vision(pixels), expected, atol=1e-6)
    save_native(larger, tmp_path / "larger")
    assert torch.equal(load_native(tmp_path / "larger").network.vision(pixels), larger.network.vision(pixels))
    with pytest.raises(OptionError, match="30 is no multiple of patch_size 14"):
        resize(larger, 30)
    with pytest.raises(OptionError, match=r"image_size cannot change .*: it is for vision transformers"):
        resize(parts, 56)
