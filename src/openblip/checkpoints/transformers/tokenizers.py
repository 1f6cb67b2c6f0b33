"""Vocabularies in a BLIP-2 folder of transformers: tokenizer.json, or the older files that say the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from openblip.checkpoints.json_files import read_json_if_there, to_json
from openblip.checkpoints.openblip.file_names import DECODER_FILE, MATCHING_FILE
from openblip.errors import CheckpointError
from openblip.files import read_text
from openblip.text import (
    CLIP_END,
    CLIP_START,
    ClipText,
    MatchingText,
    Tokenizer,
    check_ids,
    check_tokenizer,
    tokenizer_errors,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer


TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_config.json"
SPECIALS_FILE = "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"
VOCABULARY_FILE = "vocab.json"
MERGES_FILE = "merges.txt"
PIECES_FILE = "vocab.txt"
SENTENCEPIECE_FILE = "spiece.model"
VOCABULARY_FILES = (
    TOKENIZER_FILE,
    VOCABULARY_FILE,
    MERGES_FILE,
    PIECES_FILE,
    SENTENCEPIECE_FILE,
    DECODER_FILE,
    MATCHING_FILE,
)

IMAGE_TOKEN = "<image>"
"""What transformers' processor writes before a prompt, once for each visual token."""
CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
OPT_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
DECODE_TOKEN = "[DEC]"

Task: TypeAlias = Literal["write", "match"]
"""Which half of BLIP-2 a folder holds: captions and answers, or matching and embedding."""


def no_vocabulary(folder: Path, task: Task) -> str:
    """What to say of a folder without one."""
    older = f"{VOCABULARY_FILE} with {MERGES_FILE}" if task == "write" else PIECES_FILE
    return (
        f"{folder} has no vocabulary: it needs {TOKENIZER_FILE}, or {older}; checkpoints of a transformers Trainer "
        "have none: name a model or folder that has it with tokenizer=... (--tokenizer)"
    )


def has_vocabulary(folder: Path) -> bool:
    """Whether a folder has a file of a vocabulary, complete or not."""
    return any((folder / name).is_file() for name in VOCABULARY_FILES)


def read_vocabulary(folder: Path, task: Task) -> FastTokenizer:
    """The vocabulary of a folder that writes or matches as it stands there, but for the mark for images.

    Raises:
        CheckpointError: files are missing or broken.
    """
    if task == "write":
        return _read(folder, DECODER_FILE, _byte_level, task)
    return _read(folder, MATCHING_FILE, _wordpiece, task)


def read_words(folder: Path, start: int, pad: int, rows: int) -> Tokenizer:
    """The language model's words: OPT's byte-level BPE or T5's unigrams.

    Args:
        start: begins a text of OPT's, ends a prompt of T5's.
        rows: of the model's word table.

    Raises:
        CheckpointError: files are missing, broken, or do not belong to the model.
    """
    fast = read_vocabulary(folder, "write")
    tokens = []
    for index in (start, pad):
        token = fast.id_to_token(index)
        if token is None:
            raise CheckpointError(f"{folder}: the vocabulary has no token {index}, which config.json names")
        tokens.append(token)
    words = Tokenizer(fast, start_token=tokens[0], pad_token=tokens[1])
    check_ids(words, rows, folder / TOKENIZER_FILE)
    return words


def read_matching(folder: Path, max_tokens: int, rows: int) -> MatchingText:
    """The Q-Former's words: BERT's WordPiece, with [DEC] if the word table has a row for it.

    Raises:
        CheckpointError: files are missing, broken, or do not belong to the model.
    """
    fast = read_vocabulary(folder, "match")
    if fast.token_to_id(DECODE_TOKEN) is None and fast.get_vocab_size() < rows:
        fast.add_special_tokens([DECODE_TOKEN])
    words = Tokenizer(fast, start_token="[CLS]", pad_token="[PAD]")
    check_ids(words, rows, folder / TOKENIZER_FILE)
    return MatchingText(words, max_tokens)


def read_clip_words(folder: Path, max_tokens: int, rows: int) -> ClipText:
    """CLIP's words: byte pairs, of which the last of a word has a mark.

    Raises:
        CheckpointError: files are missing, broken, or do not belong to the model.
    """
    words = Tokenizer(_read(folder, MATCHING_FILE, _clip_pairs, "write"), CLIP_START, CLIP_END)
    check_ids(words, rows, folder / TOKENIZER_FILE)
    return ClipText(words, max_tokens)


def clip_files(text: ClipText, longest: int) -> dict[str, str]:
    """File names and texts of CLIP's vocabulary for transformers."""
    from tokenizers import processors

    words = text.tokenizer
    fast = _copy(words.fast)
    ends = (CLIP_END, text.end_id), (CLIP_START, words.start_id)
    fast.post_processor = processors.RobertaProcessing(*ends, trim_offsets=False, add_prefix_space=False)
    names = {"bos_token": CLIP_START, "eos_token": CLIP_END, "unk_token": CLIP_END, "pad_token": CLIP_END}
    settings = {**names, "tokenizer_class": "CLIPTokenizer", "processor_class": "CLIPProcessor"}
    return _files(fast, {**settings, "model_max_length": longest})


def read_bert(folder: Path, added: Mapping[str, int]) -> FastTokenizer:
    """BERT's WordPiece with tokens that a model has besides, at their ids.

    Raises:
        CheckpointError: files are missing or broken, or an added token would get another id.
    """
    fast = read_vocabulary(folder, "match")
    for token, index in added.items():
        fast.add_special_tokens([token])
        if fast.token_to_id(token) != index:
            raise CheckpointError(
                f"{folder}: {token} has the id {fast.token_to_id(token)} in this vocabulary, {index} in the model: "
                "get the vocabulary that belongs to it"
            )
    return fast


def bert_files(words: Tokenizer, longest: int) -> dict[str, str]:
    """File names and texts of such a vocabulary for transformers' BlipProcessor."""
    fast, settings = bert_words(words, longest)
    return _files(fast, {**settings, "processor_class": "BlipProcessor"})


def bert_words(words: Tokenizer, longest: int) -> tuple[FastTokenizer, dict[str, Any]]:
    """A copy of such a vocabulary that puts texts between [CLS] and [SEP], and its settings for transformers."""
    fast = _copy(words.fast)
    ids = {token: words.token_id(token) for token in ("[CLS]", "[SEP]")}
    _add_around(fast, "[CLS] $A [SEP]", ids)
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    return fast, {**names, "model_max_length": longest}


def stop_text(words: Tokenizer, stop: int, folder: Path) -> str:
    """The text of the token that ends a caption. Raises CheckpointError when it is no text of its own."""
    text = words.decode([stop]) or words.fast.id_to_token(stop) or ""
    if words.encode(text) != [stop]:
        raise CheckpointError(f"{folder}: the stop token {stop} of config.json is no word of the vocabulary")
    return text


def decoder_files(words: Tokenizer, longest: int) -> tuple[dict[str, str], int]:
    """File names and texts of OPT's vocabulary for transformers, and its id for an image's place."""
    start = _token(words.fast, words.start_id)
    # The text goes on from the prompt's last token, so batches are filled up in front.
    names = {"bos_token": start, "eos_token": start, "unk_token": start, "padding_side": "left"}
    return _word_files(words, f"{start} $A", {start: words.start_id}, names, longest)


def encoder_files(words: Tokenizer, stop: int, longest: int) -> tuple[dict[str, str], int]:
    """File names and texts of T5's vocabulary for transformers, and its id for an image's place."""
    end = _token(words.fast, stop)
    # Padding between image and words would move them apart: T5 counts distances.
    names = {"eos_token": end, "unk_token": "<unk>", "padding_side": "right"}
    return _word_files(words, f"$A {end}", {end: stop}, names, longest)


def _word_files(
    words: Tokenizer, template: str, ids: Mapping[str, int], names: Mapping[str, str], longest: int
) -> tuple[dict[str, str], int]:
    fast = _copy(words.fast)
    fast.add_special_tokens([IMAGE_TOKEN])
    start, pad = (_token(fast, index) for index in (words.start_id, words.pad_id))
    _add_around(fast, template, ids)
    files = _files(fast, {**names, "pad_token": pad, "model_max_length": longest})
    return files, Tokenizer(fast, start, pad).token_id(IMAGE_TOKEN)


def matching_files(matching: MatchingText, longest: int) -> dict[str, str]:
    """File names and texts of the Q-Former's vocabulary for transformers."""
    words = matching.tokenizer
    fast = _copy(words.fast)
    start, end, pad = (_token(fast, index) for index in (words.start_id, matching.end_id, words.pad_id))
    _add_around(fast, f"{start} $A {end}", {start: words.start_id, end: matching.end_id})
    names = {"cls_token": start, "sep_token": end, "unk_token": "[UNK]", "pad_token": pad}
    return _files(fast, {**names, "model_max_length": longest})


def _files(fast: FastTokenizer, settings: Mapping[str, object]) -> dict[str, str]:
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "Blip2Processor",
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **settings,
    }
    return {TOKENIZER_FILE: fast.to_str(pretty=True), SETTINGS_FILE: to_json(content)}


def _copy(fast: FastTokenizer) -> FastTokenizer:
    from tokenizers import Tokenizer as FastTokenizer

    return FastTokenizer.from_str(fast.to_str())


def _token(fast: FastTokenizer, index: int) -> str:
    return str(fast.id_to_token(index))


def _add_around(fast: FastTokenizer, template: str, ids: Mapping[str, int]) -> None:
    from tokenizers import processors

    fast.post_processor = processors.TemplateProcessing(single=template, special_tokens=list(ids.items()))


def _read(folder: Path, own: str, build: Callable[[Path], FastTokenizer | None], task: Task) -> FastTokenizer:
    """From tokenizer.json, by `build` from older files, or from the file `own` of a folder of OpenBLIP.

    Without padding and cutting, which the models do.
    """
    from tokenizers import Tokenizer as FastTokenizer

    path = folder / (own if (folder / own).is_file() else TOKENIZER_FILE)
    fast: FastTokenizer | None
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path} is no file: the model folder is incomplete, get it again")
    with tokenizer_errors(f"{path if path.is_file() else folder}: the vocabulary is broken"):
        fast = FastTokenizer.from_str(_without_image_token(read_text(path))) if path.is_file() else build(folder)
        if fast is not None:
            check_tokenizer(fast)
    if fast is None and (folder / SENTENCEPIECE_FILE).is_file():
        raise CheckpointError(
            f"{folder} has its vocabulary in {SENTENCEPIECE_FILE} alone, which cannot be read: "
            f"get {TOKENIZER_FILE}, too, from where it comes from"
        )
    if fast is None:
        raise CheckpointError(no_vocabulary(folder, task))
    fast.no_padding()
    fast.no_truncation()
    return fast


def _without_image_token(text: str) -> str:
    """A tokenizer.json without transformers' mark for an image, which is no word of a text.

    It stays where it is not the last id, as the ones behind it would move up.
    """
    content = json.loads(text)
    added = content.get("added_tokens") or []
    marks = [entry for entry in added if entry["content"] == IMAGE_TOKEN]
    if marks and marks[0]["id"] >= max(entry["id"] for entry in added) and marks[0]["id"] >= _model_size(content):
        content["added_tokens"] = [entry for entry in added if entry["content"] != IMAGE_TOKEN]
        return json.dumps(content)
    return text


def _model_size(content: Mapping[str, Any]) -> int:
    return len(content["model"]["vocab"])


def _byte_level(folder: Path) -> FastTokenizer | None:
    """GPT-2's BPE, which OPT shares, from a vocabulary and merges."""
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers import decoders, models, pre_tokenizers

    vocabulary, merges = folder / VOCABULARY_FILE, folder / MERGES_FILE
    if not vocabulary.is_file() or not merges.is_file():
        return None
    fast = FastTokenizer(models.BPE(*models.BPE.read_file(str(vocabulary), str(merges))))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    _add_specials(fast, OPT_SPECIALS, folder)
    return fast


def _clip_pairs(folder: Path) -> FastTokenizer | None:
    """CLIP's byte pairs from a vocabulary and merges."""
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as FastTokenizer

    vocabulary, merges = folder / VOCABULARY_FILE, folder / MERGES_FILE
    if not vocabulary.is_file() or not merges.is_file():
        return None
    pairs = models.BPE.read_file(str(vocabulary), str(merges))
    fast = FastTokenizer(models.BPE(*pairs, end_of_word_suffix="</w>", unk_token=CLIP_END))
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    fast.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True)
    fast.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    fast.decoder = decoders.ByteLevel()
    _add_specials(fast, (CLIP_START, CLIP_END), folder)
    return fast


def _wordpiece(folder: Path) -> FastTokenizer | None:
    """BERT's WordPiece from its list of pieces."""
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    pieces = folder / PIECES_FILE
    if not pieces.is_file():
        return None
    fast = FastTokenizer(models.WordPiece(models.WordPiece.read_file(str(pieces)), unk_token="[UNK]"))
    lower = read_json_if_there(folder / SETTINGS_FILE).get("do_lower_case", True)
    fast.normalizer = normalizers.BertNormalizer(lowercase=lower)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece()
    _add_specials(fast, BERT_SPECIALS, folder)
    return fast


def _add_specials(fast: FastTokenizer, usual: tuple[str, ...], folder: Path) -> None:
    """Mark the special tokens, which are never split, and add those that the vocabulary lacks, at their ids.

    Raises:
        CheckpointError: an added token would get another id than the folder gives it.
    """
    named = [name for name in usual if fast.token_to_id(name) is not None]
    for value in read_json_if_there(folder / SPECIALS_FILE).values():
        # A name, its description, or a list of them.
        for entry in value if isinstance(value, list) else [value]:
            named.append(entry["content"] if isinstance(entry, dict) else entry)
    fast.add_special_tokens([name for name in named if fast.token_to_id(name) is not None])
    added: dict[str, int] = dict(read_json_if_there(folder / ADDED_FILE))
    for index, entry in read_json_if_there(folder / SETTINGS_FILE).get("added_tokens_decoder", {}).items():
        added[entry["content"]] = int(index)
    for name, index in sorted(added.items(), key=lambda pair: pair[1]):
        if name != IMAGE_TOKEN:
            fast.add_special_tokens([name])
            if fast.token_to_id(name) != index:
                raise CheckpointError(f"{folder}: the added token {name} has id {index}, which leaves a gap")
