"""A name or a folder to what `from_pretrained` makes of it, whether transformers or OpenBLIP wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from openblip.checkpoints.hub.download import download, find_files
from openblip.checkpoints.hub.progress import download_progress
from openblip.checkpoints.hub.repositories import using_token
from openblip.checkpoints.json_files import read_json
from openblip.checkpoints.loading import load_parts
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.openblip.file_names import CONFIG_FILE
from openblip.checkpoints.openblip.folder import load_native
from openblip.checkpoints.read_options import ReadOptions
from openblip.checkpoints.registry import find_model, folder_kind
from openblip.checkpoints.tensors.files import WeightFolder
from openblip.checkpoints.transformers.config import image_token_index, read_config
from openblip.checkpoints.transformers.read import load_transformers
from openblip.checkpoints.transformers.tokenizers import (
    IMAGE_TOKEN,
)
from openblip.devices import choose_placement, tell_substitution
from openblip.errors import CheckpointError, DownloadError, OptionError, given_path
from openblip.integrations.transformers.config import config_content
from openblip.integrations.transformers.options import (
    LoadOptions,
    chosen_device,
    named_dtype,
    refuse_load,
    wanted_bits,
)
from openblip.nn.quant.swap import prepare_layers

KEPT_IN_FLOAT32 = ("qformer.",)
"""What transformers does not cast to float16: the Q-Former overflows there."""


def find_folder(
    name: str | Path,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    subfolder: str = "",
    token: str | bool | None = None,
) -> Path:
    """Where a model lies on this machine; what is missing of a repository is downloaded first.

    Args:
        token: of the hub; True and None for this machine's own, False for none.

    Raises:
        CheckpointError: neither a folder nor a model that comes as one.
        DownloadError: its files cannot be had, or may not.
        OptionError: a subfolder outside of the folder.
    """
    inside = given_path("subfolder", subfolder) if subfolder not in (None, "") else Path()
    if inside.is_absolute() or ".." in inside.parts:
        raise OptionError(f"subfolder is {subfolder!r}: give a path below the folder or repository")
    path = given_path("the model", name)
    if path.is_dir():
        return _existing(path / inside)
    entry = find_model(str(name))
    if entry is not None and entry.folder is not None:
        return entry.folder
    if entry is not None and entry.origin == "lavis":
        raise CheckpointError(f"{name} comes in files of LAVIS': load it with openblip.integrations.lavis")
    cache = None if cache_dir is None else given_path("cache_dir", cache_dir)
    if local_files_only:
        found = find_files(str(name), revision=revision, cache_dir=cache)
        if found is None:
            raise DownloadError(f"{name} is not on this machine, and local_files_only forbids to fetch it")
        return _existing(found[0].path / inside)
    include = (f"{inside.as_posix()}/*",) if inside.parts else ()
    with download_progress() as progress, using_token(token):
        files = download(str(name), include=include, revision=revision, cache_dir=cache, progress=progress)
    return _existing(files[0].path / inside)


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder: check subfolder")
    return folder


@dataclass(frozen=True)
class WordIds:
    """Ids of the language model's words that mean something of their own.

    Attributes:
        image: holds an image's place; start: what is read when there is no prompt, behind the image.
    """

    image: int
    start: int
    pad: int
    stop: int


@dataclass(frozen=True)
class LoadedModel:
    """A model and what its folder says besides.

    Attributes:
        words: None for a model that matches.
        config: config.json of transformers; of a folder of ours the same names, as far as scripts use them.
    """

    parts: ModelParts
    words: WordIds | None
    config: dict[str, Any]


def read_model(folder: Path, dtype: torch.dtype | str, device: torch.device, bits: int = 0) -> LoadedModel:
    """Read a model's weights; "auto" is the type that the folder says it is in.

    Args:
        bits: of large matrices, 8 or 4; the rest is then in what the device computes fast, whatever `dtype` says.

    Raises:
        CheckpointError: a file is missing, broken or does not fit.
        OptionError: no floating-point type.
    """
    if folder_kind(folder) == "transformers":
        content = read_json(folder / CONFIG_FILE)
        kind = named_dtype(stored_dtype(folder, content) if dtype == "auto" else dtype)
        if bits:
            kind = choose_placement(str(device)).dtype
        kept = KEPT_IN_FLOAT32 if kind == torch.float16 else ()
        parts = load_transformers(folder, ReadOptions(kind, device, bits, in_float32=kept, needs_tokenizer=False))
    else:
        content = {"model_type": "blip-2"}
        parts = load_native(folder, ReadOptions(bits=bits or None))
        kind = torch.float32 if dtype == "auto" or bits else named_dtype(dtype)
        parts.network.to(device=device, dtype=kind)
        if kind == torch.float16:
            parts.network.qformer.float()
    prepare_layers(parts.network)
    tell_substitution(device, kind)
    words = _word_ids(parts, content, folder)
    return LoadedModel(parts, words, _described(parts, words, content))


@dataclass(frozen=True)
class OpenedFolder:
    """What a model is to be read from, and how.

    Attributes:
        content: its config.json, and whether transformers wrote it.
    """

    folder: Path
    content: dict[str, Any]
    is_theirs: bool
    options: ReadOptions


def open_folder(name: str | Path, options: LoadOptions) -> OpenedFolder:
    """By what `from_pretrained` is called with; files of a repository that are missing are downloaded.

    Raises:
        CheckpointError: no such model, or its config.json is broken.
        DownloadError: its files cannot be had.
        OptionError: a keyword of transformers that means nothing here, or a config of another type of model.
    """
    given = options.get("config")
    refuse_load({name: value for name, value in options.items() if name != "config"})
    device = chosen_device(options.get("device_map"))
    folder = find_folder(
        name,
        options.get("revision"),
        options.get("cache_dir"),
        options.get("local_files_only", False),
        options.get("subfolder", ""),
        options.get("token") or options.get("use_auth_token"),
    )
    content = read_json(folder / CONFIG_FILE)
    wanted, bits = options.get("dtype") or options.get("torch_dtype") or "auto", wanted_bits(options)
    theirs = folder_kind(folder) == "transformers"
    told: dict[str, Any] | None = None
    if given is not None:
        if not theirs:
            raise OptionError(f"{name} is no folder of transformers, and has its own sizes: leave config out")
        told = config_content(given)
        kinds = told.get("model_type"), content.get("model_type")
        if kinds[0] not in (None, kinds[1]):
            raise OptionError(
                f"config is of a model of type {kinds[0]!r}, {name} of {kinds[1]!r}: give one of its type"
            )
        # A config that was made anew does not say of which class it is.
        content = {**told, "architectures": told.get("architectures") or content.get("architectures")}
        told = content
    dtype = named_dtype((stored_dtype(folder, content) if theirs else "float32") if wanted == "auto" else wanted)
    if bits:
        dtype = choose_placement(str(device)).dtype
    tell_substitution(device, dtype)
    return OpenedFolder(
        folder, content, theirs, ReadOptions(dtype, device, bits=bits, needs_tokenizer=False, config=told)
    )


def read_family(
    name: str | Path, options: LoadOptions, family: str, title: str
) -> tuple[ModelParts[Any, Any], dict[str, Any] | None]:
    """A model of a family, and config.json of a folder of transformers.

    Raises:
        CheckpointError: no such model, one of another family, or its files are broken.
        DownloadError, OptionError: see `open_folder`.
    """
    opened = open_folder(name, options)
    parts: ModelParts[Any, Any] = load_parts(opened.folder, opened.options)
    if parts.family != family:
        raise CheckpointError(f"{name} is of the family {parts.family}, no {title}: load it by its own class")
    prepare_layers(parts.network)
    return parts, opened.content if opened.is_theirs else None


def stored_dtype(folder: Path, content: Mapping[str, Any]) -> torch.dtype | str:
    named: str | None = content.get("dtype") or content.get("torch_dtype")
    if named is not None:
        return named
    weights = WeightFolder(folder)
    first = weights.read(next(iter(weights.shapes)))
    return first.dtype if first.is_floating_point() else torch.float32


def _word_ids(parts: ModelParts, content: Mapping[str, Any], folder: Path) -> WordIds | None:
    if parts.network.config.language is None:
        return None
    if parts.tokenizer is None:
        # Without a vocabulary, as in every checkpoint of a Trainer: config.json names the ids.
        named = read_config(folder).words
        if named is None or named.image is None:
            raise CheckpointError(
                f"{folder} has no vocabulary, and config.json no image_token_index, which is an image's place among "
                "the words: put the model's tokenizer files into the folder"
            )
        return WordIds(image=named.image, start=named.start, pad=named.pad, stop=named.stop)
    words, text = parts.tokenizer, content.get("text_config") or {}
    image = image_token_index(content)
    if image is None:
        # A folder from before transformers had such a token: the next one, as its processor adds it.
        image = words.fast.token_to_id(IMAGE_TOKEN)
    if image is None:
        image = words.vocab_size
    start = text.get("bos_token_id")
    return WordIds(
        image=image,
        start=words.start_id if start is None else start,
        pad=words.pad_id,
        stop=parts.stop_id,
    )


def _described(parts: ModelParts, words: WordIds | None, content: Mapping[str, Any]) -> dict[str, Any]:
    sizes = parts.network.config
    encodes = sizes.language is not None and sizes.language.encodes_prompts
    described: dict[str, Any] = {
        **content,
        "num_query_tokens": sizes.qformer.num_queries,
        "image_text_hidden_size": sizes.shared_width,
        "use_decoder_only_language_model": not encodes,
        "is_encoder_decoder": encodes,
        "vision_config": {
            **content.get("vision_config", {}),
            "hidden_size": sizes.qformer.image_width,
            "image_size": parts.transform.image_size,
        },
        "qformer_config": {**content.get("qformer_config", {}), "hidden_size": sizes.qformer.width},
    }
    index = image_token_index(content) if words is None else words.image
    described |= {"image_token_index": index, "image_token_id": index}
    language = sizes.own_language
    if words is not None and language is not None:
        described["text_config"] = {
            **content.get("text_config", {}),
            "model_type": language.kind,
            "vocab_size": language.vocab_size,
            "hidden_size": language.width,
            "bos_token_id": words.start,
            "eos_token_id": words.stop,
            "pad_token_id": words.pad,
        }
        described["pad_token_id"] = words.pad
    return described
