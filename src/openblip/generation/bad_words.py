"""Texts in which certain words do not occur."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from openblip.generation.repeated_words import Vocabulary


class BadWords:
    """Words and phrases that a text must not have, in any capitals.

    Args:
        texts: "dog" forbids this word and no other, "a photo of" the three words behind one another.
    """

    def __init__(self, vocabulary: Vocabulary, texts: Sequence[str]) -> None:
        self._vocabulary = vocabulary
        phrases = dict.fromkeys(tuple(vocabulary.split(text)) for text in texts)
        self._words = [phrase[0] for phrase in phrases if len(phrase) == 1]
        self._phrases = [phrase for phrase in phrases if len(phrase) > 1]
        self._always = {token for word in self._words for token in vocabulary.tokens(word, begins=True)}

    def completing(self, ids: Sequence[int]) -> set[int]:
        """The tokens that would complete one of the words behind the text of `ids`.

        A token that is a whole word counts as that word, though a longer one may begin with it. Ids below 0 are none.
        """
        *finished, last = self._vocabulary.words(ids)
        found = set(self._always)
        for word in self._words:
            if word.startswith(last):
                found.update(self._vocabulary.tokens(word[len(last) :], begins=False))
        before = [*finished, last] if last else finished
        for *front, word in self._phrases:
            if before[-len(front) :] == front:
                found.update(self._vocabulary.tokens(word, begins=True))
            if finished[-len(front) :] == front and word.startswith(last):
                found.update(self._vocabulary.tokens(word[len(last) :], begins=False))
        return found


@lru_cache(maxsize=4)
def bad_words(vocabulary: Vocabulary, texts: tuple[str, ...]) -> BadWords:
    """Bad words of a vocabulary, which are prepared once for all texts of a model."""
    return BadWords(vocabulary, texts)
