"""Streamed text is the text, piece by piece, and whoever stops listening leaves nothing behind."""

from __future__ import annotations

import random
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models
from torch import Tensor

from openblip.errors import ImageError, OptionError
from openblip.models.model import Model
from openblip.nn.kv_cache import KeyValueCache
from openblip.nn.opt import Opt
from openblip.text import NO_CHARACTER, Pieces, Tokenizer, clean_generated, text_pieces
from openblip.training.init.vocabulary import train_decoder_tokenizer

from .checkpoints.theirs import t5_words

QUESTION = "what color is the ball?"
WAYS: list[dict[str, Any]] = [{}, {"max_new_tokens": 1}, {"max_new_tokens": 24, "min_new_tokens": 24}]
WAYS += [{"top_p": 0.9, "seed": seed, "max_new_tokens": 16} for seed in range(3)]


def whole_way(options: dict[str, Any]) -> dict[str, Any]:
    """The same text in one piece: greedily, unless it is drawn."""
    return options if "top_p" in options else {"num_beams": 1, **options}


def drained(pieces: Pieces) -> tuple[list[str], str]:
    """All pieces, and what the iterator returns."""
    told = []
    while True:
        try:
            told.append(next(pieces))
        except StopIteration as ended:
            return told, ended.value


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_pieces_join_to_the_text(tiny_model: Model, image_paths: list[Path], options: dict[str, Any]) -> None:
    several = 0
    for image_path in image_paths[:3]:
        chat, other = tiny_model.chat(image_path), tiny_model.chat(image_path)
        whole = whole_way(options)
        for streamed, expected in [
            (
                tiny_model.ask(image_path, QUESTION, stream=True, **options),
                tiny_model.ask(image_path, QUESTION, **whole),
            ),
            (tiny_model.caption(image_path, stream=True, **options), tiny_model.caption(image_path, **whole)),
            (
                tiny_model.caption(image_path, prompt="two children", stream=True, **options),
                tiny_model.caption(image_path, prompt="two children", **whole),
            ),
            (chat.ask(QUESTION, stream=True, **options), other.ask(QUESTION, **whole)),
        ]:
            told, returned = drained(streamed)
            assert "".join(told) == returned == expected
            assert all(told)
            several += len(told) > 1
        # The second turn is asked behind the first, which was streamed.
        assert chat.turns == other.turns != []
        told, returned = drained(chat.ask("why", stream=True, **options))
        assert "".join(told) == other.ask("why", **whole) == chat.turns[-1][1]
    assert several or options.get("max_new_tokens") == 1


def steps_of(monkeypatch: pytest.MonkeyPatch, fail_at: int | None = None) -> list[int]:
    """Grows with every token that the language model reads behind a prompt; it may fail at one."""
    steps: list[int] = []
    decode_step = Opt.decode_step

    def counted(self: Opt, *given: Any) -> Tensor:
        steps.append(len(steps))
        if len(steps) == fail_at:
            raise RuntimeError("it broke")
        return decode_step(self, *given)

    monkeypatch.setattr(Opt, "decode_step", counted)
    return steps


def test_pieces_come_as_tokens_are_chosen(
    tiny_model: Model, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = steps_of(monkeypatch)
    pieces = tiny_model.ask(image_paths[0], QUESTION, stream=True, max_new_tokens=40, min_new_tokens=40)
    assert steps == []
    seen = []
    for _ in pieces:
        seen.append(len(steps))
    assert seen == sorted(set(seen)) and len(seen) > 5
    assert seen[0] < 8 and len(steps) == 39


def test_what_is_wrong_is_said_at_once(tiny_model: Model, image_paths: list[Path], tmp_path: Path) -> None:
    model: Any = tiny_model  # as a caller who minds no types
    looks = len(model.image_cache)
    for call, error, words in [
        (
            lambda: model.ask(image_paths[0], QUESTION, stream=True, num_beams=2),
            OptionError,
            "a beam search chooses its text at",
        ),
        (lambda: model.caption(image_paths[0], stream=True, num_beams=5), OptionError, "give num_beams=1, or sample"),
        (lambda: model.ask(image_paths[0], [QUESTION], stream=True), OptionError, "one text about one image"),
        (lambda: model.caption(image_paths[:1], stream=True), OptionError, "one caption of one image"),
        (lambda: model.caption(image_paths[0], stream=True, num_captions=2), OptionError, "one caption of one image"),
        (lambda: model.ask(image_paths[0], "?", stream=True), OptionError, "the question is empty"),
        (lambda: model.ask(image_paths[0], QUESTION, stream=True, colour=2), OptionError, "unknown option colour"),
        (lambda: model.ask(image_paths[0], QUESTION, stream=True, max_new_tokens=999), OptionError, "positions"),
        (lambda: model.caption(tmp_path / "none.jpg", stream=True), ImageError, "none.jpg"),
    ]:
        with pytest.raises(error, match=words):
            call()
    assert len(model.image_cache) <= looks + 1


# Nothing is left behind


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[int, int]]:
    """Key-value caches that were made since and are still there, and threads; without a garbage collection."""
    made: weakref.WeakSet[KeyValueCache] = weakref.WeakSet()
    begin = KeyValueCache.__init__

    def noted(self: KeyValueCache, *given: Any) -> None:
        begin(self, *given)
        made.add(self)

    monkeypatch.setattr(KeyValueCache, "__init__", noted)
    return lambda: (len(made), threading.active_count())


class ListenerError(Exception):
    pass


def close(pieces: Pieces) -> None:
    next(pieces)
    pieces.close()
    assert list(pieces) == []


def abandon(pieces: Pieces) -> None:
    next(pieces)


def never_begin(pieces: Pieces) -> None:
    del pieces


def fail(pieces: Pieces) -> None:
    def listen() -> None:
        for _ in pieces:
            raise ListenerError

    with pytest.raises(ListenerError):
        listen()


def throw(pieces: Pieces) -> None:
    next(pieces)
    with pytest.raises(ListenerError):
        pieces.throw(ListenerError())


@pytest.mark.parametrize("stop", [close, abandon, never_begin, fail, throw])
@pytest.mark.parametrize("front", ["ask", "caption", "chat"])
def test_whoever_stops_listening_leaves_nothing(
    tiny_model: Model,
    image_paths: list[Path],
    left: Callable[[], tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
    stop: Callable[[Pieces], None],
    front: str,
) -> None:
    long: dict[str, Any] = {"max_new_tokens": 40, "min_new_tokens": 40}
    chat = tiny_model.chat(image_paths[1])
    begin: dict[str, Callable[[], Pieces]] = {
        "ask": lambda: tiny_model.ask(image_paths[1], QUESTION, stream=True, **long),
        "caption": lambda: tiny_model.caption(image_paths[1], stream=True, **long),
        "chat": lambda: chat.ask(QUESTION, stream=True, **long),
    }
    for _ in range(3):  # from the second on, the image's prefix is there
        chat.turns.clear()
        expected = "".join(begin[front]())
    chat.turns.clear()
    before = left()
    for _ in range(3):
        stop(begin[front]())
        assert chat.turns == []
    assert left() == before
    pieces = begin[front]()
    next(pieces)
    assert left()[0] == before[0] + 1, "the test would not see what is left"
    # Meanwhile others are served, from another thread, too.
    said: list[str] = []
    other = threading.Thread(target=lambda: said.append("".join(begin[front]())))
    other.start()
    other.join(timeout=600)
    chat.turns.clear()
    assert said == [expected]
    steps = steps_of(monkeypatch)
    pieces.close()
    assert steps == []
    assert left() == before


def test_a_failure_halfway_leaves_nothing(
    tiny_model: Model, image_paths: list[Path], left: Callable[[], tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = tiny_model.chat(image_paths[2])
    for _ in range(3):
        expected = "".join(chat.ask(QUESTION, stream=True, max_new_tokens=30, min_new_tokens=30))
        chat.turns.clear()
    before = left()
    with monkeypatch.context() as patch:
        steps_of(patch, fail_at=20)
        told: list[str] = []
        with pytest.raises(RuntimeError, match="it broke"):
            told.extend(chat.ask(QUESTION, stream=True, max_new_tokens=30, min_new_tokens=30))
    assert expected.startswith("".join(told)) and told != []
    assert (left(), chat.turns) == (before, [])
    assert "".join(chat.ask(QUESTION, stream=True, max_new_tokens=30, min_new_tokens=30)) == expected


# Ids to pieces

SPEECH = "Käse kostet 3 €, sagt 王さん 🙂👩‍👩‍👧: ¡olé!\n\tдва\u00a0мяча ... Ω\u0301 "


def byte_level() -> Tokenizer:
    """Tokens are bytes, and pieces of words of several."""
    return Tokenizer(train_decoder_tokenizer(["a red ball", "two 王さん"], 300), "</s>", "<pad>")


def byte_fallback() -> Tokenizer:
    """As SentencePiece does it: words, and bytes for what is none."""
    words = [
        "<pad>",
        "</s>",
        "<unk>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        "▁red",
        "ball",
        "▁ball",
        "€",
        "s",
    ]
    fast = FastTokenizer(models.BPE({word: index for index, word in enumerate(words)}, [], byte_fallback=True))
    fast.add_special_tokens(["<pad>", "</s>", "<unk>"])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    fast.decoder = decoders.Sequence(steps)
    return Tokenizer(fast, "</s>", "<pad>")


def t5_pieces() -> Tokenizer:
    return Tokenizer(t5_words(), "</s>", "<pad>")


TOKENIZERS = {"bytes": byte_level(), "fallback": byte_fallback(), "t5": t5_pieces()}


def joined(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    told, returned = drained(text_pieces(tokenizer, iter(ids)))
    whole = clean_generated(tokenizer.decode(ids))
    assert returned == whole
    assert "".join(told) == whole
    return told


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_ids_join_to_their_text(kind: str, data: st.DataObject) -> None:
    """Broken characters, special tokens and ids beyond the vocabulary included."""
    tokenizer = TOKENIZERS[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=30))
    told = joined(tokenizer, ids)
    assert all(piece and not piece.endswith(" ") for piece in told)
    assert not "".join(told).startswith(" ")


@given(text=st.text(st.characters(codec="utf-8", exclude_characters=NO_CHARACTER), max_size=40))
@settings(max_examples=150, deadline=None)
def test_characters_come_whole(text: str) -> None:
    for tokenizer in (TOKENIZERS["bytes"], TOKENIZERS["fallback"]):
        for spoken in (text, SPEECH):
            ids = tokenizer.encode(spoken)
            assert NO_CHARACTER not in "".join(joined(tokenizer, ids)) or NO_CHARACTER in spoken


def test_nothing_that_can_be_told_is_held_back() -> None:
    tokenizer = TOKENIZERS["bytes"]
    read: list[int] = []
    told: list[str] = []

    def watched() -> Iterator[int]:
        for token in tokenizer.encode("a red ball € and 王さん"):
            yield token
            read.append(token)
            # All whole words and characters were told before the next token is asked for.
            assert "".join(told) == clean_generated(tokenizer.decode(read).rstrip(NO_CHARACTER))

    for piece in text_pieces(tokenizer, watched()):
        told.append(piece)
    assert len(told) == 8


def test_random_tokens_of_a_seed_are_told_alike() -> None:
    rng = random.Random(1)
    for tokenizer in TOKENIZERS.values():
        joined(tokenizer, [rng.randrange(tokenizer.vocab_size) for _ in range(400)])
