"""A BLIP in a folder of transformers -> a model, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from openblip.checkpoints.blip_models import GENERATION, PROMPTS
from openblip.checkpoints.json_files import build, read_json, to_json
from openblip.checkpoints.lavis.blip import TEMPERATURE, assemble, read_blip
from openblip.checkpoints.model_parts import ModelParts, read_defaults
from openblip.checkpoints.names.blip import ROOTS, TRANSFORMERS_PARTS
from openblip.checkpoints.names.engine import Layout
from openblip.checkpoints.read_options import ReadOptions
from openblip.checkpoints.tensors.files import WeightFolder
from openblip.checkpoints.transformers.config import (
    CONFIG_FILE,
    OWN_SETTINGS,
    PROCESSOR_FILE,
    Fields,
    read_transform,
    section_of,
    setting_of,
    settings_of,
)
from openblip.checkpoints.transformers.tokenizers import Task, bert_files, has_vocabulary, no_vocabulary
from openblip.checkpoints.transformers.write import SHARD_BYTES, image_files, write_weights
from openblip.errors import CheckpointError, OptionError, printable
from openblip.nn.bert import BertConfig
from openblip.nn.blip import BlipConfig, BlipNetwork
from openblip.nn.quant.swap import quantized_layers
from openblip.nn.vit import VitConfig
from openblip.text import PromptTemplates, check_prompts

MODEL_TYPE = "blip"
CAPTION, ANSWER, MATCH = "BlipForConditionalGeneration", "BlipForQuestionAnswering", "BlipForImageTextRetrieval"
SHARED_WIDTH, DECODE_ID = 256, 30522
VISION: Fields = {
    "image_size": ("image_size", 384),
    "patch_size": ("patch_size", 16),
    "width": ("hidden_size", 768),
    "depth": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 12),
    "mlp_width": ("intermediate_size", 3072),
    "layer_norm_eps": ("layer_norm_eps", 1e-5),
    "activation": ("hidden_act", "gelu"),
}
TEXT: Fields = {
    "vocab_size": ("vocab_size", 30524),
    "width": ("hidden_size", 768),
    "depth": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 8),
    "ffn_width": ("intermediate_size", 3072),
    "max_positions": ("max_position_embeddings", 512),
    "layer_norm_eps": ("layer_norm_eps", 1e-12),
    "dropout": ("hidden_dropout_prob", 0.0),
}
"""Ours to their name and its default."""


def load_blip_folder(folder: Path, options: ReadOptions) -> ModelParts[BlipNetwork]:
    """Read a folder such as `Salesforce/blip-image-captioning-base`, in evaluation mode.

    Sizes and eps are what its config.json says. Where it says nothing of prompts and lengths, they are LAVIS'.

    Raises:
        CheckpointError: a file is missing, broken or does not fit.
    """
    path = folder / CONFIG_FILE
    content = read_json(path) if options.config is None else options.config
    config = blip_config(content, path)
    words: Path | None = options.tokenizer or folder
    if options.tokenizer is None and not has_vocabulary(folder):
        if options.needs_tokenizer:
            raise CheckpointError(no_vocabulary(folder, "match"))
        words = None
    own = section_of(content, OWN_SETTINGS, path)
    temperature = own.get("temperature", TEMPERATURE)
    if not isinstance(temperature, float):
        shown = printable(str(temperature), 100)
        raise CheckpointError(f"{path}: temperature is {shown}, not a number with a fraction: get it again")
    network = read_blip(config, WeightFolder(folder, ROOTS), TRANSFORMERS_PARTS, folder, options, temperature)
    prompts = build(PromptTemplates, section_of(own, "prompts", path) or PROMPTS, path)
    check_prompts(prompts, path)
    return assemble(
        folder.resolve().name,
        network,
        read_transform(folder, config.vision.image_size),
        words,
        prompts,
        read_defaults(section_of(own, "generation", path) or GENERATION, path),
        own.get("matching_tokens"),
    )


def blip_config(content: Mapping[str, Any], path: Path) -> BlipConfig:
    """The network that a config.json describes.

    Raises:
        CheckpointError: it describes none, or one of a class that cannot be read.
    """
    names = content.get("architectures") or [CAPTION]
    kind = names[0] if isinstance(names, list) and names else None
    if kind not in (CAPTION, ANSWER, MATCH):
        raise CheckpointError(f"{path} is of a {kind}: only {CAPTION}, {ANSWER} and {MATCH} can be read")
    text_section = section_of(content, "text_config", path)
    values = settings_of(VISION, section_of(content, "vision_config", path))
    vision = build(VitConfig, {**values, "final_norm": True}, path)
    text = build(BertConfig, {**settings_of(TEXT, text_section), "image_width": vision.width}, path)
    decode_id = setting_of(text_section, "bos_token_id", DECODE_ID)
    if not isinstance(decode_id, int):
        raise CheckpointError(f"{path}: bos_token_id is {printable(str(decode_id), 100)}, not a number: get it again")
    settings: dict[str, Any] = {"vision": vision, "decode_id": decode_id, "encode_id": decode_id + 1}
    if kind == CAPTION:
        settings |= {"decoder": text}
    elif kind == ANSWER:
        settings |= {"encoder": text, "decoder": replace(text, image_width=text.width), "answers": True}
    else:
        shared = setting_of(content, "image_text_hidden_size", SHARED_WIDTH)
        settings |= {"encoder": text, "shared_width": shared, "itm": True}
    return build(BlipConfig, settings, path)


@dataclass(frozen=True)
class BlipWords:
    """What config.json says of a BLIP's words.

    Attributes:
        stop, pad: ids of what ends a text, and of what fills short ones.
        label_smoothing: of transformers' losses; LAVIS' is always 0.1.
    """

    stop: int
    pad: int
    label_smoothing: float = 0.0


def save_blip_folder(
    parts: ModelParts[BlipNetwork],
    folder: Path,
    task: Task | None = None,
    shard_bytes: int = SHARD_BYTES,
    state: Mapping[str, Tensor] | None = None,
    words: BlipWords | None = None,
) -> None:
    """Write a folder for transformers' BLIP classes and `AutoProcessor`.

    What they have no place for, a temperature, prompts and lengths, is in a note in config.json.

    Args:
        shard_bytes: weights beyond this are split into several files.
        state: written instead of the network's own tensors, under the same names.
        words: by default what the model's vocabulary says.

    Raises:
        CheckpointError: transformers has no class of such a model, or its weights are quantized.
        OptionError: a task that is not the model's.
    """
    network = parts.network
    config = network.config
    if quantized_layers(network):
        raise CheckpointError(
            f"the weights of {parts.name} are quantized, which transformers cannot read: load it in floating point, "
            "or let `openblip convert` write it"
        )
    kind = class_of(config, parts.name)
    if task is not None and (task == "match") != (kind == MATCH):
        raise OptionError(f"the model {parts.name} has one task: leave {task} out")
    temperature = network.state_dict().get("temperature")
    own = {**(network.state_dict() if state is None else state)}
    own.pop("temperature", None)
    content = describe(parts, words or words_of(parts))
    content[OWN_SETTINGS]["temperature"] = TEMPERATURE if temperature is None else float(temperature)
    files = {
        **image_files(parts.transform, "BlipProcessor"),
        PROCESSOR_FILE: to_json({"processor_class": "BlipProcessor"}),
        CONFIG_FILE: to_json(content),
    }
    vocabulary = parts.tokenizer if parts.matching is None else parts.matching.tokenizer
    if vocabulary is not None:
        files |= bert_files(vocabulary, content["text_config"]["max_position_embeddings"])
    write_weights(folder, files, Layout("transformers' BLIP", TRANSFORMERS_PARTS).to_theirs(own), shard_bytes)


def words_of(parts: ModelParts[BlipNetwork]) -> BlipWords:
    """Of a model with a vocabulary. Raises CheckpointError for one without."""
    words = parts.matching.tokenizer if parts.matching is not None else parts.require_words()
    return BlipWords(words.token_id("[SEP]"), words.pad_id)


def describe(parts: ModelParts[BlipNetwork], words: BlipWords) -> dict[str, Any]:
    """config.json. Raises CheckpointError when transformers has no class of such a model."""
    config = parts.network.config
    text = config.encoder if config.decoder is None else config.decoder
    assert text is not None  # as every BLIP has one of them
    return {
        "architectures": [class_of(config, parts.name)],
        "model_type": MODEL_TYPE,
        "image_text_hidden_size": config.shared_width or SHARED_WIDTH,
        "projection_dim": text.width,
        "vision_config": {"model_type": "blip_vision_model", **_named(VISION, config.vision)},
        "text_config": {
            "model_type": "blip_text_model",
            **_named(TEXT, text),
            "encoder_hidden_size": config.vision.width,
            "attention_probs_dropout_prob": text.dropout,
            "label_smoothing": words.label_smoothing,
            "bos_token_id": config.decode_id,
            "sep_token_id": words.stop,
            "eos_token_id": words.stop,
            "pad_token_id": words.pad,
        },
        OWN_SETTINGS: {
            "prompts": asdict(parts.prompts),
            "generation": parts.defaults.to_json(),
            "matching_tokens": None if parts.matching is None else parts.matching.max_tokens,
        },
    }


def class_of(config: BlipConfig, name: str) -> str:
    """Raises CheckpointError when transformers has no class of such a model."""
    vision, text = config.vision, config.encoder
    plain = vision.final_norm and vision.attention_bias == "qkv" and vision.patch_bias and not vision.pre_norm
    if plain and config.num_classes is None:
        if config.decoder is not None and text is None:
            return CAPTION
        if config.answers and text is not None and vision.width == text.width:
            return ANSWER
        if config.itm and config.decoder is None:
            return MATCH
    raise CheckpointError(f"transformers has no BLIP of the parts of {name}: it cannot be written for it")


def _named(table: Fields, config: object) -> dict[str, Any]:
    return {theirs: getattr(config, ours) for ours, (theirs, _) in table.items()}
