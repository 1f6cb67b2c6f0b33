"""Folders of open_clip are read, with its defaults; what is not built as CLIP is refused by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPModel

import openblip
from openblip.checkpoints.lavis.clip import ClipParts
from openblip.checkpoints.loading import load_parts
from openblip.checkpoints.names.clip import openai_layout
from openblip.checkpoints.open_clip import read_open_clip_config
from openblip.checkpoints.tools.convert import convert
from openblip.errors import CheckpointError
from tests.checkpoints.clip_theirs import SIDE, TEXTS, write_clip
from tests.pairs.gaps import difference


def config_of(parts: ClipParts, **model: Any) -> dict[str, Any]:
    """As open_clip writes it for the small CLIP of `clip_theirs`."""
    text = parts.network.config.text
    return {
        "model_cfg": {
            "embed_dim": parts.network.config.shared_width,
            "vision_cfg": {
                "image_size": SIDE,
                "layers": 2,
                "width": 64,
                "head_width": 32,
                "mlp_ratio": 2.0,
                "patch_size": 8,
                "patch_dropout": 0.5,
                "timm_pool": "avg",
            },
            "text_cfg": {
                "context_length": 77,
                "vocab_size": text.vocab_size,
                "width": 48,
                "heads": 2,
                "layers": 2,
                "mlp_ratio": 2.0,
            },
            **model,
        },
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic"},
    }


@pytest.fixture
def parts(tmp_path: Path) -> ClipParts:
    found: Any = load_parts(write_clip(tmp_path / "theirs").folder)
    return found


def write(parts: ClipParts, folder: Path, content: dict[str, Any], pickled: bool = False) -> Path:
    folder.mkdir()
    state = openai_layout(parts.network.config).to_theirs(parts.network.state_dict())
    state = {name: tensor.clone().contiguous() for name, tensor in state.items()}
    if pickled:
        wrapped = {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
        torch.save(wrapped, folder / "open_clip_pytorch_model.bin")
    else:
        save_file(state, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize("quick", [False, True])
def test_both_activations(parts: ClipParts, tmp_path: Path, image_paths: list[Path], quick: bool) -> None:
    """Exact GELU unless the folder says quick_gelu; the same as transformers with that activation."""
    content = config_of(parts, **({"quick_gelu": True} if quick else {}))
    folder = write(parts, tmp_path / "open_clip", content, pickled=quick)
    model = openblip.load(folder, tokenizer=tmp_path / "theirs", device="cpu", dtype="float32")
    assert model.name == "open_clip" and model.family == "clip" and model.abilities == ("match", "embed", "classify")
    assert model.parts.transform.mean == (0.5, 0.5, 0.5) and model.parts.transform.crop
    assert convert(folder, tmp_path / "again", "transformers", tokenizer=tmp_path / "theirs")
    theirs: Any = CLIPModel.from_pretrained(tmp_path / "again").eval()
    assert theirs.config.vision_config.hidden_act == ("quick_gelu" if quick else "gelu")
    pixels = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    network: Any = model.network
    with torch.no_grad():
        expected = theirs.get_image_features(pixels).pooler_output
        assert difference(network.embed_images(pixels), expected) <= 5e-4
        usual = parts.network.embed_images(pixels)
        assert (difference(usual, expected) <= 5e-4) == quick
    assert model.embed_texts(TEXTS[:2]).shape == (2, 40)
    assert len(model.classify(image_paths[0], ["dog", "cat"])) == 2


def test_a_vocabulary_may_lie_beside(parts: ClipParts, tmp_path: Path) -> None:
    folder = write(parts, tmp_path / "open_clip", config_of(parts))
    with pytest.raises(CheckpointError, match=r"has no vocabulary: .* openai/clip-vit-base-patch32"):
        openblip.load(folder)
    for path in (tmp_path / "theirs").glob("*token*"):
        shutil.copy(path, folder)
    assert openblip.load(folder, device="cpu").embed_texts("a dog").shape == (40,)
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no weights: get open_clip_model\.safetensors or"):
        openblip.load(folder)


def test_resnets() -> None:
    vision = {"image_size": 224, "layers": [3, 4, 6, 3], "width": 64, "patch_size": None}
    text = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
    content = {"embed_dim": 1024, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    entry = next(model for model in openblip.list_models("clip/RN50"))
    assert read_open_clip_config(content, Path("config.json")) == entry.config()
    vision = {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32}
    content = {"embed_dim": 512, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    entry = next(model for model in openblip.list_models("clip/ViT-B-32"))
    assert read_open_clip_config(content, Path("config.json")) == entry.config()
    exact = read_open_clip_config({**content, "quick_gelu": False}, Path("config.json"))
    assert exact.text == replace(entry.config().text, activation="gelu")


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("model_cfg", "custom_text", True),
        ("vision_cfg", "timm_model_name", "vit_base_patch16_siglip_224"),
        ("vision_cfg", "pool_type", "avg"),
        ("vision_cfg", "no_ln_pre", True),
        ("text_cfg", "hf_model_name", "roberta-base"),
        ("text_cfg", "no_causal_mask", True),
        ("preprocess_cfg", "resize_mode", "squash"),
    ],
)
def test_others_are_refused(parts: ClipParts, tmp_path: Path, section: str, name: str, value: Any) -> None:
    content = config_of(parts)
    model = content["model_cfg"]
    {"model_cfg": model, "preprocess_cfg": content["preprocess_cfg"]}.get(section, model.get(section))[name] = value
    folder = write(parts, tmp_path / "open_clip", content)
    with pytest.raises(
        CheckpointError, match=f"{name} of {section} is {value!r}: only CLIPs that are built as OpenAI's"
    ):
        openblip.load(folder, tokenizer=tmp_path / "theirs")
    (folder / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": "wide"}}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"open_clip_config\.json"):
        openblip.load(folder, tokenizer=tmp_path / "theirs")
