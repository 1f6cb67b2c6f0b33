"""OpenBLIP's own model folder: config.json, model.safetensors, one tokenizer file for each text side.

Weights are stored as float32, float16, or with every large matrix as int8 and one float32 scale a row. They are floats
again once loaded, unless the folder says `bits`: what was quantized to compute with is loaded so. An external language
model is not copied: config.json says where it lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from openblip.checkpoints.families import BLIP2, Family, class_count, find_family, language_of
from openblip.checkpoints.json_files import build, read_json, to_json
from openblip.checkpoints.model_parts import LanguageSource, ModelParts, check_classes, read_defaults
from openblip.checkpoints.openblip.file_names import CONFIG_FILE, DECODER_FILE, FORMAT, MATCHING_FILE, WEIGHTS_FILE
from openblip.checkpoints.read_options import DEFAULT_OPTIONS, ReadOptions
from openblip.checkpoints.tensors.assign import NOT_FINITE, Placer
from openblip.checkpoints.tensors.files import SafetensorsFile, check_fit
from openblip.checkpoints.tensors.mmap import MappedFile
from openblip.checkpoints.tensors.wrappers import NATIVE_ROOTS, Peeled
from openblip.checkpoints.tensors.writing import write_together
from openblip.errors import CheckpointError, OptionError
from openblip.images.transform import ImageTransform
from openblip.nn.blip2 import Blip2Network
from openblip.nn.hf_language_model import ExternalLanguageModel
from openblip.nn.quant.int4 import Int4Linear, dequantize_groups
from openblip.nn.quant.int4_wide import Int4WideLinear, dequantize_wide
from openblip.nn.quant.swap import BITS, quantized_layers
from openblip.text import PromptTemplates, Tokenizer, check_ids, check_prompts

if TYPE_CHECKING:
    from openblip.checkpoints.language_models import LoadedLanguage

FORMAT_VERSION = 2
READABLE_VERSIONS = (1, FORMAT_VERSION)
"""Version 1 differs in the names of its generation options."""
SCALE_SUFFIX, STEPS_SUFFIX = ":scale", ":steps"
ADAPTER_MARK = ".lora_"
"""In names of what peft has put into a network."""
MATRIX_ELEMENTS = 16_384
"""Smaller matrices are not worth quantizing."""
LARGEST_CODE = 128
"""In magnitude."""
STORAGES = ("float32", "float16", "int8")


def save_native(parts: ModelParts, folder: Path, storage: str = "float32") -> None:
    """Write a model folder; files are drafts until all are written, so a kill never leaves half of one.

    Args:
        storage: of what is not quantized in memory.

    Raises:
        OptionError: an unknown storage, or adapters in the network.
    """
    content = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "name": parts.name,
        "family": parts.family,
        **find_family(parts.family, folder).write(parts.network.config),
        "external": None if parts.external is None else asdict(parts.external),
        "image": asdict(parts.transform),
        "matching_tokens": None if parts.matching is None else parts.matching.max_tokens,
        **({"classes": list(parts.classes)} if parts.classes else {}),
        "prompts": asdict(parts.prompts),
        "generation": parts.defaults.to_json(),
    }
    layers = quantized_layers(parts.network)
    if layers:
        content["bits"] = 4 if any(isinstance(layer, Int4Linear | Int4WideLinear) for layer in layers.values()) else 8
    state = stored_state(parts.network)
    if any(ADAPTER_MARK in name for name in state):
        raise OptionError(
            f"the model {parts.name} has adapters, which a model folder has no place for: save them with save_adapter"
        )
    weights = pack(state, storage)
    texts = {}
    if parts.matching is not None:
        texts[MATCHING_FILE] = parts.matching.tokenizer.fast.to_str(pretty=True)
    if parts.tokenizer is not None and parts.external is None:
        texts[DECODER_FILE] = parts.tokenizer.fast.to_str(pretty=True)
    # Last: a folder that has it is whole.
    texts[CONFIG_FILE] = to_json(content)
    write_together(folder, texts, {WEIGHTS_FILE: weights})


def load_native(folder: Path, options: ReadOptions = DEFAULT_OPTIONS) -> ModelParts:
    """Read a model folder; the network is in evaluation mode.

    Raises:
        CheckpointError: a file is missing, broken or does not fit; the first misfits are named.
        OpenBlipError: the language model is external, and transformers is not installed or cannot have it.
    """
    path = folder / CONFIG_FILE
    content = _read_config(path)
    try:
        family = find_family(content.get("family", BLIP2.name), path)  # older folders do not say
        external = content.get("external", content.get("borrowed"))  # its first name
        source = None if external is None else build(LanguageSource, external, path)
        language = None if source is None else _load_external(source, options, folder)
        config = family.read_config(content, path)
        if language is not None:
            if language_of(config) is not None:
                raise ValueError("it has a language model of its own and an external one: a model has one")
            config = replace(config, language=language.model.config)
        transform = build(ImageTransform, content["image"], path)
        matching_tokens: object = content["matching_tokens"]
        if not isinstance(matching_tokens, int | None):
            raise TypeError(f"matching_tokens is {matching_tokens!r}, not a number")
        classes = check_classes(content.get("classes", []), class_count(config), path)
        prompts = build(PromptTemplates, content["prompts"], path)
        defaults = read_defaults(content["generation"], path)
        name = content["name"]
        if not isinstance(name, str):
            raise TypeError(f"name is {str(name)[:100]}, not a text")
        stored_bits = content.get("bits", 0)
        if stored_bits not in (0, *BITS):
            raise TypeError(f"bits is {stored_bits!r}, not one of {', '.join(map(str, (0, *BITS)))}")
    except KeyError as error:
        raise CheckpointError(f"{path} lacks {error}: get the model folder again") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    network = empty_network(config, path, None if language is None else language.model, family)
    if options.bits is None:
        options = replace(options, bits=stored_bits)
    if options.adapter is not None and language is not None:
        from openblip.checkpoints.lora.fit import merge_external

        options = replace(options, adapter=merge_external(options.adapter, language.model.model))
    placer = Placer(network, folder, options, lambda name: f"{folder / WEIGHTS_FILE}: {name}")
    network = _read_into(placer, folder)
    matching = tokenizer = None
    if isinstance(matching_tokens, int):
        words = Tokenizer.from_file(folder / MATCHING_FILE, family.text.start_token, family.text.pad_token)
        matching = family.text(words, matching_tokens)
    if language is not None:
        tokenizer, source = language.tokenizer, language.source
    elif language_of(config) is not None:
        # Of BLIP-2's: OPT's texts begin with </s>, T5's prompts end with it.
        tokenizer = Tokenizer.from_file(folder / DECODER_FILE, family.start_token, family.pad_token)
    parts = ModelParts(name, network, transform, matching, tokenizer, prompts, defaults, source, family.name, classes)
    _check_words(parts, folder)
    return parts


def _load_external(source: LanguageSource, options: ReadOptions, folder: Path) -> LoadedLanguage:
    # Few models have an external language model, and what reads it takes time to import.
    from openblip.checkpoints.language_models import load_language_model

    return load_language_model(source, options.dtype, options.device, beside=folder)


START = (Tensor.div_, Tensor.fill_, Tensor.zero_)


class _WithoutStart(TorchFunctionMode):
    """Modules do not draw the weights they start with, nor scale them.

    There is nothing to draw them into on the meta device, and trying imports PyTorch's compiler: more than a second,
    and tens of megabytes.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__module__", None) == nn.init.__name__:
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        if func in START:
            return args[0]
        return func(*args, **(kwargs or {}))


def empty_network(
    config: Any, path: Path, external: ExternalLanguageModel | None = None, family: Family = BLIP2
) -> Any:
    """The network without memory for its weights. Raises CheckpointError when the config at `path` describes none."""
    try:
        with torch.device("meta"), _WithoutStart():
            return family.network(config) if external is None else family.network(config, external)
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} describes no model: {error}") from error


def _check_words(parts: ModelParts, folder: Path) -> None:
    """Every id has its place in the tables, a text can end, and the prompts can be filled in."""
    config, matching = parts.network.config, parts.matching
    if matching is not None:
        check_ids(matching.tokenizer, config.text_vocab_size, folder / MATCHING_FILE)
    own = language_of(config)
    if parts.tokenizer is not None and own is not None and not own.is_external:
        check_ids(parts.tokenizer, own.vocab_size, folder / DECODER_FILE)
    if matching is not None and not 2 < matching.max_tokens <= config.text_positions:
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: matching_tokens is {matching.max_tokens}, "
            f"not between 3 and the {config.text_positions} positions of its text side"
        )
    if parts.tokenizer is not None:
        try:
            parts.stop_id  # noqa: B018
        except CheckpointError as error:
            raise CheckpointError(f"{folder / CONFIG_FILE}: stop_token {error}") from error
    check_prompts(parts.prompts, folder / CONFIG_FILE)


def stored_state(network: Blip2Network) -> dict[str, Tensor]:
    """A network's tensors under the names that they have in a folder."""
    state = network.state_dict()
    for name, layer in quantized_layers(network).items():
        state[f"{name}.weight{SCALE_SUFFIX}"] = state.pop(f"{name}.scale")
        if isinstance(layer, Int4WideLinear):
            state[f"{name}.weight{STEPS_SUFFIX}"] = state.pop(f"{name}.steps")
    return state


def pack(state: Mapping[str, Tensor], storage: str) -> dict[str, Tensor]:
    """Tensors as they are stored. Raises OptionError for an unknown storage."""
    if not isinstance(storage, str) or storage not in STORAGES:
        raise OptionError(f"storage {storage!r} is not one of {', '.join(STORAGES)}")
    packed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        if not tensor.is_floating_point() or name.endswith(SCALE_SUFFIX):
            packed[name] = tensor
        elif storage == "int8" and tensor.ndim == 2 and tensor.numel() >= MATRIX_ELEMENTS:
            scale = tensor.float().abs().amax(dim=1).clamp(min=1e-30) / 127
            packed[name] = (tensor / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
            packed[name + SCALE_SUFFIX] = scale
        else:
            half = tensor.half()
            # float16 ends at 65,504
            packed[name] = tensor.float() if storage == "float32" or half.isinf().any() else half
    return packed


def _read_into(placer: Placer, folder: Path) -> Blip2Network:
    stored = SafetensorsFile(folder / WEIGHTS_FILE)
    file = Peeled(stored, NATIVE_ROOTS)
    sides = (SCALE_SUFFIX, STEPS_SUFFIX)
    check_fit(placer.wanted, {name: _shape(name, file) for name in file.shapes if not name.endswith(sides)}, folder)
    mapped = MappedFile(file.path, stored.entries) if placer.device.type == "cpu" and placer.options.bits else None
    for name in placer.to_put:
        codes, layer = file.read(name), placer.layer(name)
        if name + SCALE_SUFFIX not in file.shapes:
            placer.put(name, codes)
            continue
        scale = file.read(name + SCALE_SUFFIX)
        if not scale.float().mul(LARGEST_CODE).isfinite().all():
            raise CheckpointError(f"{file.path}: {name}{SCALE_SUFFIX} {NOT_FINITE}")
        steps = [file.read(name + STEPS_SUFFIX)] if name + STEPS_SUFFIX in file.shapes else []
        try:
            fits = layer is not None and layer.weight.dtype == codes.dtype
            if layer is not None and fits and bool(steps) == hasattr(layer, "steps") and not placer.changes(name):
                kept = None if mapped is None else mapped.read(file.names[name])
                own = [tensor.to(placer.device, copy=True) for tensor in (scale, *steps)]
                layer.put(codes.to(placer.device, copy=True) if kept is None else kept, *own)
            elif steps:
                placer.put(name, dequantize_wide(codes, scale, *steps))
            elif codes.dtype == torch.uint8:
                placer.put(name, dequantize_groups(codes, scale))
            else:
                placer.put(name, codes.to(torch.float32, copy=True).mul_(scale.float()[:, None]), is_new=True)
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{folder}: {name} does not fit its scales ({error}): get the folder again"
            ) from error
    return placer.finish()


def _shape(name: str, file: Peeled) -> tuple[int, ...]:
    """Of a stored tensor once its codes are unpacked."""
    shape = file.shapes[name]
    if name + STEPS_SUFFIX in file.shapes and len(shape) == 2:
        return shape[1], 2 * shape[0]
    return (*shape[:-1], 2 * shape[-1]) if len(file.shapes.get(name + SCALE_SUFFIX, ())) == 3 else shape


def _read_config(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not the config of an OpenBLIP model folder")
    if content.get("version") not in READABLE_VERSIONS:
        raise CheckpointError(
            f"{path} has format version {content.get('version')}, "
            f"this OpenBLIP reads {' and '.join(map(str, READABLE_VERSIONS))}: upgrade openblip"
        )
    return content
