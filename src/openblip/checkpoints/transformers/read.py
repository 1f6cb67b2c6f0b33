"""A BLIP-2 folder that transformers wrote -> a model, one tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from openblip.checkpoints.model_parts import GenerationDefaults, ModelParts
from openblip.checkpoints.names.engine import Rows
from openblip.checkpoints.names.languages import LANGUAGES
from openblip.checkpoints.names.transformers import HEAD, fresh, is_theirs, sources, tied
from openblip.checkpoints.openblip.folder import empty_network
from openblip.checkpoints.read_options import DEFAULT_OPTIONS, ReadOptions
from openblip.checkpoints.tensors.assign import VISION, Placer
from openblip.checkpoints.tensors.files import LET_GO_BYTES, WeightFolder, refuse_misfits
from openblip.checkpoints.tensors.wrappers import BLIP2_ROOTS
from openblip.checkpoints.transformers.config import CONFIG_FILE, FolderConfig, read_config
from openblip.checkpoints.transformers.tokenizers import (
    has_vocabulary,
    no_vocabulary,
    read_matching,
    read_words,
    stop_text,
)
from openblip.errors import CheckpointError
from openblip.nn.blip2 import Blip2Config, Blip2Network
from openblip.nn.vit import VitConfig
from openblip.text import MatchingText, Tokenizer

STRAYS = ("position_ids", *(name for files in LANGUAGES.values() for name in files.unused))
"""Ends of names that some versions wrote and nothing reads: buffers that only count, T5's first files."""


def load_transformers(folder: Path, options: ReadOptions = DEFAULT_OPTIONS) -> ModelParts:
    """Read a folder such as `Salesforce/blip2-opt-2.7b` or `Salesforce/blip2-itm-vit-g`, in evaluation mode.

    Each tensor is cast or quantized and put on the device as it is read, so that memory holds the model once.
    Such folders lack what stage 1 alone needs: a model that matches starts with a fresh head for ITG and LAVIS'
    first temperature. For what their configs mean see `transformers_config.read_config`.

    Raises:
        CheckpointError: a file is missing, broken or does not fit; the first misfits are named, each with the
            file that should supply it.
    """
    config = read_config(folder)
    vocabulary: Path | None = options.tokenizer or folder
    if options.tokenizer is None and not has_vocabulary(folder):
        if options.needs_tokenizer:
            raise CheckpointError(no_vocabulary(folder, "match" if config.words is None else "write"))
        vocabulary = None
    weights = WeightFolder(folder, BLIP2_ROOTS)
    second_names = tied(config.network)
    aliases = _stored_names(second_names, weights, folder)
    if config.head_is_words and HEAD not in weights.shapes and config.network.language is not None:
        table = LANGUAGES[config.network.language.kind].words
        aliases[HEAD] = aliases.get(table, table)
    # What biases an encoder has is seen by their numbers.
    sizes = config.network
    if not options.leaves_out(VISION):
        sizes = _with_key_biases(sizes, weights)
    network = empty_network(sizes, folder / CONFIG_FILE)

    def describe(name: str) -> str:
        theirs = [aliases.get(row.name, row.name) for row in sources(name)]
        broken = next((one for one in theirs if not weights.read(one).isfinite().all()), theirs[0])
        return f"{folder / weights.file_of(broken)}: {broken}"

    placer = Placer(network, folder, options, describe)
    _check_fit(placer.wanted, weights, aliases, second_names, folder)
    read = 0
    for name, shape in placer.to_put.items():
        pieces = _gather(sources(name), weights, aliases) if is_theirs(name) else [fresh(name, shape)]
        placer.put(name, *pieces)
        read += sum(piece.nbytes for piece in pieces)
        if read > LET_GO_BYTES:
            read = 0
            weights.let_go()
    return _parts(folder, config, placer.finish(), vocabulary)


def _parts(folder: Path, config: FolderConfig, network: Blip2Network, vocabulary: Path | None) -> ModelParts:
    matching: MatchingText | None = None
    tokenizer: Tokenizer | None = None
    defaults: GenerationDefaults = config.defaults
    if config.matching_tokens is not None and vocabulary is not None:
        matching = read_matching(vocabulary, config.matching_tokens, config.network.qformer.vocab_size)
    if config.words is not None and config.network.language is not None and vocabulary is not None:
        words = config.words
        tokenizer = read_words(vocabulary, words.start, words.pad, config.network.language.vocab_size)
        defaults = replace(defaults, stop_token=stop_text(tokenizer, words.stop, vocabulary))
    return ModelParts(folder.resolve().name, network, config.transform, matching, tokenizer, config.prompts, defaults)


def _stored_names(second_names: Mapping[str, str], weights: WeightFolder, folder: Path) -> dict[str, str]:
    """Their names that a file has under the name of a tensor tied to it alone.

    Raises:
        CheckpointError: several are there and differ, which the networks here cannot express.
    """
    aliases: dict[str, str] = {}
    for second, first in second_names.items():
        if second not in weights.shapes:
            continue
        stored = first if first in weights.shapes else aliases.setdefault(first, second)
        if stored != second and not torch.equal(weights.read(stored), weights.read(second)):
            hint = ""
            if second == HEAD and first in {files.words for files in LANGUAGES.values() if files.own_head}:
                hint = f": if the head is its own, {CONFIG_FILE} has to say tie_word_embeddings false in text_config"
            raise CheckpointError(f"{folder}: {second} and {stored} differ, only tied tables can be read{hint}")
    return aliases


def _with_key_biases(config: Blip2Config, weights: WeightFolder) -> Blip2Config:
    """EVA's attention has no biases on its keys and transformers stores zeros; training there makes them others."""
    for name in weights.shapes:
        if name.startswith("vision_model.") and name.endswith(".qkv.bias") and isinstance(config.vision, VitConfig):
            biases = weights.read(name)
            if biases.ndim == 1 and len(biases) % 3 == 0 and biases.view(3, -1)[1].any():
                return replace(config, vision=replace(config.vision, attention_bias="qkv"))
    return config


def _check_fit(
    wanted: dict[str, tuple[int, ...]],
    weights: WeightFolder,
    aliases: Mapping[str, str],
    second_names: Mapping[str, str],
    folder: Path,
) -> None:
    """Compare names and shapes before a tensor is read."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in wanted.items():
        rows = sources(name) if is_theirs(name) else ()
        for row in rows:
            shapes[aliases.get(row.name, row.name)] = (shape[0] // len(rows) * row.count, *shape[1:])
    found = weights.shapes
    misfits = [f"{name} is missing from {weights.file_of(name)}" for name in shapes if name not in found]
    misfits += [
        f"{name} in {weights.file_of(name)} is unknown"
        for name in found
        if name not in shapes and name not in second_names and not name.endswith(STRAYS)
    ]
    misfits += [
        f"{name} in {weights.file_of(name)} is {list(found[name])}, not {list(shape)}"
        for name, shape in shapes.items()
        if name in found and found[name] != shape
    ]
    refuse_misfits(folder, misfits)


def _gather(rows: tuple[Rows, ...], weights: WeightFolder, aliases: Mapping[str, str]) -> list[Tensor]:
    """What one of our tensors is stacked from."""
    return [row.of(weights.read(aliases.get(row.name, row.name))) for row in rows]
