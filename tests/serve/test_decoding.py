"""Texts that an engine writes together are those that each has alone, and none waits for the longest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
import torch

from openblip.errors import OptionError
from openblip.generation.options import GenerationOptions
from openblip.images.encoded_image import ReadImage
from openblip.models.model import Model
from openblip.nn.opt import Opt
from openblip.serve.engine import Engine, Waiting
from openblip.serve.limits import Limits
from openblip.serve.model_jobs import Classify, Prompted, Streamed, Write, Written

from .conftest import WAIT

FOREVER = Write(GenerationOptions(num_beams=1, max_new_tokens=100).resolved())
SHORT = Write(GenerationOptions(num_beams=1, max_new_tokens=3).resolved())
WAYS = [
    SHORT,
    Write(GenerationOptions(num_beams=3, max_new_tokens=9).resolved()),
    Write(GenerationOptions(num_beams=1, max_new_tokens=12, repetition_penalty=1.3).resolved(), caption=True),
    Write(GenerationOptions(top_p=0.9, seed=3, max_new_tokens=7).resolved()),
]


class Told:
    """What an engine says of itself."""

    def __init__(self) -> None:
        self.items: list[int] = []
        self.errors: list[BaseException] = []

    def batch(self, model: Model, job: Any, items: list[Any]) -> None:
        self.items.append(len(items))

    def computed(self, job: Any, items: int, seconds: float) -> None: ...

    def waited(self, seconds: float) -> None: ...

    def gave_up(self) -> None: ...

    def failed(self, error: BaseException) -> None:
        self.errors.append(error)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def engine(tiny_model: Model, told: Told) -> Iterator[Engine]:
    made = Engine(tiny_model, Limits(), told, threads=1).start()
    yield made
    made.end(WAIT)


@pytest.fixture
def read(tiny_model: Model, image_paths: list[Path]) -> list[ReadImage]:
    return [tiny_model.components.encoder.read(path) for path in image_paths]


def result(waiting: Waiting) -> Any:
    return waiting.future.result(WAIT)


class Held:
    """An engine's steps, of which each waits until it is let go."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.changed = threading.Condition()
        self.free = False
        self.allowed = self.made = 0
        step = Opt.decode_step

        def held(own: Opt, *given: Any) -> torch.Tensor:
            with self.changed:
                self.changed.wait_for(lambda: self.free or self.allowed > self.made)
                self.made += 1
            return step(own, *given)

        patch.setattr(Opt, "decode_step", held)

    def until(self, condition: Callable[[], bool]) -> None:
        """Let go of one step after the other, none before the last was made."""
        with self.changed:
            while not condition():
                if self.allowed == self.made:
                    self.allowed += 1
                    self.changed.notify_all()
                self.changed.wait(0.02)

    def go(self) -> None:
        with self.changed:
            self.free = True
            self.changed.notify_all()


def assert_same(found: Written, expected: Written) -> None:
    assert [one.tokens for one in found.texts] == [one.tokens for one in expected.texts]
    assert found.texts[0].score == pytest.approx(expected.texts[0].score, abs=2e-5, rel=2e-5)
    assert (found.read, found.longest) == (expected.read, expected.longest)


def test_whatever_comes_is_written_as_alone(tiny_model: Model, engine: Engine, read: list[ReadImage]) -> None:
    asked = [
        (way, Prompted(image, (f"a {word}",))) for way in WAYS for image in read[:3] for word in ("dog", "red ball")
    ]
    expected = [way.run(tiny_model, [item])[0] for way, item in asked]
    waiting = [engine.submit(way, item) for way, item in asked]
    for one, other in zip(waiting, expected, strict=True):
        assert_same(result(one), other)
    assert engine.is_idle or engine.call(lambda model: None).result(WAIT) is None


def test_a_short_text_does_not_wait_for_a_long_one(
    engine: Engine, read: list[ReadImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    begun = threading.Event()
    long = engine.submit(FOREVER, Prompted(read[0], ("a",)), begun=begun.set)
    assert begun.wait(WAIT)
    short = engine.submit(SHORT, Prompted(read[1], ("a dog",)))
    labels = engine.submit(Classify(("dog", "ball"), ("a {}",)), read[2])
    held.until(lambda: short.future.done() and labels.future.done())
    assert len(result(short).texts[0].tokens) <= 3 and len(result(labels)) == 2
    assert not long.future.done()
    held.go()
    assert result(long).texts


def test_the_same_text_is_written_once(
    engine: Engine, read: list[ReadImage], told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    item = Prompted(read[0], ("a red",))
    waiting = [engine.submit(FOREVER, item)]
    rows: list[int] = []
    for _ in range(3):
        waiting.append(engine.submit(FOREVER, Prompted(read[0], ("a red",))))
    other = engine.submit(FOREVER, Prompted(read[0], ("a dog",)))
    step = Opt.logits
    monkeypatch.setattr(Opt, "logits", lambda own, hidden: rows.append(len(hidden)) or step(own, hidden))
    held.go()
    texts = {result(one).texts[0].tokens for one in waiting}
    assert len(texts) == 1 and result(other).texts[0].tokens not in texts
    assert max(rows) <= 2


def test_streams_are_written_with_the_rest(tiny_model: Model, engine: Engine, read: list[ReadImage]) -> None:
    pieces: list[list[str]] = [[], [], []]
    streams = [
        engine.submit(way, Prompted(image, ("a photo of",)), put=own.append)
        for way, image, own in zip((WAYS[0], WAYS[2], WAYS[3]), read, pieces, strict=False)
    ]
    text = engine.submit(WAYS[1], Prompted(read[0], ("a photo of",)))
    for way, stream, image, own in zip((WAYS[0], WAYS[2], WAYS[3]), streams, read, pieces, strict=False):
        done = result(stream)
        (alone,) = way.run(tiny_model, [Prompted(image, ("a photo of",))])
        assert isinstance(done, Streamed) and "".join(own) == alone.texts[0].text
        assert (done.written, done.read, done.finished) == (alone.written, alone.read, alone.finished(alone.texts[0]))
    assert_same(result(text), WAYS[1].run(tiny_model, [Prompted(read[0], ("a photo of",))])[0])


def test_what_nobody_wants_any_more_ends(
    engine: Engine, read: list[ReadImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    begun = [threading.Event() for _ in range(3)]
    gone = engine.submit(FOREVER, Prompted(read[0], ("a",)), begun=begun[0].set)
    kept = engine.submit(FOREVER, Prompted(read[0], ("a",)), begun=begun[1].set)
    stream = engine.submit(FOREVER, Prompted(read[1], ("a",)), put=lambda piece: None, begun=begun[2].set)
    held.until(lambda: all(one.is_set() for one in begun))
    gone.leave()
    stream.leave()
    held.go()
    for one in (gone, stream):
        with pytest.raises(CancelledError):
            result(one)
    assert result(kept).texts


def test_a_failing_step_costs_streams_alone(
    engine: Engine, read: list[ReadImage], told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    begun = threading.Event()
    stream = engine.submit(FOREVER, Prompted(read[1], ("a",)), put=lambda piece: None, begun=begun.set)
    assert begun.wait(WAIT)
    texts = [engine.submit(SHORT, Prompted(image, ("a",))) for image in read[:2]]

    def fail(*_: Any) -> torch.Tensor:
        raise MemoryError("full")

    from openblip.nn.slots import CacheSlots

    monkeypatch.setattr(CacheSlots, "step", fail)
    held.go()
    with pytest.raises(MemoryError):
        result(stream)
    assert all(result(one).texts for one in texts)
    assert any(isinstance(error, MemoryError) for error in told.errors)


def test_one_that_is_too_long_fails_alone(engine: Engine, read: list[ReadImage]) -> None:
    good, long = (engine.submit(SHORT, Prompted(read[0], (prompt,))) for prompt in ("a", "dog " * 300))
    with pytest.raises(OptionError, match="positions"):
        result(long)
    assert result(good).texts


def test_no_more_are_taken_than_the_limits_say(
    tiny_model: Model, read: list[ReadImage], told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    engine = Engine(tiny_model, Limits(batch=2, streams=1), told, threads=1).start()
    begun: list[int] = []

    def note(number: int) -> Callable[[], None]:
        return lambda: begun.append(number)

    waiting = [engine.submit(FOREVER, Prompted(image, ("a",)), begun=note(number)) for number, image in enumerate(read)]
    held.until(lambda: len(begun) >= 2 and held.made > 20)
    other = engine.call(lambda model: None)
    held.until(other.done)
    assert begun == [0, 1]
    held.go()
    assert all(result(one).texts for one in waiting)
    assert begun == [0, 1, 2, 3, 4]
    engine.end(WAIT)
