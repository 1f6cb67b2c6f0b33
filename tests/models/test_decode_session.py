"""What is asked of a session at any time is answered as it is alone, whatever else is being written."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import openblip
from openblip import Answered, Captioned, CheckpointError, DecodeEvent, DecodeSession, Model, OptionError
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.openblip.folder import save_native
from openblip.devices import Placement
from openblip.models.load import model_of
from openblip.nn.blip2 import Blip2Network
from openblip.nn.opt import Opt
from openblip.nn.t5 import T5Config
from openblip.results import GeneratedText
from tests.conftest import lively

from .blip_models import Make, small_parts

QUESTIONS = ["what is it?", "how many children play with the red ball on the beach?", "is it a dog", "where?"]
WAYS: list[dict[str, Any]] = [
    {},
    {"num_beams": 1},
    {"num_beams": 3, "length_penalty": 0.5, "max_new_tokens": 12},
    {"num_beams": 1, "max_new_tokens": 3},
    {"top_p": 0.9, "seed": 5, "max_new_tokens": 14},
    {"temperature": 1.5, "top_k": 20, "seed": 2},
    {"num_beams": 1, "repetition_penalty": 1.4, "max_new_tokens": 12},
    {"num_beams": 2, "no_repeat_ngram_size": 2, "min_new_tokens": 4, "max_new_tokens": 10},
    {"num_beams": 1, "bad_words": ["dog", "red ball"], "no_repeat_words": True},
]


@pytest.fixture(scope="module")
def t5_parts(tiny_parts: ModelParts) -> ModelParts:
    """The tiny model with a T5."""
    vocabulary = tiny_parts.network.config.language.vocab_size
    torch.manual_seed(5)
    sizes = T5Config(vocabulary, 32, 2, 2, 2, 16, 64, relative_buckets=8, relative_reach=12)
    return replace(tiny_parts, network=lively(Blip2Network(replace(tiny_parts.network.config, language=sizes))))


@pytest.fixture(scope="module")
def model_in(
    tiny_parts: ModelParts, t5_parts: ModelParts, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Model]:
    """A model by its kind, in "float64", "float32" or "int8"."""

    def model(kind: str, dtype: str) -> Model:
        folder = tmp_path_factory.mktemp(kind)
        parts = {"opt": tiny_parts, "t5": t5_parts}.get(kind) or small_parts(kind, folder / "parts")
        if dtype == "float64":
            copied = replace(parts, network=copy.deepcopy(parts.network).double())
            return model_of(copied, Placement(torch.device("cpu"), torch.float64))
        save_native(parts, folder / "saved")
        return openblip.load(folder / "saved", device="cpu", dtype=dtype)

    return model


class Asked:
    """Something that is asked of a session, and what it has to say."""

    def __init__(self, rng: random.Random, model: Model, images: list[Path]) -> None:
        self.image = rng.choice(images)
        self.options = rng.choice(WAYS)
        self.stream = self.options.get("num_beams", 1 if "seed" in self.options else 9) == 1 and rng.random() < 0.6
        self.questions = rng.sample(QUESTIONS, 1 if self.stream else rng.randint(1, 4))
        self.kind = rng.choice([one for one in ("caption", "ask", "ask") if one in model.abilities])
        self.expected: Captioned | Answered
        if self.kind == "caption":
            count = 1 if self.stream else rng.randint(1, 2)
            if self.options.get("num_beams") == 1:
                count = 1
            self.extra: dict[str, Any] = {"num_captions": count, "prompt": rng.choice([None, "a photo of"])}
            (self.expected,) = model.caption_many(self.image, **self.extra, **self.options)
        else:
            self.extra = {}
            (self.expected,) = model.ask_many([(self.image, self.questions)], **self.options)

    def join(self, session: DecodeSession) -> int:
        given = {**self.extra, **self.options, "stream": self.stream}
        if self.kind == "caption":
            return session.caption(self.image, **given)
        return session.ask(self.image, self.questions, **given)


def texts_of(result: Captioned | Answered) -> tuple[GeneratedText, ...]:
    return result.captions if isinstance(result, Captioned) else result.answers


def finish(session: DecodeSession, others: Iterable[Callable[[], object]] = ()) -> dict[int, list[DecodeEvent]]:
    """All events by id, while others come in between."""
    found: dict[int, list[DecodeEvent]] = {}
    arrivals = iter(others)
    for _ in range(2000):
        for event in session.step():
            found.setdefault(event.id, []).append(event)
        arrive = next(arrivals, None)
        if arrive is not None:
            arrive()
        elif not session.running:
            return found
    raise AssertionError("it does not end")


def assert_result(events: list[DecodeEvent], expected: Captioned | Answered, tolerance: float) -> None:
    *pieces, last = events
    result = last.result
    assert result is not None and type(result) is type(expected) and result.source == expected.source
    assert not any(event.result for event in pieces)
    found, wanted = texts_of(result), texts_of(expected)
    assert [one.tokens for one in found] == [one.tokens for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.text == other.text
        assert one.score == pytest.approx(other.score, abs=tolerance, rel=tolerance)
        assert one.log_probs == pytest.approx(other.log_probs, abs=tolerance, rel=tolerance)
    if pieces:
        assert "".join(event.piece for event in pieces) == found[0].text


TOLERANCE = {"float64": 1e-6, "float32": 2e-5, "int8": 1e-2}
"""Of log-probabilities, by how exactly batches of different sizes compute: products round by the number of their rows,
and inputs that differ in the last digit may become another whole number of 8 bits."""


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("kind", ["opt", "t5", "caption", "answer"])
def test_whatever_comes_and_goes(
    kind: str, dtype: str, model_in: Callable[[str, str], Model], image_paths: list[Path]
) -> None:
    model = model_in(kind, dtype)
    rng = random.Random(kind)
    asked = [Asked(rng, model, image_paths) for _ in range(10 if dtype == "float64" else 7)]
    model.image_cache.clear()
    session = model.decode_session(max_texts=rng.choice([5, 30]))
    ids: list[int] = []

    def arrivals() -> Iterator[Callable[[], object]]:
        for one in asked:
            yield lambda one=one: ids.append(one.join(session))
            yield from [lambda: None] * rng.choice([0, 0, 1, 5])

    found = finish(session, arrivals())
    assert sum(one.stream for one in asked) and sorted(found) == ids
    for id, one in zip(ids, asked, strict=True):
        assert_result(found[id], one.expected, TOLERANCE[dtype])
    assert session.texts == 0 and session.nbytes == 0


def test_an_image_that_cannot_be_read_disturbs_nobody(
    tiny_model: Model, image_paths: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    session = tiny_model.decode_session()
    good = session.caption(image_paths[0])
    bad = session.caption(tmp_path / "bad.png", stream=True, num_beams=1)
    asked = session.ask(tmp_path / "none.png", ["what is it?", "where?"])
    found = finish(session)
    assert_result(found[good], next(tiny_model.caption_many(image_paths[0])), 2e-5)
    ((event,), (other,)) = found[bad], found[asked]
    assert isinstance(event.result, Captioned) and event.result.error is event.error
    assert "bad.png" in str(event.error) and "bad.png" in event.result.source
    assert isinstance(other.result, Answered) and other.result.questions == ("what is it?", "where?")
    assert other.result.error is not None and not other.result.answers


def test_a_prompt_that_is_too_long_is_an_event_and_a_wrong_option_an_error(
    tiny_model: Model, image_paths: list[Path]
) -> None:
    session = tiny_model.decode_session()
    good = session.ask(image_paths[0], QUESTIONS)
    long = session.generate(image_paths[1], ["a", "dog " * 300])
    with pytest.raises(OptionError, match="did you mean num_beams"):
        session.caption(image_paths[0], beams=3)  # type: ignore[call-arg]
    with pytest.raises(OptionError, match="cannot be streamed"):
        session.caption(image_paths[0], num_beams=3, stream=True)
    with pytest.raises(OptionError, match="one text about one image can be streamed"):
        session.ask(image_paths[0], QUESTIONS, stream=True)
    with pytest.raises(OptionError, match="the question is empty"):
        session.ask(image_paths[0], " ")
    with pytest.raises(OptionError, match="nothing is asked"):
        session.ask(image_paths[0], [])
    with pytest.raises(OptionError, match="max_texts"):
        tiny_model.decode_session(max_texts=0)
    found = finish(session)
    assert found.keys() == {good, long}
    (event,) = found[long]
    assert isinstance(event.error, OptionError) and event.result is None and "positions" in str(event.error)
    assert len(found[good]) == 1


def test_an_image_of_another_model_is_refused_at_once(tiny_model: Model, make: Make, image_paths: list[Path]) -> None:
    session = tiny_model.decode_session()
    with pytest.raises(OptionError, match="another model has encoded"):
        session.caption(make("caption").encode_image(image_paths[0]))
    assert not session.running
    encoded = session.caption(tiny_model.encode_image(image_paths[0]))
    assert_result(finish(session)[encoded], next(tiny_model.caption_many(image_paths[0])), 2e-5)


def test_what_is_cancelled_says_no_more(tiny_model: Model, image_paths: list[Path]) -> None:
    session = tiny_model.decode_session(max_texts=3)
    several = session.ask(image_paths[0], QUESTIONS, num_beams=2)
    streamed = session.caption(image_paths[1], num_beams=1, stream=True, min_new_tokens=8)
    waiting = session.caption(image_paths[2])
    unread = session.caption(image_paths[3])
    assert session.cancel(unread) and not session.cancel(unread)
    seen: set[int] = set()
    for _ in range(4):
        seen |= {event.id for event in session.step()}
    assert session.cancel(several) and session.cancel(waiting)
    after = finish(session)
    assert after.keys() == {streamed} and session.nbytes == 0
    assert "".join(event.piece for event in after[streamed]) == after[streamed][-1].result.text  # type: ignore[union-attr]
    assert seen <= {several}


def test_images_are_encoded_once_and_questions_share_them(
    tiny_model: Model, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model.image_cache.clear()
    encoded: list[int] = []
    encoder = tiny_model.components.encoder
    encode = encoder.encode_pixels
    monkeypatch.setattr(encoder, "encode_pixels", lambda pixels: encoded.append(len(pixels)) or encode(pixels))
    prompts: list[tuple[int, int]] = []
    forward = Opt.forward

    def noted(self: Opt, embeds: torch.Tensor, *others: Any) -> torch.Tensor:
        prompts.append((embeds.shape[0], embeds.shape[1]))
        return forward(self, embeds, *others)

    monkeypatch.setattr(Opt, "forward", noted)
    session = tiny_model.decode_session()
    for question in QUESTIONS[:3]:
        session.ask(image_paths[0], question)
    session.step()
    assert encoded == [1]
    visual = tiny_model.network.config.qformer.num_queries
    assert prompts[0] == (1, visual) and [rows for rows, _ in prompts] == [1, 3]
    session.ask(image_paths[0], QUESTIONS[3])
    session.ask(image_paths[1], QUESTIONS[3])
    session.step()
    session.step()
    assert encoded == [1, 1]
    assert [rows for rows, _ in prompts] == [1, 3, 1, 1]
    finish(session)


def test_after_an_error_the_session_goes_on_with_what_comes_next(
    tiny_model: Model, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = tiny_model.decode_session()
    session.caption(image_paths[0])
    session.step()

    def fail(*_: Any) -> torch.Tensor:
        raise MemoryError("full")

    with monkeypatch.context() as patch:
        patch.setattr(Opt, "decode_step", fail)
        with pytest.raises(MemoryError):
            session.step()
    assert session.running == []
    again = session.caption(image_paths[0])
    assert_result(finish(session)[again], next(tiny_model.caption_many(image_paths[0])), 2e-5)


def test_prompts_go_on_word_for_word(tiny_model: Model, make: Make, image_paths: list[Path]) -> None:
    session = tiny_model.decode_session()
    id = session.generate(image_paths[0], "a red", num_beams=1)
    (event,) = finish(session)[id]
    assert isinstance(event.result, Answered) and event.result.questions == ("a red",)
    assert event.result.answers[0].text == tiny_model.generate(image_paths[0], "a red", num_beams=1)
    captioner = make("caption")
    session = captioner.decode_session()
    id = session.generate(image_paths[0], "a picture of")
    (event,) = finish(session)[id]
    assert isinstance(event.result, Answered)
    assert event.result.answers[0].text == captioner.generate(image_paths[0], "a picture of")
    with pytest.raises(CheckpointError, match="no language model to answer with"):
        session.ask(image_paths[0], "what is it?")
    with pytest.raises(CheckpointError, match="no language model"):
        make("match").decode_session()
