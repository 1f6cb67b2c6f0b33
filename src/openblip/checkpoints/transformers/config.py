"""What config.json and its neighbours say in a BLIP-2 folder of transformers, of any vintage.

transformers writes what differs from its defaults, or everything, depending on its version: what is missing here is
filled in with the same defaults.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from openblip.checkpoints.json_files import build, read_json, read_json_if_there
from openblip.checkpoints.model_parts import GenerationDefaults, read_defaults
from openblip.checkpoints.names.languages import LANGUAGES
from openblip.checkpoints.transformers.tokenizers import Task
from openblip.errors import CheckpointError
from openblip.images.transform import ImageTransform
from openblip.nn.blip2 import Blip2Config, OwnLanguageConfig
from openblip.nn.config_checks import LARGEST_COUNT
from openblip.nn.opt import OptConfig
from openblip.nn.qformer import QFormerConfig
from openblip.nn.t5 import T5Config
from openblip.nn.vit import VitConfig
from openblip.text import SHORT_QUESTION, PromptTemplates, check_prompts

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
IMAGE_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"
MODEL_TYPE = "blip-2"
OWN_SETTINGS = "openblip"
"""Key in config.json, which transformers keeps, for what it has no settings of its own for."""

ARCHITECTURES: dict[str, Task] = {
    "Blip2ForConditionalGeneration": "write",
    "Blip2Model": "write",
    "Blip2ForImageTextRetrieval": "match",
}
"""transformers' classes; the first of a task is the one that folders are written for."""

# Ours: (theirs, their default).
Fields: TypeAlias = Mapping[str, tuple[str, Any]]
VISION: Fields = {
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 14),
    "width": ("hidden_size", 1408),
    "depth": ("num_hidden_layers", 39),
    "num_heads": ("num_attention_heads", 16),
    "mlp_width": ("intermediate_size", 6144),
    "layer_norm_eps": ("layer_norm_eps", 1e-6),
    "activation": ("hidden_act", "gelu"),
}
QFORMER: Fields = {
    "width": ("hidden_size", 768),
    "depth": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 12),
    "ffn_width": ("intermediate_size", 3072),
    "cross_every": ("cross_attention_frequency", 2),
    "vocab_size": ("vocab_size", 30522),
    "max_positions": ("max_position_embeddings", 512),
    "layer_norm_eps": ("layer_norm_eps", 1e-12),
    "dropout": ("hidden_dropout_prob", 0.1),
}
OPT: Fields = {
    "vocab_size": ("vocab_size", 50272),
    "width": ("hidden_size", 768),
    "depth": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 12),
    "ffn_width": ("ffn_dim", 3072),
    "max_positions": ("max_position_embeddings", 2048),
    "pre_norm": ("do_layer_norm_before", True),
    "dropout": ("dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.0),
}
T5: Fields = {
    "vocab_size": ("vocab_size", 32128),
    "width": ("d_model", 512),
    "depth": ("num_layers", 6),
    "num_heads": ("num_heads", 8),
    "head_width": ("d_kv", 64),
    "ffn_width": ("d_ff", 2048),
    "relative_buckets": ("relative_attention_num_buckets", 32),
    "relative_reach": ("relative_attention_max_distance", 128),
    "norm_eps": ("layer_norm_epsilon", 1e-6),
    "dropout": ("dropout_rate", 0.1),
}
T5_FFN = "relu"
"""Default of T5's `feed_forward_proj`."""
NUM_QUERIES = 32
SHARED_WIDTH = 256
RESCALE = 1 / 255
BICUBIC = 3
LONGEST_TEXT = 32
"""LAVIS cuts texts for the Q-Former here."""

# Settings that the networks here have one value of, which is transformers' default.
FIXED: dict[str, dict[str, Any]] = {
    "vision_config": {"qkv_bias": True},
    "qformer_config": {"hidden_act": "gelu", "position_embedding_type": "absolute"},
    "text_config": {"activation_function": "relu", "enable_bias": True, "layer_norm_elementwise_affine": True},
    "image processor": {"do_resize": True, "do_normalize": True, "do_rescale": True, "resample": BICUBIC},
}

COCO_SIDE = 364
"""Of the official models that were fine-tuned on COCO's captions, behind the words "a photo of"."""


@dataclass(frozen=True)
class WordIds:
    """Which tokens of the language model do what.

    Attributes:
        start: begins a text; what T5 reads begins with nothing, and this is its stop token then.
        stop: ends a text, and what T5 reads.
        image: holds an image's place; None where the folder is from before there was such a token.
    """

    start: int
    pad: int
    stop: int
    image: int | None = None


@dataclass(frozen=True)
class FolderConfig:
    """All that a folder says besides weights and vocabularies.

    Attributes:
        words: None for a folder that matches.
        head_is_words: T5's output head need not be stored: it is the word table then.
        matching_tokens: length at which texts for the Q-Former are cut; None for a folder that writes.
    """

    network: Blip2Config
    transform: ImageTransform
    words: WordIds | None
    head_is_words: bool
    matching_tokens: int | None
    prompts: PromptTemplates
    defaults: GenerationDefaults


def read_config(folder: Path) -> FolderConfig:
    """Read config.json, and generation_config.json and the image processor's config where they are.

    One `layer_norm_eps` serves the image encoder and the norm behind it in transformers, and so here: results are
    those of transformers on the same folder. LAVIS has 1e-6 and 1e-5; a folder with an eps of 1e-5 (early ones on
    the hub) gives features that differ by about 1e-5 from the original model's.

    A text ends where `text_config` says, which is what transformers' generate goes by, else where
    generation_config.json says, else at the language model's own stop token. Beams and lengths come from
    generation_config.json; it usually has none, and they are LAVIS' then. A model that writes and reads images of
    364 pixels counts as fine-tuned on COCO: its captions go on from "a photo of". Questions end with "Answer:" for
    OPT, as in the paper, and with "Short answer:" for T5.

    Whether T5 scales hidden states before its output head is said by `scale_decoder_outputs`, in folders from before
    transformers 5 by `tie_word_embeddings`. A head of its own that is scaled, which no known T5 has, is refused
    when the weights are read.

    Raises:
        CheckpointError: a file is broken, or describes a model that cannot be built here.
    """
    path = folder / CONFIG_FILE
    content = read_json(path)
    task = _task(content, path)
    vision, qformer = section_of(content, "vision_config", path), section_of(content, "qformer_config", path)
    text = section_of(content, "text_config", path)
    own = section_of(content, OWN_SETTINGS, path)
    vision_values = {**settings_of(VISION, vision), **_square(vision, path), "attention_bias": "qv"}
    vision_config = build(VitConfig, vision_values, path, _their_names(VISION))
    qformer_config = build(
        QFormerConfig,
        {
            **settings_of(QFORMER, qformer),
            **({} if task == "match" else {"vocab_size": 0}),
            "image_width": vision_config.width,
            "num_queries": setting_of(content, "num_query_tokens", NUM_QUERIES),
        },
        path,
        {**_their_names(QFORMER), "num_queries": "num_query_tokens"},
    )
    _require_fixed(vision, "vision_config", path)
    _require_fixed(qformer, "qformer_config", path)
    network = build(
        Blip2Config,
        {
            "vision": vision_config,
            "qformer": qformer_config,
            "language": None if task == "match" else _read_language_model(text, path),
            "shared_width": setting_of(content, "image_text_hidden_size", SHARED_WIDTH),
            "vision_norm_eps": own.get("vision_norm_eps", vision_config.layer_norm_eps),
        },
        path,
        {"shared_width": "image_text_hidden_size"},
    )
    generation = read_json_if_there(folder / GENERATION_FILE)
    tuned = task == "write" and vision_config.image_size == COCO_SIDE
    usual = {"caption": "a photo of"} if tuned else {}
    language = network.own_language
    if language is not None and language.encodes_prompts:
        usual["question"] = SHORT_QUESTION
    prompts = build(PromptTemplates, section_of(own, "prompts", path) or usual, path)
    check_prompts(prompts, path)
    return FolderConfig(
        network,
        read_transform(folder, vision_config.image_size),
        None if language is None else _word_ids(content, generation, language, path),
        language is not None
        and language.encodes_prompts
        and setting_of(text, "tie_word_embeddings", True) is not False,
        _matching_tokens(own, qformer_config, path) if task == "match" else None,
        prompts,
        read_defaults(section_of(own, "generation", path) or _generation(network, generation), path),
    )


def _task(content: Mapping[str, Any], path: Path) -> Task:
    if content.get("model_type") != MODEL_TYPE:
        raise CheckpointError(f"{path} describes a model of type {content.get('model_type')!r}, not {MODEL_TYPE!r}")
    names = content.get("architectures") or []
    if not isinstance(names, list):
        raise CheckpointError(f"{path}: architectures is {names!r}, not a list of classes")
    architectures = [ARCHITECTURES[name] for name in names if isinstance(name, str) and name in ARCHITECTURES]
    if names and not architectures:
        raise CheckpointError(
            f"{path} is of a {', '.join(map(str, names))}: only {', '.join(ARCHITECTURES)} can be read"
        )
    if architectures:
        return architectures[0]
    return "match" if section_of(content, "qformer_config", path).get("use_qformer_text_input") else "write"


def section_of(content: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    """A group of settings; empty without one. Raises CheckpointError when it is something else."""
    section = content.get(name) or {}
    if not isinstance(section, dict):
        raise CheckpointError(f"{path}: {name} is {section!r}, not a group of settings")
    return section


def setting_of(section: Mapping[str, Any], name: str, default: Any) -> Any:
    """A setting; null counts as missing."""
    value = section.get(name)
    return default if value is None else value


def settings_of(table: Fields, section: Mapping[str, Any]) -> dict[str, Any]:
    """Values under our names, or their defaults."""
    return {ours: setting_of(section, theirs, default) for ours, (theirs, default) in table.items()}


def _their_names(table: Fields) -> dict[str, str]:
    return {ours: theirs for ours, (theirs, _) in table.items()}


def _require_fixed(section: Mapping[str, Any], name: str, path: Path) -> None:
    for setting, wanted in FIXED[name].items():
        if setting_of(section, setting, wanted) != wanted:
            raise CheckpointError(f"{path}: {name} has {setting} {section[setting]!r}, only {wanted!r} can be read")


def _square(vision: Mapping[str, Any], path: Path) -> dict[str, int]:
    """Sides that may be written as two equal numbers."""
    return {name: _side(setting_of(vision, name, VISION[name][1]), name, path) for name in ("image_size", "patch_size")}


def _side(value: object, name: str, path: Path) -> int:
    sides = value
    if isinstance(sides, dict):
        sides = [sides.get("height"), sides.get("width")]
    if isinstance(sides, int):
        sides = [sides, sides]
    if not isinstance(sides, list) or len(sides) != 2 or not isinstance(sides[0], int) or sides[0] != sides[1]:
        raise CheckpointError(f"{path}: {name} is {value!r}, only squares can be read")
    return sides[0]


def _read_language_model(text: Mapping[str, Any], path: Path) -> OptConfig | T5Config:
    kind = setting_of(text, "model_type", "opt")
    if not isinstance(kind, str) or kind not in LANGUAGE_MODELS:
        kinds = ", ".join(LANGUAGE_MODELS)
        raise CheckpointError(f"{path} has a language model of type {kind!r}: only {kinds} can be read")
    return LANGUAGE_MODELS[kind](text, path)


def _read_opt(text: Mapping[str, Any], path: Path) -> OptConfig:
    _require_fixed(text, "text_config", path)
    values = settings_of(OPT, text)
    if setting_of(text, "word_embed_proj_dim", values["width"]) != values["width"]:
        raise CheckpointError(f"{path}: word_embed_proj_dim differs from hidden_size, which no BLIP-2 can have")
    final_norm = values["pre_norm"] and not text.get("_remove_final_layer_norm")
    return build(OptConfig, {**values, "final_norm": final_norm}, path, _their_names(OPT))


def _read_t5(text: Mapping[str, Any], path: Path) -> T5Config:
    values = settings_of(T5, text)
    kind = setting_of(text, "feed_forward_proj", T5_FFN)
    gate, _, activation = kind.rpartition("-") if isinstance(kind, str) else ("", "", kind)
    if gate not in ("", "gated"):
        raise CheckpointError(f"{path}: feed_forward_proj is {kind!r}, neither an activation nor a gated one")
    if kind == "gated-gelu":
        activation = "gelu_new"
    return build(
        T5Config,
        {
            **values,
            "decoder_depth": setting_of(text, "num_decoder_layers", values["depth"]),
            "activation": setting_of(text, "dense_act_fn", activation),
            "gated": setting_of(text, "is_gated_act", gate == "gated"),
            "tied_head": setting_of(text, "scale_decoder_outputs", setting_of(text, "tie_word_embeddings", True)),
            "start_id": setting_of(
                text, "decoder_start_token_id", setting_of(text, "pad_token_id", LANGUAGES[T5Config.kind].pad_id)
            ),
        },
        path,
        {
            **_their_names(T5),
            "decoder_depth": "num_decoder_layers",
            "activation": "feed_forward_proj",
            "start_id": "decoder_start_token_id",
        },
    )


LANGUAGE_MODELS: dict[str, Callable[[Mapping[str, Any], Path], OwnLanguageConfig]] = {"opt": _read_opt, "t5": _read_t5}
"""transformers' name of each kind, and what reads its `text_config`."""


def _word_ids(
    content: Mapping[str, Any], generation: Mapping[str, Any], language: OwnLanguageConfig, path: Path
) -> WordIds:
    text = section_of(content, "text_config", path)
    usual = LANGUAGES[language.kind]
    stop = setting_of(text, "eos_token_id", setting_of(generation, "eos_token_id", usual.stop_id))
    if isinstance(stop, list) and stop:
        stop = stop[0]
    found = {
        "start": stop if language.encodes_prompts else setting_of(text, "bos_token_id", usual.start_id),
        "pad": setting_of(text, "pad_token_id", usual.pad_id),
        "stop": stop,
    }
    for name, value in found.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST_COUNT:
            raise CheckpointError(f"{path}: the {name} token of text_config is {value!r}, not an id")
    return WordIds(**found, image=image_token_index(content))


def image_token_index(content: Mapping[str, Any]) -> int | None:
    """The id that config.json has for an image's place, under its name of transformers 4 or 5."""
    index: object = setting_of(content, "image_token_index", content.get("image_token_id"))
    return index if isinstance(index, int) else None


def _generation(network: Blip2Config, generation: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's own defaults, and what generation_config.json says otherwise."""
    shared = {name: generation.get(name) for name in ("num_beams", "max_new_tokens", "length_penalty")}
    # LAVIS' predict_answers
    encodes = network.language is not None and network.language.encodes_prompts
    answers = {"length_penalty": -1.0 if encodes else 0.0}
    answers |= {name: value for name, value in shared.items() if value is not None}
    return {"captions": {**shared, "min_new_tokens": generation.get("min_new_tokens")}, "answers": answers}


def read_transform(folder: Path, image_size: int) -> ImageTransform:
    """transformers 5 keeps the image processor's config inside the processor's."""
    path = folder / PROCESSOR_FILE
    settings = section_of(read_json_if_there(path), "image_processor", path)
    if not settings:
        path = folder / IMAGE_FILE
        settings = read_json_if_there(path)
    _require_fixed(settings, "image processor", path)
    factor = setting_of(settings, "rescale_factor", RESCALE)
    if not isinstance(factor, int | float) or not math.isclose(factor, RESCALE, rel_tol=1e-6):
        raise CheckpointError(f"{path}: rescale_factor is {factor!r}, only 1/255 can be read")
    values: dict[str, Any] = {"image_size": _side(setting_of(settings, "size", image_size), "size", path)}
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if settings.get(theirs) is not None:
            values[ours] = settings[theirs]
    return build(ImageTransform, values, path)


def _matching_tokens(own: Mapping[str, Any], config: QFormerConfig, path: Path) -> int:
    length = setting_of(own, "matching_tokens", min(LONGEST_TEXT, config.max_positions))
    if not isinstance(length, int) or not 2 < length <= config.max_positions:
        raise CheckpointError(
            f"{path}: texts of {length!r} tokens are to be matched, not of 3 to {config.max_positions}"
        )
    return length
