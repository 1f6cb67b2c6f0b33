"""A CLIP in a folder of transformers -> a model, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from openblip.checkpoints.clip_models import FAMILY
from openblip.checkpoints.json_files import build, read_json, read_json_if_there, to_json
from openblip.checkpoints.lavis.clip import ClipParts, read_clip
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.names.clip import TRANSFORMERS, TRANSFORMERS_ROOTS
from openblip.checkpoints.read_options import ReadOptions
from openblip.checkpoints.tensors.files import WeightFolder
from openblip.checkpoints.transformers.config import (
    CONFIG_FILE,
    IMAGE_FILE,
    PROCESSOR_FILE,
    RESCALE,
    Fields,
    section_of,
    setting_of,
    settings_of,
)
from openblip.checkpoints.transformers.tokenizers import (
    Task,
    clip_files,
    has_vocabulary,
    no_vocabulary,
    read_clip_words,
)
from openblip.checkpoints.transformers.write import SHARD_BYTES, write_weights
from openblip.errors import CheckpointError
from openblip.images.transform import ImageTransform
from openblip.nn.clip import ClipConfig, ClipTextConfig
from openblip.nn.quant.swap import quantized_layers
from openblip.nn.vit import VitConfig
from openblip.text import ClipText

MODEL_TYPE = "clip"
CLASSES = ("CLIPModel",)
SHARED_WIDTH, IMAGE_SIZE = 512, 224
BLOCKS: Fields = {
    "depth": ("num_hidden_layers", 12),
    "layer_norm_eps": ("layer_norm_eps", 1e-5),
    "activation": ("hidden_act", "quick_gelu"),
}
VISION: Fields = {
    "image_size": ("image_size", IMAGE_SIZE),
    "patch_size": ("patch_size", 32),
    "width": ("hidden_size", 768),
    "num_heads": ("num_attention_heads", 12),
    "mlp_width": ("intermediate_size", 3072),
    **BLOCKS,
}
TEXT: Fields = {
    "vocab_size": ("vocab_size", 49408),
    "width": ("hidden_size", 512),
    "num_heads": ("num_attention_heads", 8),
    "mlp_width": ("intermediate_size", 2048),
    "max_positions": ("max_position_embeddings", 77),
    **BLOCKS,
}
"""Ours to their name and its default."""
PROCESSING = {
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "do_normalize": True,
    "resample": 3,
    "rescale_factor": RESCALE,
}
"""What has one value here, which is the usual one."""


def load_clip_folder(folder: Path, options: ReadOptions) -> ClipParts:
    """Read a folder such as `openai/clip-vit-base-patch32`, in evaluation mode.

    Raises:
        CheckpointError: a file is missing, broken or does not fit.
    """
    path = folder / CONFIG_FILE
    config = clip_config(read_json(path) if options.config is None else options.config, path)
    words = folder if options.tokenizer is None else options.tokenizer
    text: ClipText | None = None
    if has_vocabulary(words):
        text = read_clip_words(words, config.text_positions, config.text_vocab_size)
    elif options.needs_tokenizer:
        raise CheckpointError(no_vocabulary(words, "write"))
    network = read_clip(config, WeightFolder(folder, TRANSFORMERS_ROOTS), TRANSFORMERS, folder, options)
    assert isinstance(config.vision, VitConfig)  # as every CLIP of transformers
    transform = read_clip_transform(folder, config.vision.image_size)
    return ModelParts(folder.resolve().name, network, transform, text, None, family=FAMILY)


def clip_config(content: Mapping[str, Any], path: Path) -> ClipConfig:
    """The network that a config.json describes.

    Raises:
        CheckpointError: it describes none, or one of another class.
    """
    names = content.get("architectures") or list(CLASSES)
    if not isinstance(names, list) or not set(CLASSES) & set(map(str, names)):
        raise CheckpointError(f"{path} is of a {names}: only {', '.join(CLASSES)} can be read")
    # Before transformers 4.28 sizes stood in groups of these names.
    vision, text = (
        section_of(content, f"{part}_config_dict", path) | section_of(content, f"{part}_config", path)
        for part in ("vision", "text")
    )
    fixed = {"pre_norm": True, "patch_bias": False, "final_norm": True}
    return build(
        ClipConfig,
        {
            "vision": build(VitConfig, {**settings_of(VISION, vision), **fixed}, path, _their_names(VISION)),
            "text": build(ClipTextConfig, settings_of(TEXT, text), path, _their_names(TEXT)),
            "shared_width": setting_of(content, "projection_dim", SHARED_WIDTH),
        },
        path,
        {"shared_width": "projection_dim"},
    )


def read_clip_transform(folder: Path, image_size: int) -> ImageTransform:
    """How the folder's image processor brings images to a square.

    Raises:
        CheckpointError: otherwise than CLIP's: by no crop, or to no square.
    """
    path = folder / PROCESSOR_FILE
    content = section_of(read_json_if_there(path), "image_processor", path)
    if not content:
        path = folder / IMAGE_FILE
        content = read_json_if_there(path)
    for name, wanted in PROCESSING.items():
        found = setting_of(content, name, wanted)
        if found != wanted and not (
            name == "rescale_factor" and isinstance(found, float) and abs(found - RESCALE) < 1e-8
        ):
            raise CheckpointError(f"{path}: {name} is {found!r}, only {wanted!r} can be read")
    side = _one_side(setting_of(content, "crop_size", image_size), "crop_size", path)
    if _one_side(setting_of(content, "size", side), "size", path) != side:
        raise CheckpointError(f"{path}: size and crop_size differ, which no CLIP here can have")
    values: dict[str, Any] = {"image_size": side, "crop": True}
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if content.get(theirs) is not None:
            values[ours] = content[theirs]
    return build(ImageTransform, values, path)


def save_clip_folder(
    parts: ClipParts,
    folder: Path,
    task: Task | None = None,
    shard_bytes: int = SHARD_BYTES,
    state: Mapping[str, Tensor] | None = None,
    word_ids: Mapping[str, int] | None = None,
) -> None:
    """Write a folder for transformers' `CLIPModel` and `CLIPProcessor`.

    Args:
        state: tensors by the network's names, instead of its own.
        word_ids: what config.json says of words where the model has no vocabulary.

    Raises:
        CheckpointError: transformers has no such CLIP, or its weights are quantized.
    """
    config = parts.network.config
    if not isinstance(config.vision, VitConfig):
        raise CheckpointError(f"transformers has CLIP with a ViT only: {parts.name} has a ResNet, write it for lavis")
    if quantized_layers(parts.network):
        raise CheckpointError(
            f"the weights of {parts.name} are quantized, which transformers cannot read: load it in floating point, "
            "or let `openblip convert` write it"
        )
    own = TRANSFORMERS.to_theirs(parts.network.state_dict() if state is None else state)
    files: dict[str, str] = {}
    ids = dict(word_ids or {})
    if parts.matching is not None:
        words = parts.matching.tokenizer
        ids = {"bos_token_id": words.start_id, "eos_token_id": parts.matching.end_id, "pad_token_id": words.pad_id}
        files |= clip_files(parts.matching, config.text_positions)
    content = {
        "architectures": list(CLASSES),
        "model_type": MODEL_TYPE,
        "projection_dim": config.shared_width,
        "logit_scale_init_value": 2.6592,
        "vision_config": {
            "model_type": "clip_vision_model",
            "projection_dim": config.shared_width,
            **_named(VISION, config.vision),
        },
        "text_config": {
            "model_type": "clip_text_model",
            "projection_dim": config.shared_width,
            **_named(TEXT, config.text),
            **ids,
        },
    }
    files |= clip_image_files(parts.transform) | {CONFIG_FILE: to_json(content)}
    write_weights(folder, files, own, shard_bytes)


def clip_image_files(transform: ImageTransform) -> dict[str, str]:
    """File names and texts of transformers' config of CLIP's image processor."""
    side = transform.image_size
    images = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "image_mean": transform.mean,
        "image_std": transform.std,
        "do_convert_rgb": True,
        **PROCESSING,
    }
    return {IMAGE_FILE: to_json(images), PROCESSOR_FILE: to_json({"processor_class": "CLIPProcessor"})}


def _one_side(value: object, name: str, path: Path) -> int:
    """A side that is written as a number, or as sides of a square."""
    sides = list(value.values()) if isinstance(value, Mapping) else [value]
    found = {side for side in sides if type(side) is int}
    if len(found) != 1 or len(found) != len(set(map(str, sides))):
        raise CheckpointError(f"{path}: {name} is {value!r}, only squares can be read")
    return int(found.pop())


def _their_names(table: Fields) -> dict[str, str]:
    return {ours: theirs for ours, (theirs, _) in table.items()}


def _named(table: Fields, config: object) -> dict[str, Any]:
    return {theirs: getattr(config, ours) for ours, (theirs, _) in table.items()}
