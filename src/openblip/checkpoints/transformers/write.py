"""A model -> a BLIP-2 folder that transformers and its processors load."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openblip.checkpoints.json_files import to_json
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.names.languages import LANGUAGES
from openblip.checkpoints.names.transformers import HEAD, to_transformers
from openblip.checkpoints.openblip.folder import empty_network
from openblip.checkpoints.tensors.files import SINGLE_FILES
from openblip.checkpoints.tensors.header import INDEX_SUFFIX
from openblip.checkpoints.tensors.writing import write_together
from openblip.checkpoints.transformers.config import (
    ARCHITECTURES,
    CONFIG_FILE,
    FIXED,
    GENERATION_FILE,
    IMAGE_FILE,
    MODEL_TYPE,
    OPT,
    OWN_SETTINGS,
    PROCESSOR_FILE,
    QFORMER,
    RESCALE,
    T5,
    VISION,
    Fields,
    WordIds,
)
from openblip.checkpoints.transformers.tokenizers import Task, decoder_files, encoder_files, matching_files
from openblip.errors import CheckpointError, OptionError
from openblip.images.transform import ImageTransform
from openblip.nn.blip2 import Blip2Config
from openblip.nn.opt import OptConfig
from openblip.nn.quant.swap import quantized_layers
from openblip.nn.vit import VitConfig
from openblip.text import Tokenizer

WEIGHTS_FILE = SINGLE_FILES[0]
SHARD_BYTES = 5_000_000_000
"""transformers' own limit."""
LONGEST_PROMPT = 512
"""Tokens at which T5's tokenizers cut; the model itself has no limit."""


def save_transformers(
    parts: ModelParts,
    folder: Path,
    task: Task | None = None,
    shard_bytes: int = SHARD_BYTES,
    state: Mapping[str, Tensor] | None = None,
    ids: WordIds | None = None,
) -> None:
    """Write a folder for `Blip2ForConditionalGeneration` or `Blip2ForImageTextRetrieval` and `AutoProcessor`.

    Tensors keep their type, and those that came from such a folder are written as they were. Three things have no
    place there: the head for ITG and the temperature of stage 1 are left out, and of two different eps that of the
    image encoder stands for the norm behind it, too; `load_transformers` finds both, with prompts and defaults, in
    a note in config.json. A word table without a free row grows by a copy of padding's: transformers needs an id
    in the place of an image.

    Args:
        task: which half to write, "write" or "match"; it must be given for a model that does both.
        shard_bytes: weights beyond this are split into several files.
        state: written instead of the network's own tensors, under the same names.
        ids: of a model without a vocabulary, which is not written then.

    Raises:
        OptionError: no task for a model of both, or one that the model cannot do.
        CheckpointError: transformers' BLIP-2 cannot be such a model, or its weights are quantized.
    """
    _require_vision(parts)
    task = _choose_task(parts, task)
    if quantized_layers(parts.network):
        raise CheckpointError(
            f"the weights of {parts.name} are quantized, which transformers cannot read: load it in floating point, "
            "or let `openblip convert` write it"
        )
    config = task_config(parts.network.config, task)
    if task == "match":
        ids = None
    elif parts.tokenizer is not None:
        ids = _word_ids(parts, parts.tokenizer)
    content = _config(parts, config, task, ids)
    kept = empty_network(config, folder / CONFIG_FILE).state_dict()
    if not kept.keys() <= parts.network.state_dict().keys():
        raise CheckpointError(
            f"the model {parts.name} has adapters, which this layout has no place for: merge them first"
        )
    try:
        own = parts.network.state_dict() if state is None else state
        state = to_transformers({name: tensor for name, tensor in own.items() if name in kept})
    except CheckpointError as error:
        raise CheckpointError(f"the model {parts.name} cannot be written for transformers: {error}") from error
    files = image_files(parts.transform)
    queries: int | None = None
    if ids is not None:
        text = content["text_config"]
        words: dict[str, str] = {}
        image_token = ids.image
        language = config.own_language
        if parts.tokenizer is not None and language is not None and language.encodes_prompts:
            words, image_token = encoder_files(parts.tokenizer, ids.stop, LONGEST_PROMPT)
        elif parts.tokenizer is not None:
            longest = LONGEST_PROMPT if language is None else language.max_positions or LONGEST_PROMPT
            words, image_token = decoder_files(parts.tokenizer, longest)
        for table in (*(files.words for files in LANGUAGES.values()), HEAD):
            if table in state and image_token is not None:
                state[table] = _with_row(state[table], image_token, ids.pad)
                text["vocab_size"] = state[table].shape[0]
        content["image_token_index"] = image_token
        queries = config.qformer.num_queries
        named = {name: text[name] for name in text if name.endswith("_token_id")}
        files |= {**words, GENERATION_FILE: to_json(named)}
    elif parts.matching is not None:
        files |= matching_files(parts.matching, config.qformer.max_positions)
    files[PROCESSOR_FILE] = to_json({"processor_class": "Blip2Processor", "num_query_tokens": queries})
    files[CONFIG_FILE] = to_json(content)
    write_weights(folder, files, state, shard_bytes)


def write_weights(folder: Path, files: dict[str, str], state: Mapping[str, Tensor], shard_bytes: int) -> None:
    """Texts and tensors into a folder, all or none; weights beyond `shard_bytes` go into several files."""
    shards = _shards(state, shard_bytes)
    if len(shards) > 1:
        places = {name: shard for shard, tensors in shards.items() for name in tensors}
        total = sum(tensor.nbytes for tensor in state.values())
        files = {
            **files,
            WEIGHTS_FILE + INDEX_SUFFIX: to_json({"metadata": {"total_size": total}, "weight_map": places}),
        }
    write_together(folder, files, shards)
    if len(shards) > 1:
        # transformers would prefer an older model's single file.
        (folder / WEIGHTS_FILE).unlink(missing_ok=True)


def task_config(config: Blip2Config, task: Task) -> Blip2Config:
    """The half of a model that a folder of transformers can hold."""
    if task == "match":
        return replace(config, language=None)
    return replace(config, qformer=replace(config.qformer, vocab_size=0))


def _require_vision(parts: ModelParts) -> VitConfig:
    vision = parts.network.config.vision
    if not isinstance(vision, VitConfig) or not vision.patch_bias:
        raise CheckpointError(
            f"transformers' BLIP-2 has EVA's plain ViT: the image encoder of {parts.name} cannot be written for it"
        )
    return vision


def _choose_task(parts: ModelParts, task: Task | None) -> Task:
    able: list[Task] = []
    if parts.network.config.own_language is not None:
        able.append("write")
    if parts.matching is not None:
        able.append("match")
    if task is None and len(able) == 2:
        raise OptionError(
            "transformers has a folder for each half of BLIP-2: "
            "give the task, write or match (--task of `openblip convert`)"
        )
    if not able or task not in (None, *able):
        raise OptionError(f"the model {parts.name} cannot {task or 'write or match'}: there is nothing to be written")
    return task or able[0]


def _word_ids(parts: ModelParts, words: Tokenizer) -> WordIds:
    stop = words.only_id(parts.defaults.stop_token)
    language = parts.network.config.own_language
    # T5's is what transformers puts behind an image without a prompt.
    start = stop if language is not None and language.encodes_prompts else words.start_id
    return WordIds(start, words.pad_id, stop)


def _config(parts: ModelParts, config: Blip2Config, task: Task, ids: WordIds | None) -> dict[str, Any]:
    vision = _require_vision(parts)
    qformer = config.qformer
    content: dict[str, Any] = {
        "architectures": [next(name for name, kind in ARCHITECTURES.items() if kind == task)],
        "model_type": MODEL_TYPE,
        "num_query_tokens": qformer.num_queries,
        # A model that matches takes the texts alone: its ids have nothing in an image's place.
        "image_token_index": None,
        "image_text_hidden_size": config.shared_width,
        "use_decoder_only_language_model": not (config.language is not None and config.language.encodes_prompts),
        "vision_config": {"model_type": "blip_2_vision_model", **_named(VISION, vision), **FIXED["vision_config"]},
        "qformer_config": {
            "model_type": "blip_2_qformer",
            **_named(QFORMER, qformer),
            # Where no text goes through it, its vocabulary has to be a number all the same.
            "vocab_size": qformer.vocab_size or QFORMER["vocab_size"][1],
            "attention_probs_dropout_prob": qformer.dropout,
            "encoder_hidden_size": vision.width,
            "use_qformer_text_input": task == "match",
            **FIXED["qformer_config"],
        },
        "text_config": {"model_type": "opt"},
        OWN_SETTINGS: {
            "vision_norm_eps": config.vision_norm_eps,
            "prompts": asdict(parts.prompts),
            "generation": parts.defaults.to_json(),
            "matching_tokens": None if task == "write" or parts.matching is None else parts.matching.max_tokens,
        },
    }
    if task == "write":
        content["text_config"] = _text_config(parts, config, ids)
    return content


def _text_config(parts: ModelParts, config: Blip2Config, ids: WordIds | None) -> dict[str, Any]:
    language = config.own_language
    if ids is None or language is None:
        raise CheckpointError(f"the model {parts.name} has a language model without words: it cannot be written")
    names = {"bos_token_id": ids.start, "eos_token_id": ids.stop, "pad_token_id": ids.pad}
    return {**TEXT_CONFIGS[language.kind](language), **names}


def _opt_config(decoder: OptConfig) -> dict[str, Any]:
    if decoder.token_width != decoder.width or (decoder.final_norm and not decoder.pre_norm):
        raise CheckpointError("transformers' BLIP-2 has no OPT of this kind: it cannot be written")
    return {
        "model_type": "opt",
        "architectures": ["OPTForCausalLM"],
        **_named(OPT, decoder),
        "word_embed_proj_dim": decoder.token_width,
        "_remove_final_layer_norm": decoder.pre_norm and not decoder.final_norm,
        **FIXED["text_config"],
    }


def _t5_config(t5: Any) -> dict[str, Any]:
    activation = "gelu" if t5.activation == "gelu_new" else t5.activation
    return {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        **_named(T5, t5),
        "num_decoder_layers": t5.decoder_depth,
        "feed_forward_proj": f"gated-{activation}" if t5.gated else activation,
        # By the name above alone, gated-gelu is gelu_new.
        "dense_act_fn": t5.activation,
        # Before transformers 5 the first said both.
        "tie_word_embeddings": t5.tied_head,
        "scale_decoder_outputs": t5.tied_head,
        "decoder_start_token_id": t5.start_id,
    }


TEXT_CONFIGS: dict[str, Callable[[Any], dict[str, Any]]] = {"opt": _opt_config, "t5": _t5_config}
"""What transformers' config says of each kind of language model."""


def image_files(transform: ImageTransform, processor: str = "Blip2Processor") -> dict[str, str]:
    """File name and text of transformers' config of an image processor."""
    settings = {
        "image_processor_type": "BlipImageProcessor",
        "processor_class": processor,
        "size": {"height": transform.image_size, "width": transform.image_size},
        "image_mean": transform.mean,
        "image_std": transform.std,
        "do_convert_rgb": True,
        "rescale_factor": RESCALE,
        **FIXED["image processor"],
    }
    return {IMAGE_FILE: to_json(settings)}


def _named(table: Fields, config: object) -> dict[str, Any]:
    return {theirs: getattr(config, ours) for ours, (theirs, _) in table.items()}


def _with_row(words: Tensor, index: int, pad: int) -> Tensor:
    """A word table that reaches to `index`; padding is never chosen, and so a copy of it behind it never is."""
    more = index + 1 - words.shape[0]
    return words if more <= 0 else torch.cat([words, words[pad].expand(more, -1)])


def _shards(state: Mapping[str, Tensor], limit: int) -> dict[str, dict[str, Tensor]]:
    """File name to tensors, filled in order; a tensor above the limit has a file of its own."""
    groups: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in state.items():
        if groups[-1] and size + tensor.nbytes > limit:
            groups.append({})
            size = 0
        groups[-1][name] = tensor
        size += tensor.nbytes
    if len(groups) == 1:
        return {WEIGHTS_FILE: groups[0]}
    return {f"model-{number:05}-of-{len(groups):05}.safetensors": group for number, group in enumerate(groups, start=1)}
