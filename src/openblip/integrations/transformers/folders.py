"""A name or a folder to what `from_pretrained` makes of it, whether transformers or OpenBLIP wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from openblip.checkpoints.hub.download import download, find_files
from openblip.checkpoints.hub.progress import download_progress
from openblip.checkpoints.hub.repositories import using_token
from openblip.checkpoints.json_files import build, read_json, read_json_if_there
from openblip.checkpoints.loading import load_parts
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.openblip.file_names import CONFIG_FILE, DECODER_FILE, MATCHING_FILE
from openblip.checkpoints.openblip.folder import load_native
from openblip.checkpoints.read_options import ReadOptions
from openblip.checkpoints.registry import find_model, folder_kind, transformers_family
from openblip.checkpoints.tensors.files import WeightFolder
from openblip.checkpoints.transformers.config import PROCESSOR_FILE, image_token_index, read_config, read_transform
from openblip.checkpoints.transformers.read import load_transformers
from openblip.checkpoints.transformers.tokenizers import (
    IMAGE_TOKEN,
    SETTINGS_FILE,
    SPECIALS_FILE,
    TOKENIZER_FILE,
    bert_words,
    read_vocabulary,
)
from openblip.devices import choose_placement, tell_substitution
from openblip.errors import CheckpointError, DownloadError, OptionError, given_path
from openblip.images.transform import ImageTransform
from openblip.integrations.transformers.options import (
    LoadOptions,
    chosen_device,
    named_dtype,
    refuse_load,
    wanted_bits,
)
from openblip.integrations.transformers.tokenizer import TOKENS, Blip2Tokenizer, WordTokenizer
from openblip.nn.quant.swap import prepare_layers

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

WORD_TOKENS = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
T5_TOKENS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
MATCHING_TOKENS = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"}

USUAL_SIDE, BLIP_SIDE = 224, 384
"""Of images, in pixels, where a folder does not say: of BLIP-2's and of BLIP's."""
BERT_POSITIONS = 512

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


def read_family(
    name: str | Path, options: LoadOptions, family: str, title: str
) -> tuple[ModelParts[Any, Any], dict[str, Any] | None]:
    """A model of a family, by what `from_pretrained` is called with, and config.json of a folder of transformers.

    Raises:
        CheckpointError: no such model, one of another family, or its files are broken.
        DownloadError: its files cannot be had.
        OptionError: a keyword of transformers that means nothing here.
    """
    refuse_load(options)
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
    dtype = named_dtype((stored_dtype(folder, content) if theirs else "float32") if wanted == "auto" else wanted)
    if bits:
        dtype = choose_placement(str(device)).dtype
    parts: ModelParts[Any, Any] = load_parts(folder, ReadOptions(dtype, device, bits=bits, needs_tokenizer=False))
    if parts.family != family:
        raise CheckpointError(f"{name} is of the family {parts.family}, no {title}: load it by its own class")
    prepare_layers(parts.network)
    tell_substitution(device, dtype)
    return parts, content if theirs else None


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


@dataclass(frozen=True)
class ProcessorParts:
    """What turns images and texts into a model's inputs.

    Attributes:
        queries: image tokens in front of a prompt; None for none.
    """

    transform: ImageTransform
    tokenizer: Blip2Tokenizer
    queries: int | None


def read_processor(folder: Path) -> ProcessorParts:
    """Read a folder's image transform and vocabulary, without its weights.

    Raises:
        CheckpointError: a file is missing or broken, or the image token's id differs from config.json's.
    """
    if not (folder / CONFIG_FILE).exists() and (folder / TOKENIZER_FILE).is_file():
        return _read_alone(folder)
    if folder_kind(folder) == "openblip":
        return _read_own(folder)
    config, content = read_config(folder), read_json(folder / CONFIG_FILE)
    writes = config.words is not None
    usual = MATCHING_TOKENS
    if writes:
        encodes = config.network.language is not None and config.network.language.encodes_prompts
        usual = T5_TOKENS if encodes else WORD_TOKENS
    specials = read_json_if_there(folder / SPECIALS_FILE)
    stored = read_json_if_there(folder / SETTINGS_FILE)
    settings = {**usual, **{name: specials[name] for name in TOKENS if name in specials}, **stored}
    fast = read_vocabulary(folder, "write" if writes else "match")
    if fast.post_processor is None:
        # Files older than tokenizer.json do not say what stands around a text.
        _surround(fast, *_around(usual))
    tokenizer = Blip2Tokenizer(fast, settings)
    queries = read_json_if_there(folder / PROCESSOR_FILE).get("num_query_tokens")
    if writes:
        queries = config.network.qformer.num_queries
        index = image_token_index(content)
        if index not in (None, tokenizer.image_token_id):
            raise CheckpointError(
                f"{folder}: the vocabulary has {IMAGE_TOKEN} at {tokenizer.image_token_id}, config.json says {index}: "
                "mixed-up files"
            )
    return ProcessorParts(config.transform, tokenizer, queries)


def _read_alone(folder: Path) -> ProcessorParts:
    """From what a processor's `save_pretrained` wrote, without a model."""
    fast = read_vocabulary(folder, "write")
    queries = read_json_if_there(folder / PROCESSOR_FILE).get("num_query_tokens")
    settings = {**read_json_if_there(folder / SPECIALS_FILE), **read_json_if_there(folder / SETTINGS_FILE)}
    return ProcessorParts(read_transform(folder, USUAL_SIDE), Blip2Tokenizer(fast, settings), queries)


def read_bert_processor(folder: Path) -> tuple[ImageTransform, WordTokenizer]:
    """Of a BLIP: what makes pixels of images, and BERT's words between [CLS] and [SEP].

    Raises:
        CheckpointError: a file is missing or broken, or the folder's model is of another family.
    """
    if (folder / CONFIG_FILE).exists():
        kind = folder_kind(folder)
        family = read_json(folder / CONFIG_FILE).get("family") if kind == "openblip" else transformers_family(folder)
        if family != "blip":
            raise CheckpointError(f"{folder} is of the family {family}, no BLIP: load its processor by its own class")
        if kind == "openblip":
            parts: ModelParts[Any, Any] = load_parts(folder, ReadOptions(left_out=("",)))
            words = parts.require_words() if parts.matching is None else parts.matching.tokenizer
            return parts.transform, WordTokenizer(*bert_words(words, BERT_POSITIONS))
    specials, stored = read_json_if_there(folder / SPECIALS_FILE), read_json_if_there(folder / SETTINGS_FILE)
    named = {name: specials[name] for name in TOKENS if name in specials}
    fast = read_vocabulary(folder, "match")
    if fast.post_processor is None:
        # Files older than tokenizer.json do not say what stands around a text.
        _surround(fast, *_around(MATCHING_TOKENS))
    return read_transform(folder, BLIP_SIDE), WordTokenizer(fast, {**MATCHING_TOKENS, **named, **stored})


def _read_own(folder: Path) -> ProcessorParts:
    """From a folder that OpenBLIP wrote; a model that writes and matches is taken as one that writes."""
    from tokenizers import Tokenizer as FastTokenizer

    path = folder / CONFIG_FILE
    content = read_json(path)
    transform = build(ImageTransform, content.get("image") or {}, path)
    if content.get("external") is not None:
        raise CheckpointError(
            f"{folder} has an external language model, which transformers' BLIP-2 cannot use: use openblip.load for it"
        )
    writes = content.get("decoder") is not None or content.get("t5") is not None
    file = folder / (DECODER_FILE if writes else MATCHING_FILE)
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: the model folder is incomplete, get it again")
    usual = MATCHING_TOKENS
    if writes:
        usual = WORD_TOKENS if content.get("t5") is None else T5_TOKENS
    fast = FastTokenizer.from_file(str(file))
    _surround(fast, *_around(usual))
    settings = {**usual, "padding_side": "left" if "bos_token" in usual else "right"}
    queries = content["qformer"]["num_queries"] if writes else None
    return ProcessorParts(transform, Blip2Tokenizer(fast, settings), queries)


def _around(tokens: Mapping[str, str]) -> tuple[str | None, str | None]:
    """What begins and what ends a text: </s> words with OPT, words </s> with T5, [CLS] words [SEP] with BERT."""
    if "cls_token" in tokens:
        return tokens["cls_token"], tokens["sep_token"]
    return (tokens["bos_token"], None) if "bos_token" in tokens else (None, tokens["eos_token"])


def _surround(fast: FastTokenizer, begin: str | None, end: str | None) -> None:
    from tokenizers import processors

    ids = {token: fast.token_to_id(token) for token in (begin, end) if token is not None}
    template = " ".join(part for part in (begin, "$A", end) if part is not None)
    fast.post_processor = processors.TemplateProcessing(single=template, special_tokens=list(ids.items()))
