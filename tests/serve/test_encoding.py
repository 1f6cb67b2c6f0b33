"""Images are encoded in threads beside the texts that are written, and nothing about the texts changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import openblip
from openblip.generation.options import GenerationOptions
from openblip.images.encoded_image import ReadImage
from openblip.models.model import Model
from openblip.serve.encoding import MOST_TOGETHER, EncodingThreads
from openblip.serve.engine import Engine
from openblip.serve.limits import Limits
from openblip.serve.model_jobs import Prompted, Streamed, Write

from .conftest import WAIT, Served, served_by
from .test_decoding import WAYS, Told, assert_same, result

SHORT = Write(GenerationOptions(num_beams=1, max_new_tokens=3).resolved())


class Held:
    """An image encoder of which each call can be made to wait, or to fail."""

    def __init__(self, model: Model, patch: pytest.MonkeyPatch) -> None:
        self.go, self.begun = threading.Event(), threading.Semaphore(0)
        self.fails = False
        self.calls: list[int] = []
        encoder = model.components.encoder
        encode = encoder.encode_pixels

        def held(pixels: Tensor) -> Tensor:
            self.calls.append(len(pixels))
            self.begun.release()
            assert self.go.wait(WAIT)
            if self.fails and len(pixels) > 1:
                raise MemoryError("full")
            return encode(pixels)

        patch.setattr(encoder, "encode_pixels", held)

    def wait(self) -> None:
        """Until one more call has begun."""
        assert self.begun.acquire(timeout=WAIT)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def engine(tiny_model: Model, told: Told) -> Iterator[Engine]:
    tiny_model.image_cache.clear()
    made = Engine(tiny_model, Limits(), told, threads=2).start()
    if not made._encoding.count:
        pytest.skip("PyTorch cannot be told here how many threads share the work of one")
    yield made
    made.end(WAIT)


@pytest.fixture
def read(tiny_model: Model, image_paths: list[Path]) -> list[ReadImage]:
    return [tiny_model.components.encoder.read(path) for path in image_paths]


def test_whatever_comes_is_written_as_alone(tiny_model: Model, engine: Engine, read: list[ReadImage]) -> None:
    asked = [(way, Prompted(image, (f"a {word}",))) for way in WAYS for image in read for word in ("dog", "red ball")]
    pieces: list[str] = []
    waiting = [engine.submit(way, item) for way, item in asked]
    stream = engine.submit(WAYS[0], Prompted(read[2], ("a photo of",)), put=pieces.append)
    found = [result(one) for one in waiting]
    assert isinstance(result(stream), Streamed)
    tiny_model.image_cache.clear()
    for (way, item), one in zip(asked, found, strict=True):
        assert_same(one, way.run(tiny_model, [item])[0])
    (alone,) = WAYS[0].run(tiny_model, [Prompted(read[2], ("a photo of",))])
    assert "".join(pieces) == alone.texts[0].text


def test_a_text_is_written_while_images_are_encoded(
    tiny_model: Model, engine: Engine, read: list[ReadImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert result(engine.submit(SHORT, Prompted(read[0], ("a",)))).texts
    held = Held(tiny_model, monkeypatch)
    new = engine.submit(SHORT, Prompted(read[1], ("a",)))
    held.wait()
    pieces: list[str] = []
    stream = engine.submit(WAYS[2], Prompted(read[0], ("a photo of",)), put=pieces.append)
    assert result(stream).written and pieces
    assert not new.future.done() and not engine.is_idle
    held.go.set()
    assert result(new).texts


def test_the_same_image_is_encoded_once(
    tiny_model: Model, engine: Engine, read: list[ReadImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(tiny_model, monkeypatch)
    waiting = [engine.submit(SHORT, Prompted(read[0], ("a",)))]
    held.wait()
    waiting += [engine.submit(SHORT, Prompted(read[0], (prompt,))) for prompt in ("a", "the", "a dog")]
    waiting += [engine.submit(SHORT, Prompted(read[1], ("a",)))]
    held.wait()
    held.go.set()
    assert all(result(one).texts for one in waiting)
    assert sum(held.calls) == 2


def test_images_that_fail_together_are_encoded_alone(
    tiny_model: Model, engine: Engine, told: Told, read: list[ReadImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(tiny_model, monkeypatch)
    held.fails = True
    waiting = [engine.submit(SHORT, Prompted(image, ("a",))) for image in read[:2]]
    held.wait()
    held.wait()  # both threads have one
    waiting += [engine.submit(SHORT, Prompted(image, ("a",))) for image in read[2:5]]
    held.go.set()
    assert all(result(one).texts for one in waiting)
    assert max(held.calls) > 1 and not told.errors


def test_who_leaves_while_the_image_is_encoded_gets_no_text(
    tiny_model: Model, engine: Engine, read: list[ReadImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(tiny_model, monkeypatch)
    gone, kept = (engine.submit(SHORT, Prompted(image, ("a",))) for image in read[:2])
    held.wait()
    gone.leave()
    held.go.set()
    with pytest.raises(CancelledError):
        result(gone)
    assert result(kept).texts


def test_at_the_end_who_waits_for_an_image_is_told(
    tiny_model: Model, told: Told, read: list[ReadImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model.image_cache.clear()
    engine = Engine(tiny_model, Limits(), told, threads=2).start()
    held = Held(tiny_model, monkeypatch)
    waiting = engine.submit(SHORT, Prompted(read[0], ("a",)))
    held.wait()
    engine.end(0)
    held.go.set()
    engine.end(WAIT)
    with pytest.raises(CancelledError):
        result(waiting)
    assert not engine.is_alive


def ask_together(served: Served, photos: list[bytes]) -> list[tuple[str, float]]:
    """Captions of photos by a client each, all at once."""

    def one(photo: bytes) -> tuple[str, float]:
        (found,) = served.post("/caption", photo).json()["captions"]
        return found["text"], found["score"]

    with ThreadPoolExecutor(len(photos)) as clients:
        return list(clients.map(one, photos))


def check_clients(model: Model, count: int) -> None:
    """Photos of noise, most of them sent by two clients at once, are captioned as the library does it one by one."""
    photos = []
    for number in range(count):
        file = BytesIO()
        Image.effect_noise((60 + number, 45), 20 + 9 * number).save(file, "PNG")
        photos.append(file.getvalue())
    model.image_cache.clear()
    with served_by(model, threads=2) as served:
        found = ask_together(served, [*photos, *photos[1:]])
        assert ask_together(served, photos) == found[:count]  # from what was kept
    for photo, (text, score) in zip([*photos, *photos[1:]], found, strict=True):
        model.image_cache.clear()
        (alone,) = model.caption([photo], details=True)
        assert text == alone.text and score == pytest.approx(alone.score, abs=2e-5)


def test_clients_of_a_server_get_what_the_library_gives(tiny_model: Model) -> None:
    check_clients(tiny_model, 5)


@pytest.mark.slow
def test_clients_of_a_server_of_mini_get_what_the_library_gives() -> None:
    check_clients(openblip.load("mini"), 12)


@dataclass(eq=False)
class Owner:
    """Somebody who wants a text about an image."""

    key: bytes
    put: Callable[[str], None] | None = None
    job: Any = None
    left: threading.Event = field(default_factory=threading.Event)

    @property
    def item(self) -> Any:
        return SimpleNamespace(image=SimpleNamespace(key=self.key))


def plan(
    model: Model, owners: list[Owner], busy: list[list[Owner]] | None = None, most: int = 32
) -> tuple[list[int], list[list[int]]]:
    threads: EncodingThreads[Any] = EncodingThreads(model, lambda owners: [], lambda: None, 2)
    if not threads.count:
        pytest.skip("PyTorch cannot be told here how many threads share the work of one")
    threads._under_way = busy or []
    own, apart = threads.plan(owners, most)
    assert not threads.end() or busy
    return [owners.index(one) for one in own], [[owners.index(one) for one in part] for part in apart]


def images(count: int, first: int = 0) -> list[Owner]:
    return [Owner(bytes([first + number])) for number in range(count)]


def streams(count: int) -> list[Owner]:
    return [Owner(bytes([100 + number]), put=lambda piece: None) for number in range(count)]


def test_images_are_shared_among_idle_threads(tiny_model: Model) -> None:
    assert plan(tiny_model, images(1)) == ([], [[0]])
    assert plan(tiny_model, images(5)) == ([], [[0, 1, 2], [3, 4]])
    assert plan(tiny_model, images(5), most=1) == ([], [[0], [1]])
    assert [len(part) for part in plan(tiny_model, images(60))[1]] == [MOST_TOGETHER, MOST_TOGETHER]
    assert plan(tiny_model, images(5, first=9), busy=[images(2)]) == ([], [[0, 1, 2, 3, 4]])
    assert plan(tiny_model, images(5), busy=[images(2), images(1, first=50)]) == ([], [])
    # What is being encoded is waited for.
    assert plan(tiny_model, images(3), busy=[images(2)]) == ([], [[2]])


def test_streams_are_encoded_first_and_keep_nobody_from_it(tiny_model: Model) -> None:
    assert plan(tiny_model, streams(1)) == ([], [[0]])
    assert plan(tiny_model, [*images(3), *streams(1)]) == ([], [[3], [0, 1, 2]])
    # No thread for it: the one that writes texts does it.
    assert plan(tiny_model, [*images(3), *streams(2)], busy=[images(1, first=50)]) == ([3], [[0, 1, 2]])
    assert plan(tiny_model, streams(2), busy=[images(1), images(1, first=50)]) == ([0], [])
    # Others who want the same image come along.
    assert plan(tiny_model, [Owner(b"d"), *streams(1), *images(1)])[1] == [[1, 0], [2]]


def test_the_processor_is_shared_out(tiny_model: Model) -> None:
    shares: list[int] = []
    done = threading.Semaphore(0)

    def encode(owners: Sequence[Owner]) -> list[Any]:
        shares.append(torch.get_num_threads())
        return list(owners)

    def shared(parts: list[list[Owner]], writing: bool) -> list[int]:
        encoding: EncodingThreads[Any] = EncodingThreads(tiny_model, encode, done.release, 4)
        if not encoding.count:
            pytest.skip("PyTorch cannot be told here how many threads share the work of one")
        shares.clear()
        encoding.begin(parts, writing)
        for _ in parts:
            assert done.acquire(timeout=WAIT)
        assert sorted(encoding.owners, key=id) == sorted((one for part in parts for one in part), key=id)
        found: list[Any] = [one for encoded in encoding.finished() for one in encoded.images]
        assert sorted(found, key=id) == sorted((one for part in parts for one in part), key=id)
        assert encoding.end() == []
        return shares

    assert shared([], writing=True) == []
    assert shared([images(1)], writing=False) == [4]
    assert shared([images(1)], writing=True) == [2]
    assert shared([images(2), images(1)], writing=False) == [2, 2]
    assert shared([images(1) for _ in range(4)], writing=True) == [1] * 4


def test_one_thread_encodes_what_it_writes_about(tiny_model: Model) -> None:
    threads: EncodingThreads[Any] = EncodingThreads(tiny_model, lambda owners: [], lambda: None, 1)
    wanted = images(3)
    assert threads.count == 0 and threads.plan(wanted, 2) == (wanted[:2], [])
