"""transformers' keywords: which of them mean something here, and what."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypedDict, cast

import torch
from torch import Tensor

from openblip.devices import choose_placement
from openblip.errors import OptionError, whole_number, yes_or_no
from openblip.generation.options import GenerationOptions, ResolvedOptions

NEW_TOKENS = 20
TOP_K = 50
"""transformers' defaults for what a script leaves open: length of a text, and words to draw from."""

NOT_KEPT = ("output_attentions", "output_hidden_states")
AUTOMATIC = ("auto", "balanced", "balanced_low_0", "sequential")
"""Ways to spread a model over the GPUs of a machine, which is one device here."""
QUANTIZED = {"load_in_8bit": 8, "load_in_4bit": 4}


class LoadOptions(TypedDict, total=False):
    """How `from_pretrained` reads a model.

    Attributes:
        dtype, torch_dtype: a type, its name, or "auto", the default: what the folder says it is in.
        device_map: one device for the whole model; or "auto", "balanced", "balanced_low_0" or "sequential": the GPU if
            there is one.
        revision, cache_dir, local_files_only, subfolder: where files of a repository come from.
        token, use_auth_token: of the hub; by default the one of this machine.
        low_cpu_mem_usage, use_safetensors: change nothing: weights are read one at a time, from what there is.
        attn_implementation, weights_only, trust_remote_code, offload_folder, max_memory: change nothing: attention is
            PyTorch's own, no code of a model is ever run, and a model lies on one device.
        load_in_8bit, load_in_4bit: large matrices in so many bits; the rest is then in float32 on a CPU, and in what a
            GPU computes fast. quantization_config: an object or dictionary that says one of them, as
            BitsAndBytesConfig does.
        config: of BLIP and CLIP, what counts instead of the folder's config.json: a config of transformers, a
            dictionary, or the path of a folder or file.
        ignore_mismatched_sizes, output_attentions, output_hidden_states, output_loading_info, force_download, variant:
            False and None alone; see `REFUSALS`.
    """

    dtype: torch.dtype | str | None
    torch_dtype: torch.dtype | str | None
    device_map: str | int | torch.device | dict[str, Any] | None
    revision: str | None
    cache_dir: str | Path | None
    local_files_only: bool
    low_cpu_mem_usage: bool | None
    use_safetensors: bool | None
    attn_implementation: str | None
    weights_only: bool
    trust_remote_code: bool
    offload_folder: str | Path | None
    max_memory: dict[Any, Any] | None
    load_in_8bit: bool
    load_in_4bit: bool
    quantization_config: object
    subfolder: str
    token: str | bool | None
    use_auth_token: str | bool | None
    offload_state_dict: bool
    resume_download: bool | None
    config: object
    ignore_mismatched_sizes: bool
    output_attentions: bool | None
    output_hidden_states: bool | None
    output_loading_info: bool
    force_download: bool
    variant: str | None


REFUSALS = {
    "ignore_mismatched_sizes": "every tensor has to fit: give a folder whose config.json says its weights' sizes",
    "output_attentions": "attention weights are not kept: leave it out",
    "output_hidden_states": "hidden states of single layers are not kept: leave it out, and see get_image_features",
    "output_loading_info": "the model comes alone, and what does not fit is an error: leave it out",
    "force_download": "whole files are never fetched twice: delete the repository with `hf cache rm` to get it anew",
    "variant": "use dtype='float16' or 'bfloat16', which casts the plain files' weights as they are read",
    "config": "the folder's config.json counts, except for BLIP and CLIP: change a copy of it",
    "state_dict": "write the tensors into the folder, or give them to load_state_dict of the model",
    "proxies": "set HTTPS_PROXY instead",
    "gguf_file": "GGUF holds no BLIP-2: give a folder of safetensors",
    "from_tf": "only weights of PyTorch are read: give a folder of safetensors",
    "from_flax": "only weights of PyTorch are read: give a folder of safetensors",
    "tp_plan": "a model lies on one device: give device_map",
    "key_mapping": "prefixes that wrappers leave are taken off by themselves; other names have to be transformers'",
}
"""Keywords of transformers' `from_pretrained` that mean nothing here, and what to do instead."""


class CallOptions(TypedDict, total=False):
    """What a call of a model that writes takes besides its inputs; None is as if left out.

    Attributes:
        return_dict: False for a tuple.
        num_items_in_batch: labels of all batches that one step of a Trainer accumulates: with OPT the loss is the
            sum over this batch divided by it. With T5 it changes nothing, as in transformers.
        use_cache: changes nothing: a call keeps none.
        output_attentions, output_hidden_states: False alone: they are not kept.
    """

    return_dict: bool | None
    num_items_in_batch: Tensor | int | None
    use_cache: bool | None
    output_attentions: bool | None
    output_hidden_states: bool | None


class SaveOptions(TypedDict, total=False):
    """Keywords of `save_pretrained` that scripts and transformers' own programs give.

    Attributes:
        save_function, save_peft_format, save_original_format, distributed_checkpoint, token: change nothing.
        push_to_hub, variant: False and None alone.
    """

    save_function: object
    save_peft_format: bool
    save_original_format: bool
    distributed_checkpoint: bool
    token: str | bool | None
    push_to_hub: bool
    variant: str | None


class Streamer(Protocol):
    """What is told the ids of one text as they come: transformers' TextStreamer and TextIteratorStreamer, say."""

    def put(self, value: Tensor) -> object:
        """First the prompt's ids [1, T], then each new one [1], the one that ends the text included."""

    def end(self) -> object:
        """There is no more."""


class GenerateOptions(TypedDict, total=False):
    """How `generate` writes; None is as if left out.

    Attributes:
        max_new_tokens, min_new_tokens: of the new text alone.
        max_length, min_length: of all ids that are returned: with OPT image tokens and prompt count, with T5 the
            start token. The longest text is 20 new tokens when none of them is given.
        num_beams, length_penalty, early_stopping: of the beam search.
        do_sample, temperature, top_k, top_p: of random draws, from 50 words when `top_k` is not given.
        num_return_sequences: texts for each image, one below the other.
        repetition_penalty, no_repeat_ngram_size: with OPT the prompt's tokens count as used.
        eos_token_id, pad_token_id: other tokens than config.json says.
        use_cache, labels, synced_gpus: change nothing: there is always a cache, and a Seq2SeqTrainer gives the others.
        generation_config: an object with any of the others, as GenerationConfig is one; they come after what is given.
        return_dict_in_generate: results as an output with `sequences`, and for beams asked with `output_scores` their
            `sequences_scores`.
        streamer: is told the ids of one text as they come; not of a beam search.
    """

    max_new_tokens: int | None
    min_new_tokens: int | None
    max_length: int | None
    min_length: int | None
    num_beams: int | None
    length_penalty: float | None
    early_stopping: bool | None
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    num_return_sequences: int | None
    repetition_penalty: float | None
    no_repeat_ngram_size: int | None
    eos_token_id: int | list[int] | None
    pad_token_id: int | None
    use_cache: bool | None
    labels: Tensor | None
    synced_gpus: bool | None
    generation_config: object
    return_dict_in_generate: bool | None
    output_scores: bool | None
    streamer: Streamer | None


NO_OPTIONS = ("transformers_version", "_from_model_config", "bos_token_id", "decoder_start_token_id")
"""What such objects say besides, and config.json, too."""


class GenerationSettings:
    """What a model generates with unless a call says otherwise: the names of `GenerateOptions`, which scripts set.

    Nothing comes from generation_config.json, which transformers' BLIP-2 does not look at, either. Nor does the list of
    end tokens count that a Trainer makes of its tokenizer's: texts end there with the language model's own.
    """

    _from_model_config = False
    _shown: dict[str, Any]

    def __init__(self) -> None:
        vars(self)["_shown"] = {}

    def __getattr__(self, name: str) -> Any:
        if name not in GenerateOptions.__annotations__ and name not in NO_OPTIONS:
            raise AttributeError(f"generate has no option {name!r} here")
        return vars(self).get("_shown", {}).get(name)

    def __setattr__(self, name: str, value: Any) -> None:
        shown = name in NO_OPTIONS or (name == "eos_token_id" and isinstance(value, list))
        (self._shown if shown else vars(self))[name] = value

    def _get_default_generation_params(self) -> dict[str, Any]:
        """What a Seq2SeqTrainer pads to where nothing is set."""
        return {"max_length": NEW_TOKENS}

    def update(self, defaults_only: bool = False, **values: Any) -> None:
        """Set options; `defaults_only` those that are shown where nothing is set, which `generate` does not follow."""
        if defaults_only:
            self._shown.update(values)
        else:
            for name, value in values.items():
                setattr(self, name, value)

    def to_diff_dict(self) -> dict[str, Any]:
        """What was set, as transformers' pipelines ask for it."""
        return self.set_options()

    def set_options(self) -> dict[str, Any]:
        """What was set."""
        return {name: value for name, value in vars(self).items() if name != "_shown"}


def merged_options(keywords: GenerateOptions, settings: GenerationSettings | None) -> GenerateOptions:
    """What a call gives, then what its `generation_config` says, then the model's own settings.

    Of two lengths `max_new_tokens` counts, wherever it is said, as there.

    Raises:
        OptionError: a keyword that `generate` has no use for.
    """
    refuse_unknown("generate", keywords, GenerateOptions)
    from_config = _settings_of(keywords.get("generation_config"))
    from_model = _settings_of(settings)
    merged = {**from_model, **from_config, **{name: value for name, value in keywords.items() if value is not None}}
    merged["generation_config"] = None
    return cast(GenerateOptions, merged)


def _settings_of(config: Any) -> dict[str, Any]:
    """What an object of options says. Raises OptionError for one that `generate` has no use for."""
    if config is None:
        return {}
    if isinstance(config, GenerationSettings):
        settings = config.set_options()
    else:
        if isinstance(config, type) or not hasattr(config, "__dict__"):
            raise OptionError(f"generation_config is {config!r}: give an object with options, as a GenerationConfig")
        differing = getattr(config, "to_diff_dict", None)
        settings = dict(vars(config) if differing is None else differing())
        # What a Seq2SeqTrainer fills in says nothing, either.
        usual: dict[str, Any] = getattr(config, "_get_default_generation_params", dict)()
        settings = {
            name: value for name, value in settings.items() if name not in NO_OPTIONS and usual.get(name) != value
        }
        settings = {name: value for name, value in settings.items() if value is not None}
    refuse_unknown("generate", settings, GenerateOptions)
    return settings


def refuse_unknown(call: str, keywords: Mapping[str, object], kind: type | None = None) -> None:
    """Raises OptionError for keywords that `call` has no use for: those outside of `kind`, a TypedDict."""
    allowed = [] if kind is None else list(kind.__annotations__)
    unknown = [name for name in keywords if name not in allowed]
    if unknown:
        hint = f"use {', '.join(allowed)}" if allowed else "leave it out"
        raise OptionError(f"{call} does not know {', '.join(unknown)} here: {hint}")


def check_tensor(name: str, value: object, dimensions: int) -> None:
    """Raises OptionError for what is no tensor of so many dimensions."""
    hint = "make the inputs with the model's processor, and return_tensors='pt'"
    if not isinstance(value, Tensor):
        raise OptionError(f"{name} is {str(value)[:80]} ({type(value).__name__}), not a tensor: {hint}")
    if value.ndim != dimensions:
        raise OptionError(f"{name} is a tensor of {value.ndim} dimensions, not {dimensions}: {hint}")


def refuse_load(keywords: Mapping[str, object]) -> None:
    """Raises OptionError for keywords of `from_pretrained` that mean nothing here, with what to do instead."""
    for name, value in keywords.items():
        if name in REFUSALS and value not in (None, False):
            raise OptionError(f"from_pretrained does not know {name} here: {REFUSALS[name]}")
    refuse_unknown("from_pretrained", {name: None for name in keywords if name not in REFUSALS}, LoadOptions)


def tuple_wanted(call: str, keywords: Mapping[str, object]) -> bool:
    """Whether `return_dict` is False. Raises OptionError for a keyword that a call has no use for."""
    # What is None says nothing: peft passes on keywords that it was not given.
    unknown = [
        name
        for name, value in keywords.items()
        if value is not None and (name not in CallOptions.__annotations__ or (name in NOT_KEPT and value))
    ]
    refuse_unknown(call, dict.fromkeys(unknown))
    return keywords.get("return_dict") is False


SIZES = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def byte_count(size: int | str) -> int:
    """Bytes from a number, or from "200MB". Raises OptionError for anything else."""
    if isinstance(size, int) and size > 0:
        return size
    number, unit = (size[:-2], size[-2:].upper()) if isinstance(size, str) else ("", "")
    if unit not in SIZES or not number.strip().isdecimal() or int(number) < 1:
        raise OptionError(f"max_shard_size is {size!r}: give bytes, or as '5GB'")
    return int(number) * SIZES[unit]


def wanted_bits(keywords: LoadOptions) -> int:
    """8 or 4 for quantized weights, 0 for none. Raises OptionError for a way to quantize that there is not."""
    config = keywords.get("quantization_config")
    for name, bits in QUANTIZED.items():
        in_config = config.get(name) if isinstance(config, Mapping) else getattr(config, name, False)
        if keywords.get(name) or in_config:
            return bits
    if config is not None:
        raise OptionError("quantization_config says neither of load_in_8bit and load_in_4bit: give one of them instead")
    return 0


def named_dtype(wanted: torch.dtype | str) -> torch.dtype:
    """A floating-point type. Raises OptionError for anything else."""
    found = getattr(torch, wanted.removeprefix("torch."), None) if isinstance(wanted, str) else wanted
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise OptionError(f"dtype is {wanted!r}: use torch.float32, torch.bfloat16, torch.float16 or 'auto'")
    return found


def chosen_device(device_map: str | int | torch.device | dict[str, Any] | None) -> torch.device:
    """The one device that a map means; None is the CPU. Raises OptionError for a model in pieces."""
    if isinstance(device_map, dict):
        places = list(dict.fromkeys(device_map.values()))
        if len(places) != 1:
            raise OptionError(f"device_map spreads the model over {len(places)} devices: give one, as 'cuda:0'")
        device_map = places[0]
    if device_map is None:
        device_map = "cpu"
    if isinstance(device_map, int):
        device_map = f"cuda:{device_map}"
    return choose_placement(None if device_map in AUTOMATIC else str(device_map), "float32").device


def engine_options(keywords: GenerateOptions, counted: int, room: int | None, stop_id: int) -> ResolvedOptions:
    """transformers' options in the engine's words.

    Args:
        counted: ids in front of the new text that `max_length` and `min_length` count.
        room: how many new tokens there are positions for; None for any number. Only the default keeps to it.

    Raises:
        OptionError: a value out of range, options that do not go together, or a length that the prompt fills.
    """

    def value(name: str, default: Any) -> Any:
        found = keywords.get(name)
        return default if found is None else found

    for name in ("max_length", "min_length", "max_new_tokens", "min_new_tokens"):
        if keywords.get(name) is not None:
            whole_number(name, keywords.get(name), 0)
    longest = value("max_new_tokens", None)
    if longest is None and keywords.get("max_length") is not None:
        longest = value("max_length", 0) - counted
        if longest < 1:
            raise OptionError(
                f"max_length is {keywords.get('max_length')} and the prompt has {counted} tokens, which count in it: "
                "give max_new_tokens instead, which counts new ones alone"
            )
    if longest is None:
        longest = NEW_TOKENS if room is None else min(NEW_TOKENS, room)
    shortest = value("min_new_tokens", max(0, value("min_length", 0) - counted))
    sample = yes_or_no("do_sample", value("do_sample", False))
    return GenerationOptions(
        max_new_tokens=longest,
        min_new_tokens=min(shortest, longest),
        num_beams=value("num_beams", 1),
        length_penalty=value("length_penalty", 1.0),
        early_stopping=_flag("early_stopping", value("early_stopping", False)),
        num_return_sequences=value("num_return_sequences", 1),
        do_sample=sample,
        # As there, these say nothing where nothing is drawn.
        temperature=value("temperature", 1.0) if sample else 1.0,
        top_k=value("top_k", TOP_K) if sample else 0,
        top_p=value("top_p", 1.0) if sample else 1.0,
        repetition_penalty=value("repetition_penalty", 1.0),
        no_repeat_ngram_size=value("no_repeat_ngram_size", 0),
        stop_ids=(stop_id,),
    ).resolved()


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"{name} is {value!r}: only True and False are known here")
    return value
