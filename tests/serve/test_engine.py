"""What waits goes together, once; what nobody wants any more is passed over; one fault is nobody else's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

from openblip.errors import OptionError
from openblip.images.encoded_image import ReadImage
from openblip.models.model import Model
from openblip.serve.batch_size import BatchSizes
from openblip.serve.engine import Engine
from openblip.serve.limits import Limits
from openblip.serve.model_jobs import MatchTexts, Prompted, Streamed, Write
from openblip.serve.options import write_job

from .conftest import WAIT


class Seen:
    """What the engine told."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.failures: list[BaseException] = []

    def batch(self, model: Any, job: Any, items: list[Any]) -> None:
        if isinstance(job, Write | MatchTexts):
            self.batches.append(len(items))

    def computed(self, job: Any, items: int, seconds: float) -> None: ...

    def waited(self, seconds: float) -> None: ...

    def gave_up(self) -> None: ...

    def failed(self, error: BaseException) -> None:
        self.failures.append(error)


class Held:
    """An engine that waits until it is let go, so that a test decides what waits together."""

    def __init__(self, model: Model, limits: Limits) -> None:
        self.seen = Seen()
        self.engine = Engine(model, limits, self.seen, threads=1).start()
        self.go = threading.Event()
        self.hold()

    def hold(self) -> None:
        self.go.clear()
        begun = threading.Event()

        def wait(_: Model) -> None:
            begun.set()
            assert self.go.wait(WAIT)

        self.engine.call(wait)
        assert begun.wait(WAIT)


@pytest.fixture
def held(tiny_model: Model) -> Iterator[Held]:
    tiny_model.image_cache.clear()
    one = Held(tiny_model, Limits(batch=32, batch_seconds=1e9))
    yield one
    one.go.set()
    one.engine.end(WAIT)
    assert not one.engine.is_alive


@pytest.fixture(scope="module")
def images(tiny_model: Model, image_paths: list[Path]) -> list[ReadImage]:
    return [tiny_model.components.encoder.read(path) for path in image_paths]


def caption_job(model: Model, **options: Any) -> Write:
    return write_job(model, Limits(), "caption", options)


def test_what_waits_with_the_same_options_goes_together(
    held: Held, tiny_model: Model, images: list[ReadImage], image_paths: list[Path]
) -> None:
    same, other = caption_job(tiny_model), caption_job(tiny_model, num_beams=2)
    assert same == caption_job(tiny_model) != other
    waiting = [held.engine.submit(same, Prompted(image, ("",))) for image in images[:2]]
    waiting += [held.engine.submit(other, Prompted(images[0], ("",)))]
    waiting += [held.engine.submit(same, Prompted(image, ("",))) for image in images[2:4]]
    held.go.set()
    texts = [one.future.result(WAIT).texts[0].text for one in waiting]
    # Of a kind that was never timed, four go together at first.
    assert held.seen.batches == [4, 1]
    expected = tiny_model.caption(image_paths[:4])
    assert texts == [*expected[:2], tiny_model.caption(image_paths[0], num_beams=2), *expected[2:]]


def test_an_image_is_encoded_once_for_all(
    held: Held, tiny_model: Model, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = tiny_model.components.encoder
    encode, encoded = encoder.encode_pixels, []
    monkeypatch.setattr(encoder, "encode_pixels", lambda pixels: encoded.append(len(pixels)) or encode(pixels))
    job = write_job(tiny_model, Limits(), "ask", {})
    writer = tiny_model.components.writer
    assert writer is not None
    questions = ["what?", "where?", "how?", "what?"]
    waiting = [
        held.engine.submit(job, Prompted(encoder.read(image_paths[0].read_bytes()), (writer.question(question),)))
        for question in questions
    ]
    held.go.set()
    answers = [one.future.result(WAIT).texts[0].text for one in waiting]
    assert encoded == [1]
    assert answers == tiny_model.ask(image_paths[0], questions)
    assert encoded == [1]


def test_what_nobody_wants_any_more_is_passed_over(held: Held, tiny_model: Model, images: list[ReadImage]) -> None:
    job = caption_job(tiny_model)
    waiting = [held.engine.submit(job, Prompted(image, ("",))) for image in images[:3]]
    waiting[1].leave()
    held.go.set()
    assert waiting[0].future.result(WAIT) and waiting[2].future.result(WAIT)
    assert waiting[1].future.cancelled()
    assert held.seen.batches == [2]


def test_one_that_is_at_fault_costs_the_others_nothing(
    held: Held, tiny_model: Model, images: list[ReadImage], image_paths: list[Path]
) -> None:
    job = caption_job(tiny_model)
    waiting = [held.engine.submit(job, Prompted(image, ("",))) for image in images[:2]]
    long = held.engine.submit(job, Prompted(images[2], ("dog " * 300,)))
    held.go.set()
    with pytest.raises(OptionError, match="shorten the prompt"):
        long.future.result(WAIT)
    assert [one.future.result(WAIT).texts[0].text for one in waiting] == tiny_model.caption(image_paths[:2])


def test_an_error_of_the_models_own_leaves_the_engine_alive(held: Held, tiny_model: Model) -> None:
    def fail(_: Model) -> None:
        raise RuntimeError("no memory")

    failed = held.engine.call(fail)
    held.go.set()
    with pytest.raises(RuntimeError, match="no memory"):
        failed.result(WAIT)
    assert isinstance(held.seen.failures[0], RuntimeError)
    assert held.engine.call(lambda model: model.name).result(WAIT) == tiny_model.name


def test_streams_take_turns_with_batches(
    held: Held, tiny_model: Model, images: list[ReadImage], image_paths: list[Path]
) -> None:
    greedy = write_job(tiny_model, Limits(), "caption", {"max_new_tokens": 8, "min_new_tokens": 8}, stream=True)
    pieces: dict[int, list[str]] = {0: [], 1: []}
    streams = [held.engine.submit(greedy, Prompted(images[place], ("",)), put=pieces[place].append) for place in pieces]
    batch = held.engine.submit(caption_job(tiny_model), Prompted(images[2], ("",)))
    held.go.set()
    for place, stream in enumerate(streams):
        done = stream.future.result(WAIT)
        assert isinstance(done, Streamed) and done.written == 8
        expected = tiny_model.caption(image_paths[place], stream=True, max_new_tokens=8, min_new_tokens=8)
        assert "".join(pieces[place]) == "".join(expected)
    assert batch.future.result(WAIT).texts[0].text == tiny_model.caption(image_paths[2])


def test_a_stream_ends_when_its_reader_leaves(held: Held, tiny_model: Model, images: list[ReadImage]) -> None:
    greedy = write_job(tiny_model, Limits(), "caption", {"max_new_tokens": 100, "min_new_tokens": 100}, stream=True)
    pieces: list[str] = []
    box: list[Any] = []

    def put(piece: str) -> None:
        pieces.append(piece)
        box[0].leave()

    box.append(held.engine.submit(greedy, Prompted(images[0], ("",)), put=put))
    held.go.set()
    with pytest.raises(CancelledError):
        box[0].future.result(WAIT)
    assert len(pieces) == 1


def test_at_the_end_what_waits_is_cancelled(tiny_model: Model, images: list[ReadImage]) -> None:
    one = Held(tiny_model, Limits())
    waiting = one.engine.submit(caption_job(tiny_model), Prompted(images[0], ("",)))
    ending = threading.Thread(target=one.engine.end)
    ending.start()
    while not one.engine._ended:
        threading.Event().wait(0.001)
    one.go.set()
    ending.join(WAIT)
    assert waiting.future.cancelled()
    with pytest.raises(RuntimeError, match="ended"):
        one.engine.submit(caption_job(tiny_model), Prompted(images[0], ("",)))


def grown(start: float, each: float, seconds: float = 0.5, most: int = 32) -> list[int]:
    """Sizes of full batches of a machine, each of which takes `start` and so much for each item."""
    sizes = BatchSizes(most, seconds)
    found = []
    for _ in range(40):
        size = sizes.size("kind")
        found.append(size)
        sizes.took("kind", size, start + each * size)
    return found


@pytest.mark.parametrize(
    ("start", "each", "expected"), [(0.2, 0.04, 7), (0.01, 0.001, 32), (0.0, 0.3, 1), (2.0, 0.5, 1)]
)
def test_batches_become_as_large_as_their_time_allows(start: float, each: float, expected: int) -> None:
    sizes = grown(start, each)
    assert sizes[0] == 4
    assert all(size <= 2 * max(sizes[:place]) for place, size in enumerate(sizes) if place)
    assert all(abs(size - expected) <= 1 for size in sizes[-10:])


def test_each_kind_of_work_has_a_size_of_its_own() -> None:
    sizes = BatchSizes(32, 0.5)
    for _ in range(10):
        sizes.took("slow", sizes.size("slow"), 3.0)
        sizes.took("fast", sizes.size("fast"), 0.001)
    assert (sizes.size("slow"), sizes.size("fast")) == (1, 32)
    for number in range(100):
        sizes.took(number, 1, 0.1)
    assert len(sizes._kinds) <= 64
