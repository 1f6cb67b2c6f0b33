"""A BLIP in one file of LAVIS or of the original BLIP repository -> a model, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from openblip.checkpoints.blip_models import class_names
from openblip.checkpoints.families import find_family
from openblip.checkpoints.hub.sources import LocalFile, WebFile
from openblip.checkpoints.model_entry import ModelEntry
from openblip.checkpoints.model_parts import GenerationDefaults, ModelParts, check_classes
from openblip.checkpoints.names.blip import CLASS_BIAS, LAVIS_PARTS, ROOTS, layout_of, own_names, second_names
from openblip.checkpoints.names.engine import Part
from openblip.checkpoints.openblip.folder import empty_network
from openblip.checkpoints.read_options import ReadOptions
from openblip.checkpoints.tensors.files import open_weights
from openblip.checkpoints.tensors.fill import NamedTensors, fill
from openblip.checkpoints.tensors.wrappers import Peeled
from openblip.checkpoints.tensors.writing import save_pickled
from openblip.checkpoints.transformers.tokenizers import read_bert
from openblip.errors import CheckpointError
from openblip.images.transform import ImageTransform
from openblip.nn.bert import BertConfig
from openblip.nn.blip import BlipConfig, BlipNetwork
from openblip.nn.quant.swap import quantized_layers
from openblip.text import MatchingText, PromptTemplates, Tokenizer

LONGEST_TEXT, LONGEST_STATEMENT = 35, 40
"""LAVIS cuts texts that are matched, and those that are judged with one image, here; others not at all."""
FAMILY = "blip"
POSITIONS = "visual_encoder.pos_embed"
TEMPERATURE = 0.07
"""Of a file without one: LAVIS' first."""


def load_blip(model: ModelEntry, found: Sequence[LocalFile], options: ReadOptions) -> ModelParts[BlipNetwork]:
    """An official model from its file, or from a checkpoint that was trained from it.

    Momentum copies, queues and heads of other tasks, which such files may hold, are left out.

    Raises:
        CheckpointError: the file is missing, broken or does not fit; it is named, with the tensors.
    """
    config: BlipConfig = model.config()
    if options.checkpoint is not None:
        path = options.checkpoint.expanduser()
    else:
        path = next(file.path for file in found if isinstance(file.source, WebFile))
    weights = Peeled(open_weights(path), ROOTS)
    config = _with_size_of(weights, _with_classes_of(weights, config))
    network = read_blip(config, weights, LAVIS_PARTS, path, options)
    words = next(file.path for file in found if not isinstance(file.source, WebFile))
    return assemble(
        model.name, network, ImageTransform(config.vision.image_size), words, model.templates(), model.defaults()
    )


def read_file(config: BlipConfig, path: Path, options: ReadOptions) -> BlipNetwork:
    """The network of a file alone, for images of the size that the file has positions for.

    Raises:
        CheckpointError: the file is missing, broken or does not fit.
    """
    weights = Peeled(open_weights(path), ROOTS)
    return read_blip(_with_size_of(weights, config), weights, LAVIS_PARTS, path, options)


def _with_size_of(weights: NamedTensors, config: BlipConfig) -> BlipConfig:
    """The config with images of the size that a file has positions for: pre-training has smaller ones."""
    count = weights.shapes.get(POSITIONS, (0, 0))[1] - 1
    side = math.isqrt(max(0, count))
    if side * side != count or not side:
        return config  # what does not fit is named as the file is read
    return replace(config, vision=replace(config.vision, image_size=side * config.vision.patch_size))


def _with_classes_of(weights: NamedTensors, config: BlipConfig) -> BlipConfig:
    """The config with as many classes as a file's head has, if it has one: they are those of its data set."""
    if config.num_classes is None or CLASS_BIAS not in weights.shapes:
        return config
    return replace(config, num_classes=weights.shapes[CLASS_BIAS][0])


def read_blip(
    config: BlipConfig,
    weights: NamedTensors,
    parts: tuple[Part, ...],
    path: Path,
    options: ReadOptions,
    temperature: float = TEMPERATURE,
) -> BlipNetwork:
    """The network alone, in evaluation mode; tensors stay on disk until each is cast or quantized into its place.

    Args:
        path: the file or folder that errors name.
        temperature: of ITC, where the weights have none.

    Raises:
        CheckpointError: a name that belongs to no BLIP, tensors that are missing or do not fit, or tables that differ
            where BLIP ties them.
    """
    layout = layout_of(config, parts)
    try:
        plan = layout.plan(own_names(weights.shapes, layout, parts))
        plan.check_repeats(weights.read)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    fresh: dict[str, Tensor] = {}
    if config.shared_width is not None:
        fresh["temperature"] = weights.read("temp") if "temp" in weights.shapes else torch.tensor(temperature)
    network: BlipNetwork = fill(
        empty_network(config, path, family=find_family(FAMILY, path)), weights, plan, path, options, fresh
    )
    return network


def assemble(
    name: str,
    network: BlipNetwork,
    transform: ImageTransform,
    words: Path | None,
    prompts: PromptTemplates,
    defaults: GenerationDefaults,
    longest: int | None = None,
    classes: tuple[str, ...] = (),
) -> ModelParts[BlipNetwork]:
    """A network with BERT's vocabulary, to which [DEC] and [ENC] are added.

    Args:
        words: a folder of transformers with the vocabulary; None for a model without one.
        longest: tokens at which texts that are matched or judged are cut.
        classes: names of what its head chooses among; by default those of the data set that LAVIS has for as many.

    Raises:
        CheckpointError: the vocabulary is missing, broken, or does not fit.
    """
    config = network.config
    if words is None:
        return ModelParts(name, network, transform, None, None, prompts, defaults, family=FAMILY)
    fast = read_bert(words, {"[DEC]": config.decode_id, "[ENC]": config.encode_id})
    matching: MatchingText | None = None
    tokenizer: Tokenizer | None = None
    if config.encoder is not None and (config.shared_width is not None or config.num_classes is not None):
        longest = longest or _longest_text(config, config.encoder)
        matching = MatchingText(Tokenizer(fast, "[CLS]", "[PAD]"), min(longest, config.encoder.max_positions))
    if config.decoder is not None:
        tokenizer = Tokenizer(fast, "[DEC]", "[PAD]")
        tokenizer.only_id(defaults.stop_token)
    named = classes or class_names(config.num_classes or 0)
    check_classes(named, config.num_classes, name)
    return ModelParts(name, network, transform, matching, tokenizer, prompts, defaults, family=FAMILY, classes=named)


def _longest_text(config: BlipConfig, encoder: BertConfig) -> int:
    """Where LAVIS cuts texts, if it does."""
    if encoder.images == 1 and config.num_classes is not None:
        return LONGEST_STATEMENT
    return LONGEST_TEXT if config.itm else encoder.max_positions


def save_blip(parts: ModelParts[BlipNetwork], folder: Path) -> None:
    """Write checkpoint.pth, as LAVIS loads it.

    Raises:
        CheckpointError: weights are quantized.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_pickled({"model": to_lavis(parts.network)}, folder / "checkpoint.pth")


def to_lavis(network: BlipNetwork) -> dict[str, Tensor]:
    """The weights under LAVIS' names, tied ones under both and the buffers that count.

    Raises:
        CheckpointError: weights are quantized.
    """
    if quantized_layers(network):
        raise CheckpointError("LAVIS cannot read quantized weights: load the model in floating point")
    state = network.state_dict()
    config = network.config
    temperature = state.pop("temperature", None)
    # LAVIS' class for matching has no place for it.
    keeps = temperature is not None and (config.shares_text or not config.itm or config.num_classes is not None)
    counters: Mapping[str, int | None] = {
        "text_encoder": None if config.encoder is None else config.encoder.max_positions,
        "text_decoder.bert": None if config.decoder is None else config.decoder.max_positions,
    }
    numbers = {
        f"{part}.embeddings.position_ids": torch.arange(count)[None]
        for part, count in counters.items()
        if count is not None
    }
    layout = layout_of(config, LAVIS_PARTS)
    found = layout.to_theirs(state)
    found |= layout.repeated(found)
    return found | second_names(found, LAVIS_PARTS) | numbers | ({"temp": temperature} if keeps else {})
