"""Tokenizers, prompt templates, and cleaning of captions and questions."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from openblip.errors import CheckpointError, OptionError, is_several

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer as FastTokenizer

CAPTION_NOISE = re.compile(r"[.!\"()*#:;~]")
QUESTION_NOISE = re.compile(r"[.!\"()*#:;~?]")
PRINTED = re.compile("[\u02bc\u2018-\u201f\u0132\u0133\u0149\u01c4-\u01cc\u01f1-\u01f3\ufb00-\ufb06\uff01-\uffee]")
"""Quotes, ligatures and wide characters that printed text has, and no keyboard."""
TYPED = {
    **dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f", '"'),
    "\u0149": "'n",
}
CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]")
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
"""How vocabularies of SentencePiece write a byte that is no word."""
NO_CHARACTER = "\N{REPLACEMENT CHARACTER}"
"""What bytes are decoded to that make no character, or none yet."""

BLANKS = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\u200b\u2060\ufeff"
"""White space of all kinds, and what takes no width: nothing of it can be seen at the end of a prompt."""
PROBE = "Question: what is this? 1 dog.\n"

Pieces: TypeAlias = Generator[str, None, str]
"""A text as it is written, piece by piece; the return value is the whole, and `close` ends the writing."""


SHORT_QUESTION = "Question: {question} Short answer:"
"""How LAVIS' evaluation recipes put questions, and how FLAN-T5 is best asked."""


@dataclass(frozen=True)
class PromptTemplates:
    """What the language model reads around a user's words.

    The defaults are the paper's: an empty prompt for captions, "Question: ... Answer:" for questions and
    the same repeated for dialogue (https://arxiv.org/abs/2301.12597, section 4.1 and figure 4). A dialogue goes on
    as its turns are written, also where lone questions are put otherwise.
    """

    caption: str = ""
    question: str = "Question: {question} Answer:"
    turn: str = "Question: {question} Answer: {answer}. "

    def ask(self, question: str) -> str:
        return self.question.format(question=question)

    def chat(self, turns: Sequence[tuple[str, str]], question: str) -> str:
        """Earlier (question, answer) turns, then the new question."""
        history = "".join(self.turn.format(question=earlier, answer=answered) for earlier, answered in turns)
        return history + self.turn.partition("{answer}")[0].rstrip().format(question=question)


def clean_caption(caption: str, max_words: int = 50) -> str:
    """Lower case, without the punctuation that LAVIS removes from captions, at most `max_words` words."""
    words = CAPTION_NOISE.sub(" ", caption.lower()).split()
    return " ".join(words[:max_words])


def clean_question(question: str, max_words: int = 50) -> str:
    """Lower case, one question mark at the end, at most `max_words` words."""
    words = QUESTION_NOISE.sub(" ", question.lower()).split()
    return " ".join(words[:max_words]) + "?"


def clean_generated(text: str) -> str:
    """A model's output as a person would write it: trimmed, single spaces."""
    return " ".join(text.split())


def text_list(texts: str | Iterable[str], what: str = "the texts") -> list[str]:
    """Texts as a list, from any iterable; a lone text is one, not its letters.

    Args:
        what: what an error calls them.

    Raises:
        OptionError: something else is given, or is among them.
    """
    if isinstance(texts, str):
        return [texts]
    if not is_several(texts) or isinstance(texts, Mapping):
        raise OptionError(f"{what} are {str(texts)[:100]!r}: give a text, or several")
    found = list(texts)
    for text in found:
        if not isinstance(text, str):
            raise OptionError(f"{what} have {str(text)[:100]} ({type(text).__name__}) among them: give texts alone")
    return found


def one_text(value: str, what: str) -> str:
    """Raises OptionError, which calls it `what`, for anything but a str."""
    if not isinstance(value, str):
        raise OptionError(f"{what} is {str(value)[:100]} ({type(value).__name__}): give one text")
    return value


def trim_prompt(prompt: str) -> str:
    """A prompt without the blanks at its end.

    A word's token begins with the space in front of it: behind a lone space, no word is likely.
    """
    return prompt.rstrip(BLANKS)


@contextmanager
def tokenizer_errors(problem: str) -> Iterator[None]:
    """Turns what the tokenizers library raises while it reads a file into a CheckpointError, which begins so."""
    try:
        yield
    except CheckpointError:
        raise
    except BaseException as error:
        if not is_library_error(error):
            raise
        raise CheckpointError(f"{problem} ({first_line(error)}): get its files again") from error


def is_library_error(error: BaseException) -> bool:
    """Whether an error may be the tokenizers library's, which raises bare Exception, and panics as no Exception."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def first_line(error: BaseException) -> str:
    """What an error of a library says, short enough for a sentence."""
    return str(error).strip().partition("\n")[0][:200].rstrip(".:") or type(error).__name__


class Tokenizer:
    """A `tokenizer.json` and the ids that the models built on it need.

    Attributes:
        pad_id: fills short rows; start_id: begins every text. What T5 reads begins with nothing: its
            stop token stands there.
    """

    def __init__(self, fast: FastTokenizer, start_token: str, pad_token: str) -> None:
        self.fast = fast
        # A file may ask for both; rows are filled up and cut by who reads them, never here.
        fast.no_padding()
        fast.no_truncation()
        self.start_id = self._id(start_token)
        self.pad_id = self._id(pad_token)
        self._unseen = {token for token, added in fast.get_added_tokens_decoder().items() if added.special}

    @classmethod
    def from_file(cls, path: Path, start_token: str, pad_token: str) -> Tokenizer:
        """Raises CheckpointError when the file is missing or is no tokenizer."""
        from tokenizers import Tokenizer as FastTokenizer

        if not path.is_file():
            problem = "is no file" if path.exists() else "is missing"
            raise CheckpointError(f"{path} {problem}: the model folder is incomplete, get it again")
        with tokenizer_errors(f"{path} is not a tokenizer file"):
            fast = FastTokenizer.from_buffer(path.read_bytes())
            check_tokenizer(fast)
            return cls(fast, start_token, pad_token)

    @property
    def vocab_size(self) -> int:
        return int(self.fast.get_vocab_size())

    def _id(self, token: str) -> int:
        found = self.fast.token_to_id(token)
        if found is None:
            raise CheckpointError(f"the tokenizer has no token {token!r}, which the model needs")
        return int(found)

    def token_id(self, token: str) -> int:
        """The id of one token. Raises CheckpointError when the vocabulary lacks it."""
        return self._id(token)

    def only_id(self, text: str) -> int:
        """The id of a text that is one token, as a stop sign has to be. Raises CheckpointError otherwise."""
        ids = self.encode(text)
        if len(ids) != 1:
            raise CheckpointError(f"{text!r} is {len(ids)} tokens in this vocabulary, the model needs it to be one")
        return ids[0]

    def tokens(self) -> list[str]:
        """All tokens in the order of their ids, as the file has them; an empty text where there is none."""
        return [self.fast.id_to_token(token_id) or "" for token_id in range(self.vocab_size)]

    def encode(self, text: str) -> list[int]:
        """Ids without any special token. Raises OptionError when the text cannot be read."""
        try:
            return list(self.fast.encode(text, add_special_tokens=False).ids)
        except BaseException as error:
            if not is_library_error(error):
                raise
            raise OptionError(f"the text {text!r} cannot be split into tokens ({first_line(error)})") from error

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.fast.decode(list(ids), skip_special_tokens=True))

    def leaves_open(self, token: int) -> bool:
        """Whether a text may still change behind such a token: a byte, decoded together with those next to it.

        What is not seen in a text, special tokens and unknown ids, does not come between bytes.
        """
        word = self.fast.id_to_token(token)
        return word is None or token in self._unseen or BYTE_TOKEN.fullmatch(word) is not None


def check_tokenizer(fast: FastTokenizer) -> None:
    """Raises what the library raises when a tokenizer that was read cannot be used."""
    fast.decode(fast.encode(PROBE, add_special_tokens=False).ids)
    if not fast.get_vocab_size():
        raise CheckpointError("the vocabulary is empty")


class GrowingText:
    """A text as its tokens come, in pieces that join to `clean_generated` of the whole.

    A piece never ends within a character, whose bytes may lie in several tokens, nor in a space, which comes with the
    word behind it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._read: list[int] = []
        self._emitted = ""

    def add(self, token: int) -> str:
        """Go on by a token; the piece that it ends, or nothing."""
        self._read.append(token)
        if self.tokenizer.leaves_open(token):
            return ""
        text = clean_generated(self.tokenizer.decode(self._read).rstrip(NO_CHARACTER))
        return self._piece(text) if text.startswith(self._emitted) else ""

    def end(self) -> str:
        """The last piece, or nothing."""
        return self._piece(self.whole)

    @property
    def whole(self) -> str:
        return clean_generated(self.tokenizer.decode(self._read))

    def _piece(self, text: str) -> str:
        piece = text[len(self._emitted) :]
        if piece:
            self._emitted = text
        return piece


def text_pieces(tokenizer: Tokenizer, ids: Iterable[int]) -> Pieces:
    """The pieces of a text, see `GrowingText`."""
    text = GrowingText(tokenizer)
    for token in ids:
        if piece := text.add(token):
            yield piece
    if piece := text.end():
        yield piece
    return text.whole


def check_prompts(prompts: PromptTemplates, path: Path) -> None:
    """Raises CheckpointError when a template of the file at `path` cannot be filled in."""
    try:
        prompt = prompts.ask("<asked>")
        talk = prompts.chat([("<before>", "<answered>")], "<asked>")
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: a prompt cannot be filled in ({error!r})") from error
    if "<asked>" not in prompt:
        raise CheckpointError(f"{path}: the prompt question is {prompts.question!r}, which lacks {{question}}")
    if not all(text in talk for text in ("<before>", "<answered>", "<asked>")):
        raise CheckpointError(f"{path}: the prompt turn is {prompts.turn!r}, which lacks {{question}} or {{answer}}")


def check_ids(tokenizer: Tokenizer, rows: int, path: Path) -> None:
    """Raises CheckpointError when the words of the file at `path` are more than a table has rows."""
    if max(tokenizer.fast.get_vocab().values(), default=0) >= max(rows, tokenizer.vocab_size):
        raise CheckpointError(f"{path} has ids beyond its {tokenizer.vocab_size} tokens: get the file again")
    if tokenizer.vocab_size > rows:
        raise CheckpointError(f"{path} has {tokenizer.vocab_size} tokens, the model knows {rows}: mixed-up files")


def pad_ids(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids padded on the right: ids [B, L] int64 and mask [B, L] bool; [0, 1] of no rows."""
    import torch

    length = max((len(row) for row in rows), default=1)
    ids = torch.full((len(rows), length), pad_id, dtype=torch.int64)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[index, : len(row)] = True
    return ids, mask


class MatchingText:
    """Text for the Q-Former: WordPiece between [CLS] and [SEP], cut at `max_tokens` (LAVIS: 32)."""

    start_token, pad_token = "[CLS]", "[PAD]"

    def __init__(self, tokenizer: Tokenizer, max_tokens: int = 32) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.end_id = tokenizer.token_id("[SEP]")

    @property
    def decoder_start_id(self) -> int:
        """Begins a text that is generated (ITG). Raises CheckpointError when the vocabulary has no [DEC]."""
        return self.tokenizer.token_id("[DEC]")

    def clean(self, text: str) -> str:
        """As captions were in training."""
        return clean_caption(text)

    def encode(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(text)[: self.max_tokens - 2]
        return [self.tokenizer.start_id, *ids, self.end_id]

    def batch(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids [B, L] and mask [B, L] bool."""
        return pad_ids([self.encode(text) for text in texts], self.tokenizer.pad_id)


class ClipText:
    """Text for CLIP: byte pairs between <|startoftext|> and <|endoftext|>, cut at `max_tokens`.

    The end is kept where a text is cut: CLIP reads a text there.
    """

    start_token, pad_token = CLIP_START, CLIP_END

    def __init__(self, tokenizer: Tokenizer, max_tokens: int = 77) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.end_id = tokenizer.token_id(CLIP_END)

    def clean(self, text: str) -> str:
        """As texts were written in training: plain quotes, no HTML, no double spaces; the tokenizer does the rest.

        OpenAI's code repairs wrongly decoded characters ("Ã©") besides, by the package ftfy, which is not done here.
        """
        import html  # a table of all of HTML's names, which no other model needs

        plain = PRINTED.sub(_typewritten, CONTROL.sub("", html.unescape(html.unescape(text))))
        return " ".join(plain.split())

    def encode(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(text)
        if self.end_id in ids:  # written out in the text, where it ends it, too
            ids = ids[: ids.index(self.end_id)]
        return [self.tokenizer.start_id, *ids[: self.max_tokens - 2], self.end_id]

    def batch(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids [B, L] and mask [B, L] bool."""
        return pad_ids([self.encode(text) for text in texts], self.tokenizer.pad_id)


def _typewritten(found: re.Match[str]) -> str:
    character = found[0]
    return TYPED.get(character) or unicodedata.normalize("NFKC", character)
