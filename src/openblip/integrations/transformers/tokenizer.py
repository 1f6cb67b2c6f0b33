"""Words to ids and back, as transformers' tokenizers of BLIP-2 do it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from openblip.checkpoints.json_files import to_json
from openblip.checkpoints.tensors.writing import write_together
from openblip.checkpoints.transformers.tokenizers import IMAGE_TOKEN, SETTINGS_FILE, TOKENIZER_FILE
from openblip.errors import OptionError, given_path, is_several, whole_number
from openblip.integrations.transformers.options import refuse_unknown
from openblip.integrations.transformers.outputs import BatchFeature
from openblip.text import text_list

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

Padding = bool | Literal["longest", "max_length", "do_not_pad"]
Truncation = bool | Literal["longest_first", "only_first", "do_not_truncate"] | None
Ids = int | Sequence[int] | Sequence[Sequence[int]] | Tensor

UNLIMITED = 10**20
MOST_TOKENS = 2**31
"""transformers writes a number above this for a tokenizer without a length of its own."""

SPACES = [(f" {sign}", sign) for sign in ".?!,"] + [(" ' ", "'")]
SPACES += [(f" {ending}", ending) for ending in ("n't", "'m", "'s", "'ve", "'re")]
"""Spaces that are taken out of a text when a folder says `clean_up_tokenization_spaces`."""

TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token", "mask_token")


class WordTokenizer:
    """The vocabulary, special tokens set as the folder says.

    Attributes:
        padding_side, truncation_side: "left" or "right"; may be set.
        model_max_length: where `truncation` cuts when no length is given; may be set.
    """

    def __init__(self, fast: FastTokenizer, settings: dict[str, Any]) -> None:
        """`settings` are those of tokenizer_config.json."""
        fast.no_padding()
        fast.no_truncation()
        self.fast = fast
        self.settings = settings
        self.padding_side: str = settings.get("padding_side", "right")
        self.truncation_side: str = settings.get("truncation_side", "right")
        self.model_max_length: int = settings.get("model_max_length") or 2 * UNLIMITED
        tokens = {name: settings.get(name) for name in TOKENS}
        # Written as a text, or with its properties.
        self.tokens = {name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items()}

    def __len__(self) -> int:
        return int(self.fast.get_vocab_size())

    @property
    def vocab_size(self) -> int:
        return int(self.fast.get_vocab_size(with_added_tokens=False))

    @property
    def bos_token(self) -> str | None:
        return self.tokens["bos_token"]

    @property
    def eos_token(self) -> str | None:
        return self.tokens["eos_token"]

    @property
    def pad_token(self) -> str | None:
        return self.tokens["pad_token"]

    @property
    def bos_token_id(self) -> int | None:
        return self._id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        return self._id("eos_token")

    @property
    def pad_token_id(self) -> int | None:
        return self._id("pad_token")

    def _id(self, name: str) -> int | None:
        token = self.tokens[name]
        return None if token is None else self.fast.token_to_id(token)

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        padding: Padding = False,
        truncation: Truncation = None,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        **others: object,
    ) -> BatchFeature:
        """`input_ids` and `attention_mask` of texts: lists, or with return_tensors="pt" tensors [B, L].

        Args:
            padding: True for the longest of the texts, "max_length" for `max_length`.
            truncation: cut at `max_length`; also when that alone is given.
            add_special_tokens: the ones that begin and end a text.

        Raises:
            OptionError: another keyword, or tensors of texts of different lengths without `padding`.
        """
        refuse_unknown("the tokenizer", others)
        check_tensors(return_tensors)
        texts = text_list(text)
        if max_length is not None:
            whole_number("max_length", max_length, -MOST_TOKENS)  # the processor's, less its image tokens
        _check_choice("padding", padding, (*SWITCHES, "longest", "max_length", "do_not_pad"))
        _check_choice("truncation", truncation, (*SWITCHES, "longest_first", "only_first", "do_not_truncate"))
        if max_length is not None and padding is False and truncation is None:
            truncation = True
        own = self.model_max_length if self.model_max_length < UNLIMITED else None
        length = own if max_length is None else max_length
        cut = truncation not in (None, False, "do_not_truncate")
        rows = self._encode(texts, length if cut else None, add_special_tokens)
        padded = self._pad(rows, padding, length, padding_side or self.padding_side)
        if return_tensors == "pt":
            return BatchFeature({name: as_tensor(name, values) for name, values in padded.items()})
        return BatchFeature({name: values[0] for name, values in padded.items()} if isinstance(text, str) else padded)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return self._encode([text], None, add_special_tokens)[0]

    def _encode(self, texts: list[str], length: int | None, specials: bool) -> list[list[int]]:
        if length is not None:
            if length < 1:
                raise OptionError(f"texts are to be cut at {length} tokens: give a larger max_length")
            self.fast.enable_truncation(min(length, MOST_TOKENS), direction=self.truncation_side)
        try:
            found = self.fast.encode_batch(texts, add_special_tokens=specials)
        finally:
            self.fast.no_truncation()
        return [list(row.ids) for row in found]

    def _pad(self, rows: list[list[int]], padding: Padding, length: int | None, side: str) -> dict[str, Any]:
        wide = max(map(len, rows), default=0) if padding in (True, "longest") else 0
        if padding == "max_length":
            wide = length or 0
        elif padding not in (True, False, "longest", "do_not_pad"):
            raise OptionError(f"padding is {padding!r}: use True, False or 'max_length'")
        filled_with = self.pad_token_id
        if filled_with is None:
            if wide:
                raise OptionError("this vocabulary has no pad token: give texts one by one, without padding")
            filled_with = 0
        ids, masks = [], []
        for row in rows:
            free = max(0, wide - len(row))
            filler, hidden, visible = [filled_with] * free, [0] * free, [1] * len(row)
            ids.append(filler + row if side == "left" else row + filler)
            masks.append(hidden + visible if side == "left" else visible + hidden)
        return {"input_ids": ids, "attention_mask": masks}

    def decode(
        self, token_ids: Ids, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> Any:
        """The text of ids, or a list of texts of rows of ids.

        Raises:
            OptionError: an id is no whole number, or below 0.
        """
        several: Any = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        ids = list(several) if is_several(several) else [several]
        if ids and is_several(ids[0]):
            return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in ids]
        for one in ids:
            if whole_number("an id", one, 0) > MOST_TOKENS:
                raise OptionError(f"an id is {one}: no vocabulary is so large")
        text = str(self.fast.decode([int(one) for one in ids], skip_special_tokens=skip_special_tokens))
        clean = clean_up_tokenization_spaces
        if clean is None:
            clean = bool(self.settings.get("clean_up_tokenization_spaces", False))
        # A byte-level vocabulary keeps spaces as they were written.
        if clean and type(self.fast.model).__name__ != "BPE":
            for spaced, closed in SPACES:
                text = text.replace(spaced, closed)
        return text

    def batch_decode(
        self,
        sequences: Sequence[Ids] | Tensor,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """The text of each row of ids. Raises OptionError as `decode`."""
        if not is_several(sequences):
            raise OptionError(f"the ids are {sequences!r}: give rows of ids")
        return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in sequences]

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text, without any special one."""
        return list(self.fast.encode(text, add_special_tokens=False).tokens)

    def get_vocab(self) -> dict[str, int]:
        """Ids by their tokens."""
        return dict(self.fast.get_vocab())

    def convert_tokens_to_ids(self, tokens: str | list[str]) -> Any:
        """The id of a token, or of each of several; None for what is no token."""
        return self.fast.token_to_id(tokens) if isinstance(tokens, str) else [*map(self.fast.token_to_id, tokens)]

    def convert_ids_to_tokens(self, ids: int | list[int]) -> Any:
        """The token of an id, or of each of several."""
        return self.fast.id_to_token(ids) if isinstance(ids, int) else [*map(self.fast.id_to_token, ids)]

    def files(self) -> dict[str, str]:
        """Names and texts of what `save_pretrained` writes."""
        named = {name: token for name, token in self.tokens.items() if token is not None}
        content = {
            **self.settings,
            **named,
            "tokenizer_class": "PreTrainedTokenizerFast",
            "padding_side": self.padding_side,
            "truncation_side": self.truncation_side,
            "model_max_length": self.model_max_length,
        }
        return {TOKENIZER_FILE: self.fast.to_str(pretty=True), SETTINGS_FILE: to_json(content)}

    def save_pretrained(self, save_directory: str | Path) -> None:
        write_together(given_path("save_directory", save_directory), self.files(), {})


SWITCHES = (True, False, None)


def _check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    if not isinstance(value, bool | str | None) or value not in choices:
        raise OptionError(f"{name} is {value!r}: use {', '.join(map(str, choices))}")


class Blip2Tokenizer(WordTokenizer):
    """The vocabulary with a token for an image's place.

    Attributes:
        image_token_id: the last id where the folder has none of its own.
    """

    image_token = IMAGE_TOKEN

    def __init__(self, fast: FastTokenizer, settings: dict[str, Any]) -> None:
        """`fast` gets the image token if it has none; `settings` are those of tokenizer_config.json."""
        fast.add_special_tokens([IMAGE_TOKEN])
        super().__init__(fast, settings)
        self.image_token_id: int = fast.encode(IMAGE_TOKEN, add_special_tokens=False).ids[0]


def check_tensors(kind: str | None) -> None:
    if kind not in (None, "pt"):
        raise OptionError(f"return_tensors is {kind!r}: use 'pt' for PyTorch, or leave it out for lists")


def as_tensor(name: str, rows: list[list[int]]) -> Tensor:
    """Rows [B, L] of equal length. Raises OptionError when they differ."""
    if len({len(row) for row in rows}) > 1:
        raise OptionError(f"{name}: the texts have different lengths: give padding=True")
    return torch.tensor(rows, dtype=torch.int64)
