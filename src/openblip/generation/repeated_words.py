"""Texts in which no content word occurs twice."""

from __future__ import annotations

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
WORD_ENDS = frozenset(string.punctuation + string.whitespace + PIECE_SPACE) - frozenset("-'")
"""Characters that no word has in it."""
BYTE_CONTROLS = frozenset(map(chr, range(0x100, 0x122)))
"""How byte-level BPE writes the control characters and the space of ASCII."""


class Vocabulary:
    """The part of a word that each token of a language model is.

    Args:
        tokens: the tokens in the order of their ids, as a tokenizer file has them.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        self._begins = [token.startswith((BYTE_SPACE, PIECE_SPACE)) for token in tokens]
        byte_level = any(token.startswith(BYTE_SPACE) for token in tokens)
        ends = WORD_ENDS | BYTE_CONTROLS if byte_level else WORD_ENDS
        self._parts = [_part(token, ends) for token in tokens]
        self._ids: dict[tuple[bool, str], list[int]] = defaultdict(list)
        for token_id, (begins, part) in enumerate(zip(self._begins, self._parts, strict=True)):
            if part:
                self._ids[begins, part].append(token_id)

    def repeating(self, ids: Sequence[int]) -> set[int]:
        """The tokens that would complete a content word that the text of `ids` has already.

        A token that is a whole word counts as that word, though a longer one may begin with it. Ids below 0 are none.
        """
        *finished, last = self._words(ids)
        found: set[int] = set()
        for word in {*finished, last} - FUNCTION_WORDS:
            found.update(self._ids.get((True, word), ()))
            if not last:
                found.update(self._ids.get((False, word), ()))
        for word in set(finished) - FUNCTION_WORDS:
            if last and word.startswith(last):
                found.update(self._ids.get((False, word[len(last) :]), ()))
        return found

    def _words(self, ids: Sequence[int]) -> Iterator[str]:
        """The words of a text, in lower case; the last one may go on, and is empty where it cannot."""
        word = ""
        for token_id in ids:
            part = self._parts[token_id] if 0 <= token_id < len(self._parts) else ""
            if word and (not part or self._begins[token_id]):
                yield word
                word = ""
            word += part
        yield word


def _part(token: str, ends: frozenset[str]) -> str:
    """What a token adds to a word, in lower case; nothing where it ends one, as punctuation and special tokens do."""
    text = token.removeprefix(BYTE_SPACE).removeprefix(PIECE_SPACE)
    return "" if ends & set(text) else text.lower()
