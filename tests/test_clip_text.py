"""CLIP's words: ids are those of transformers' CLIPTokenizer, texts are cleaned as OpenAI's code does."""

from __future__ import annotations

import pytest

from openblip.errors import CheckpointError
from openblip.text import CLIP_END, CLIP_START, ClipText, Tokenizer
from tests.checkpoints.clip_theirs import TEXTS, clip_tokenizer

THEIRS = clip_tokenizer()
WORDS = ClipText(Tokenizer(THEIRS.backend_tokenizer, CLIP_START, CLIP_END))


@pytest.mark.parametrize("text", [*TEXTS, "Ünïcode, 3.5 KM", "日本 🐱", "I'LL \t\n we've", "__#tag!!"])
def test_ids_are_those_of_transformers(text: str) -> None:
    theirs = THEIRS(text, truncation=True, max_length=77)["input_ids"]
    assert WORDS.encode(WORDS.clean(text)) == theirs
    assert len(theirs) <= 77 and theirs[-1] == WORDS.end_id


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("it's   the dog&amp;amp;cat's\n2nd house ", "it's the dog&cat's 2nd house"),
        ("“Curly” ‘quotes’, don’t", "\"Curly\" 'quotes', don't"),
        ("ＦＵＬＬ width, ﬁne oﬃce\u00a0x\x00\ufeff", "FULL width, fine office x"),
        ("naïve CAFÉ … — 日本", "naïve CAFÉ … — 日本"),
    ],
)
def test_print_becomes_typewriting(text: str, clean: str) -> None:
    """As ftfy and html.unescape leave them, checked on their own."""
    assert WORDS.clean(text) == clean


def test_an_end_in_a_text_ends_it() -> None:
    """OpenAI's code reads a text at its first end."""
    assert WORDS.encode(f"a dog{CLIP_END} a cat") == WORDS.encode("a dog")


def test_texts_of_a_batch_are_filled_up_behind_their_ends() -> None:
    ids, mask = WORDS.batch(["a dog", "two children play", ""])
    for row, seen, text in zip(ids, mask, ["a dog", "two children play", ""], strict=True):
        assert row[seen].tolist() == WORDS.encode(text) and not seen[seen.sum() :].any()


def test_a_vocabulary_without_marks_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no token '<start>'"):
        Tokenizer(THEIRS.backend_tokenizer, "<start>", CLIP_END)
