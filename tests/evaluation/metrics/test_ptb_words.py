"""Splitting words as Java's tokenizer does: what it was seen to do, and, where there is Java, what it does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openblip.evaluation.metrics import java
from openblip.evaluation.metrics.ptb_words import split_words

FIXTURE = Path(__file__).parents[2] / "fixtures/captions/coco.json"

SEEN = {
    'A dog\'s ball, (red) -- "wow"!': "a dog 's ball -lrb- red -rrb- wow",
    "don't can't won't I'm you're": "do n't ca n't wo n't i 'm you 're",
    "cannot gonna wanna gotta lemme": "can not gon na wan na got ta lem me",
    "the 1990's, '70s style": "the 1990 's '70s style",
    "mother-in-law and a 5-year-old": "mother-in-law and a 5-year-old",
    "$5.00 #1 50% 3/4 10:30 10,000 6:30pm": "$ 5.00 # 1 50 % 3/4 10:30 10,000 6:30 pm",
    "Mr. Smith of the U.S. team at 3 p.m.": "mr. smith of the u.s. team at 3 p.m.",
    "No. 5 is it, no.": "no. 5 is it no",
    "wait... what… really?!": "wait what really ?!",
    "café “quoted” it’s —": "café quoted it 's",
    "red,white and blue; black/white": "red white and blue black/white",
    "rock 'n' roll ma'am o'clock goin'": "rock 'n' roll ma'am o'clock goin",
    "an AT&T phone, an at&t phone": "an at&t phone an at & t phone",
    "-half eaten- a - b": "half eaten a b",
    "": "",
    " . ": "",
}
"""Texts, and the words that Stanford's PTB tokenizer 3.4.1 leaves of them."""

needs_java = pytest.mark.skipif(not java.has_java(), reason="Java is not installed")


def test_words_as_seen() -> None:
    assert {text: " ".join(split_words(text)) for text in SEEN} == SEEN


def test_words_of_coco() -> None:
    fixture = json.loads(FIXTURE.read_text(encoding="utf-8"))
    for name, references in fixture["references"].items():
        assert [" ".join(split_words(text)) for text in references] == fixture["words"][name]


@needs_java
def test_java_does_what_was_seen() -> None:
    assert java.ptb_words(list(SEEN)) == list(SEEN.values())


@needs_java
def test_separators_inside_a_text_do_not_shift_the_others() -> None:
    texts = ["a\nb", "c\u2028d", "", "e\x85f\rg", "\u00e9t\u00e9"]
    assert java.ptb_words(texts) == ["a b", "c d", "", "e f g", "\u00e9t\u00e9"]


@given(st.text(max_size=80))
def test_any_text_gives_words_without_spaces(text: str) -> None:
    words = split_words(text)
    assert all(word == word.lower() and word.split() == [word] for word in words)
    assert split_words(text.upper().lower()) == split_words(text.upper().lower())


def test_long_texts_are_not_slow() -> None:
    for text in ("a" * 20_000, "a-" * 10_000, "a." * 10_000, "'" * 20_000, "1," * 10_000, "<a" * 10_000):
        split_words(text)


def test_without_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(Exception, match="install a Java runtime"):
        java.ptb_words(["a"])
