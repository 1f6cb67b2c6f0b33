"""A folder to what turns images and texts into a model's inputs, whether transformers or OpenBLIP wrote it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openblip.checkpoints.json_files import build, read_json, read_json_if_there
from openblip.checkpoints.loading import load_parts
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.openblip.file_names import CONFIG_FILE, DECODER_FILE, MATCHING_FILE
from openblip.checkpoints.read_options import ReadOptions
from openblip.checkpoints.registry import folder_kind, transformers_family
from openblip.checkpoints.transformers.config import PROCESSOR_FILE, image_token_index, read_config, read_transform
from openblip.checkpoints.transformers.tokenizers import (
    IMAGE_TOKEN,
    SETTINGS_FILE,
    SPECIALS_FILE,
    TOKENIZER_FILE,
    bert_words,
    read_vocabulary,
)
from openblip.errors import CheckpointError
from openblip.images.transform import ImageTransform
from openblip.integrations.transformers.tokenizer import TOKENS, Blip2Tokenizer, WordTokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

WORD_TOKENS = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
T5_TOKENS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
MATCHING_TOKENS = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"}

USUAL_SIDE, BLIP_SIDE = 224, 384
"""Of images, in pixels, where a folder does not say: of BLIP-2's and of BLIP's."""
BERT_POSITIONS = 512


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
