"""Texts in which no content word occurs twice."""

from __future__ import annotations

import re
import string
from collections import defaultdict
from collections.abc import Iterator, Sequence

FUNCTION_WORDS = frozenset(
    """
    a an the this that these those some any all both each every no another other one its his her their
    and or but nor as than while who which that where when
    of in on at by to from with without for into onto over under above below up down out off through across along
    around near behind beside between against toward towards inside outside next front top back side
    is are was were be been being has have having do does it he she they him them there
    """.split()
)
"""Articles, conjunctions, prepositions and the nouns in them, pronouns, auxiliaries; texts may repeat these."""

BYTE_SPACE, PIECE_SPACE = "\u0120", "\u2581"
"""The space in front of a word in the tokens of byte-level BPE and of SentencePiece."""
WORD_PIECE = "##"
"""In front of WordPiece's tokens that go on with a word."""
PUNCTUATION = frozenset(string.punctuation + string.whitespace + PIECE_SPACE)
WORD_ENDS = PUNCTUATION - frozenset("-'")
"""Characters that no word has in it; in WordPiece, whose tokens have no spaces, all of `PUNCTUATION` ends words."""
BYTE_CONTROLS = frozenset(map(chr, range(0x100, 0x122)))
"""How byte-level BPE writes the control characters and the space of ASCII."""


class Vocabulary:
    """The part of a word that each token of a language model is.

    Args:
        tokens: the tokens in the order of their ids, as a tokenizer file has them.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self._is_byte_level = any(token.startswith(BYTE_SPACE) for token in tokens)
        has_spaces = self._is_byte_level or any(token.startswith(PIECE_SPACE) for token in tokens)
        is_word_piece = not has_spaces and any(token.startswith(WORD_PIECE) for token in tokens)
        self._ends = PUNCTUATION if is_word_piece else WORD_ENDS
        if is_word_piece:
            self._begins = [not token.startswith(WORD_PIECE) for token in tokens]
            texts = [token.removeprefix(WORD_PIECE) for token in tokens]
        else:
            self._begins = [token.startswith((BYTE_SPACE, PIECE_SPACE)) for token in tokens]
            texts = [token.removeprefix(BYTE_SPACE).removeprefix(PIECE_SPACE) for token in tokens]
        ends = self._ends | BYTE_CONTROLS if self._is_byte_level else self._ends
        # Nothing where a token ends a word, as punctuation and special tokens do.
        self._parts = ["" if ends & set(text) else text.lower() for text in texts]
        self._ids: dict[tuple[bool, str], list[int]] = defaultdict(list)
        for token_id, (begins, part) in enumerate(zip(self._begins, self._parts, strict=True)):
            if part:
                self._ids[begins, part].append(token_id)

    def repeating(self, ids: Sequence[int]) -> set[int]:
        """The tokens that would complete a content word that the text of `ids` has already.

        A token that is a whole word counts as that word, though a longer one may begin with it. Ids below 0 are none.
        """
        *finished, last = self.words(ids)
        found: set[int] = set()
        for word in {*finished, last} - FUNCTION_WORDS:
            found.update(self.tokens(word, begins=True))
            if not last:
                found.update(self.tokens(word, begins=False))
        for word in set(finished) - FUNCTION_WORDS:
            if last and word.startswith(last):
                found.update(self.tokens(word[len(last) :], begins=False))
        return found

    def tokens(self, part: str, *, begins: bool) -> Sequence[int]:
        """The tokens that are a part of a word; it begins there, or goes on."""
        return self._ids.get((begins, part), ())

    def words(self, ids: Sequence[int]) -> Iterator[str]:
        """The words of a text, in lower case; the last one may go on, and is empty where it cannot."""
        word = ""
        for token_id in ids:
            part = self._parts[token_id] if 0 <= token_id < len(self._parts) else ""
            if word and (not part or self._begins[token_id]):
                yield word
                word = ""
            word += part
        yield word

    def split(self, text: str) -> list[str]:
        """The words of a text as `words` gives those of its ids."""
        ends = "".join(self._ends)
        words = [word for word in re.split(f"[{re.escape(ends)}]+", text) if word]
        return [(_as_bytes(word) if self._is_byte_level else word).lower() for word in words]


def _as_bytes(word: str) -> str:
    """A word as byte-level BPE writes its bytes: each as a letter, those without one of their own above U+0100."""
    return "".join(BYTE_LETTERS[byte] for byte in word.encode("utf-8", "surrogatepass"))


def _byte_letters() -> list[str]:
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in own else next(others)) for byte in range(256)]


BYTE_LETTERS = _byte_letters()
