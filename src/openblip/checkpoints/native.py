"""OpenBLIP's own model folder: config.json, model.safetensors, one tokenizer file for each text side.

Weights are stored as float32, float16, or with every large matrix as int8 and one float16 scale a row;
they are float32 again once loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from openblip.checkpoints.parts import GenerationDefaults, ModelParts
from openblip.errors import CheckpointError
from openblip.images import ImageTransform
from openblip.nn.blip2 import Blip2Config, Blip2Network
from openblip.nn.decoder import DecoderConfig
from openblip.nn.efficientnet import EfficientNetConfig
from openblip.nn.qformer import QFormerConfig
from openblip.nn.vit import VitConfig
from openblip.text import MatchingText, PromptTemplates, Tokenizer

FORMAT_VERSION = 1
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
MATCHING_FILE = "qformer_tokenizer.json"
DECODER_FILE = "decoder_tokenizer.json"
SCALE_SUFFIX = ":scale"
MATRIX_ELEMENTS = 16_384
"""Smaller matrices are not worth quantising."""

Storage = Literal["float32", "float16", "int8"]
Config = TypeVar("Config")


def save_native(parts: ModelParts, folder: Path, storage: Storage = "float32") -> None:
    """Write a model folder; weights go to a draft first, so a kill never leaves half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    config = parts.network.config
    vision_kind = "vit" if isinstance(config.vision, VitConfig) else "efficientnet"
    content = {
        "format": "openblip",
        "version": FORMAT_VERSION,
        "name": parts.name,
        "vision": {"kind": vision_kind, **asdict(config.vision)},
        "qformer": asdict(config.qformer),
        "decoder": None if config.decoder is None else asdict(config.decoder),
        "shared_width": config.shared_width,
        "vision_norm_eps": config.vision_norm_eps,
        "image": asdict(parts.transform),
        "matching_tokens": None if parts.matching is None else parts.matching.max_tokens,
        "prompts": asdict(parts.prompts),
        "generation": asdict(parts.defaults),
    }
    if parts.matching is not None:
        parts.matching.tokenizer.fast.save(str(folder / MATCHING_FILE))
    if parts.tokenizer is not None:
        parts.tokenizer.fast.save(str(folder / DECODER_FILE))
    draft = folder / (WEIGHTS_FILE + ".draft")
    save_file(pack(parts.network.state_dict(), storage), draft, metadata={"format": "pt"})
    draft.replace(folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load_native(folder: Path) -> ModelParts:
    """Read a model folder; the network is in float32, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: a file is missing, broken or does not fit; the first misfits are named.
    """
    content = _read_config(folder / CONFIG_FILE)
    try:
        vision = dict(content["vision"])
        vision_class = {"vit": VitConfig, "efficientnet": EfficientNetConfig}[vision.pop("kind")]
        decoder = content["decoder"]
        config = Blip2Config(
            vision=_build(vision_class, vision, folder),
            qformer=_build(QFormerConfig, content["qformer"], folder),
            decoder=None if decoder is None else _build(DecoderConfig, decoder, folder),
            shared_width=content["shared_width"],
            vision_norm_eps=content["vision_norm_eps"],
        )
        transform = _build(ImageTransform, content["image"], folder)
        matching_tokens = content["matching_tokens"]
        prompts = _build(PromptTemplates, content["prompts"], folder)
        defaults = _build(GenerationDefaults, content["generation"], folder)
        name = str(content["name"])
    except KeyError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE} lacks {error}: get the model folder again") from error
    with torch.device("meta"):
        network = Blip2Network(config)
    load_exactly(network, read_weights(folder / WEIGHTS_FILE), folder)
    matching = tokenizer = None
    if matching_tokens is not None:
        words = Tokenizer.from_file(folder / MATCHING_FILE, start_token="[CLS]", pad_token="[PAD]")
        matching = MatchingText(words, matching_tokens)
    if decoder is not None:
        tokenizer = Tokenizer.from_file(folder / DECODER_FILE, start_token="</s>", pad_token="<pad>")
    return ModelParts(name, network.eval(), transform, matching, tokenizer, prompts, defaults)


def load_exactly(network: torch.nn.Module, state: Mapping[str, Tensor], source: Path) -> None:
    """Give a network built on the meta device its tensors; every one must be there and fit.

    Raises:
        CheckpointError: naming the first tensors that are missing, unknown or of another shape.
    """
    expected = network.state_dict()
    misfits = [f"{name} is missing" for name in expected if name not in state]
    misfits += [f"{name} is unknown" for name in state if name not in expected]
    misfits += [
        f"{name} is {list(state[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if misfits:
        more = f" and {len(misfits) - 3} more" if len(misfits) > 3 else ""
        raise CheckpointError(f"{source} does not fit its config: {'; '.join(misfits[:3])}{more}")
    network.load_state_dict(state, assign=True)


def pack(state: Mapping[str, Tensor], storage: Storage) -> dict[str, Tensor]:
    """Tensors as they are stored."""
    packed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        if not tensor.is_floating_point():
            packed[name] = tensor
        elif storage == "int8" and tensor.ndim == 2 and tensor.numel() >= MATRIX_ELEMENTS:
            scale = (tensor.abs().amax(dim=1).clamp(min=1e-8) / 127).half()
            packed[name] = (tensor / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
            packed[name + SCALE_SUFFIX] = scale
        else:
            packed[name] = tensor.float() if storage == "float32" else tensor.half()
    return packed


def read_weights(path: Path) -> dict[str, Tensor]:
    """Stored tensors as float32 again.

    Raises:
        CheckpointError: the file is missing, truncated or no safetensors file.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: the model folder is incomplete, get it again")
    state: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            for name in names:
                if name.endswith(SCALE_SUFFIX):
                    continue
                tensor = file.get_tensor(name)
                if name + SCALE_SUFFIX in names:
                    tensor = tensor.float() * file.get_tensor(name + SCALE_SUFFIX).float()[:, None]
                state[name] = tensor.float() if tensor.is_floating_point() else tensor
    except SafetensorError as error:
        raise CheckpointError(f"{path} is broken ({error}): get the file again") from error
    return state


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: {path.parent} is not a model folder of OpenBLIP") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != "openblip":
        raise CheckpointError(f"{path} is not the config of an OpenBLIP model folder")
    if content.get("version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {content.get('version')}, this OpenBLIP reads {FORMAT_VERSION}: upgrade openblip"
        )
    return content


def _build(kind: type[Config], values: Mapping[str, Any], folder: Path) -> Config:
    """A config dataclass from JSON, whose unknown keys are errors and whose lists become tuples."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise CheckpointError(f"{folder / CONFIG_FILE} has unknown settings for {kind.__name__}: {', '.join(unknown)}")
    frozen = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    try:
        return kind(**frozen)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from error
