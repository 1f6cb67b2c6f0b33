"""Images read ahead are those read in turn: order, errors, bounds, threads, bits."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from openblip.errors import ImageError, OptionError
from openblip.images import prefetch as pipeline
from openblip.images.decode import load_image
from openblip.images.prefetch import pixel_batches, read_ahead
from openblip.images.transform import ImageTransform, to_pixels
from openblip.models.model import Model

TRANSFORM = ImageTransform(32)


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "openblip images"]


def wait_until(told: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not told() and time.monotonic() < end:
        time.sleep(0.002)
    return told()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    assert ours() == []
    yield
    assert wait_until(lambda: not ours()), "threads outlive their iterator"


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    count: int = request.param
    monkeypatch.setattr(pipeline, "count_threads", lambda: count)
    return count


class Counted:
    """Paths "0", "1", ... as they are asked for."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.taken = 0

    def __iter__(self) -> Iterator[str]:
        for number in range(self.count):
            self.taken += 1
            yield str(number)


# Order and errors


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["path", "bytes", "array", "bad", "slow"]), max_size=14),
    st.integers(1, 6),
    st.integers(1, 4),
)
def test_order_batches_and_errors_are_those_of_a_plain_loop(kinds: list[str], batch_size: int, count: int) -> None:
    def work(source: Any) -> str:
        kind, number = str(source).split()
        if kind == "slow":
            time.sleep(0.003)
        if kind == "bad":
            raise ImageError(number, "is bad")
        return number

    made: dict[str, Callable[[str], Any]] = {"bytes": Bytes, "array": Held}
    sources = [made.get(kind, str)(f"{kind} {number}") for number, kind in enumerate(kinds)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "count_threads", lambda: count)
        batches = list(read_ahead(iter(sources), work, batch_size))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    found = [pair for batch in batches for pair in batch]
    assert [source for source, _ in found] == sources
    for number, (kind, (_, result)) in enumerate(zip(kinds, found, strict=True)):
        assert str(result) == (f"{number}: is bad" if kind == "bad" else str(number))


class Bytes(bytes):
    def __new__(cls, text: str) -> Bytes:
        return super().__new__(cls, text.encode())

    def __str__(self) -> str:
        return self.decode()


class Held:
    """What is neither a path nor bytes."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text


def test_a_wrong_batch_size_is_refused() -> None:
    with pytest.raises(OptionError, match="batch_size is 0"):
        next(read_ahead(["a"], str, 0))


def test_another_error_of_the_work_comes_in_its_place(threads: int) -> None:
    def work(source: str) -> str:
        if source == "5":
            raise OptionError("5 is odd")
        return source

    found = read_ahead(map(str, range(9)), work, 2)
    assert [source for _ in range(2) for source, _ in next(found)] == ["0", "1", "2", "3"]
    with pytest.raises(OptionError, match="5 is odd"):
        next(found)


def test_what_the_source_raises_comes_after_what_it_gave(threads: int) -> None:
    def sources() -> Iterator[str]:
        yield from map(str, range(5))
        raise RuntimeError("the disk is gone")

    found = read_ahead(sources(), int, 2)
    assert [result for _ in range(3) for _, result in next(found)] == [0, 1, 2, 3, 4]
    with pytest.raises(RuntimeError, match="the disk is gone"):
        next(found)


# Bounds


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_sources_are_taken_as_far_as_was_said(threads: int, batch_size: int) -> None:
    sources, given = Counted(100), 0
    running = Running()
    found = read_ahead(sources, running, batch_size)
    assert sources.taken == 0 and not ours()
    for batch in found:
        given += len(batch)
        assert sources.taken == min(100, given + max(batch_size, 2 * threads))
        assert len(ours()) <= threads
    assert given == 100 and sorted(running.done) == sorted(map(str, range(100)))
    assert running.most <= threads + 1


class Running:
    """Work that knows how much of it went on at once."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.now = self.most = 0
        self.done: list[str] = []

    def __call__(self, source: str) -> str:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.001)
        with self.lock:
            self.now -= 1
            self.done.append(source)
        return source


def test_the_next_images_are_done_while_the_caller_computes(threads: int) -> None:
    running = Running()
    found = read_ahead(Counted(100), running, 4)
    next(found)
    ahead = 4 + max(4, 2 * threads)
    assert wait_until(lambda: len(running.done) == ahead)
    time.sleep(0.01)
    assert len(running.done) == ahead
    found.close()  # type: ignore[attr-defined]


def test_a_lone_image_needs_no_thread() -> None:
    where: list[threading.Thread] = []
    list(read_ahead(["0"], lambda _: where.append(threading.current_thread()), 8))
    assert where == [threading.current_thread()] and not ours()


def test_what_its_owner_may_close_is_read_before_the_next_is_asked_for(threads: int, image_paths: list[Path]) -> None:
    def opened() -> Iterator[Image.Image]:
        for path in image_paths:
            with Image.open(path) as image:
                yield image

    def one_buffer() -> Iterator[np.ndarray[Any, Any]]:
        buffer = np.zeros((8, 8, 3), np.uint8)
        for level in range(5):
            buffer[:] = level
            yield buffer

    expected = to_pixels([load_image(path) for path in image_paths], TRANSFORM)
    assert torch.equal(pixels_of(opened(), 2), expected)
    same = Image.open(image_paths[0])
    assert torch.equal(pixels_of([same] * 9, 3), expected[:1].expand(9, -1, -1, -1))
    levels = pixels_of(one_buffer(), 3)
    assert torch.equal(levels, to_pixels([Image.new("RGB", (8, 8), (n, n, n)) for n in range(5)], TRANSFORM))


def pixels_of(sources: Iterable[Any], batch_size: int) -> torch.Tensor:
    return torch.cat([batch.whole() for batch in pixel_batches(sources, TRANSFORM, batch_size)])


# Ends


@pytest.mark.parametrize("way", ["close", "delete", "error", "interrupt"])
def test_an_abandoned_iterator_stops_its_threads(threads: int, way: str) -> None:
    running = Running()
    stops: dict[str, type[BaseException]] = {"error": ZeroDivisionError, "interrupt": KeyboardInterrupt}
    if way in stops:

        def consume() -> None:
            for _ in read_ahead(Counted(10_000), running, 16):
                raise stops[way]

        with pytest.raises(stops[way]):
            consume()
    else:
        found = read_ahead(Counted(10_000), running, 16)
        next(found)
        assert ours() != []
        if way == "close":
            found.close()  # type: ignore[attr-defined]
        else:
            del found
    assert wait_until(lambda: not ours())
    done = len(running.done)
    time.sleep(0.02)
    assert len(running.done) == done < 16 + max(16, 2 * threads)


def test_an_image_under_way_does_not_hold_up_its_abandoning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "count_threads", lambda: 1)
    slow, begun = threading.Event(), threading.Event()

    def work(source: str) -> str:
        if source != "0" and threading.current_thread() in ours():
            begun.set()
            slow.wait(20)
        return source

    def sources() -> Iterator[str]:
        yield from "01"
        begun.wait(5)  # the thread is at the second one, which is beyond the first batch
        yield "2"

    found = read_ahead(sources(), work, 1)
    assert next(found)[0][0] == "0" and begun.is_set()
    start = time.monotonic()
    found.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 1
    slow.set()


def test_an_interrupt_reaches_the_caller_from_the_source_and_from_the_work(threads: int) -> None:
    def interrupted() -> Iterator[str]:
        yield "0"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(read_ahead(interrupted(), str, 1))

    def work(source: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(read_ahead([Held("0"), Held("1")], work, 2))  # type: ignore[list-item]


def test_captions_and_matches_leave_no_thread(tiny_model: Model, image_paths: list[Path]) -> None:
    many = image_paths * 4
    captions = tiny_model.caption_many(iter(many), batch_size=2, num_beams=1, max_new_tokens=2)
    matches = tiny_model.match_many(iter(many), ["a dog"], batch_size=2)
    for found in (captions, matches):
        next(iter(found))
        assert ours() != []
        found.close()  # type: ignore[attr-defined]
        assert wait_until(lambda: not ours())
    with pytest.raises(ImageError, match=r"gone\.png"):
        tiny_model.embed_images([*many, "gone.png", *many], batch_size=2)


# Bits


def odd_files() -> dict[str, bytes]:
    random = np.random.default_rng(5)
    rgb = Image.fromarray(random.integers(0, 256, (57, 83, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(random.integers(0, 65536, (40, 21), dtype=np.uint16))
    rgba = Image.fromarray(random.integers(0, 256, (31, 44, 4), dtype=np.uint8), "RGBA")
    keyed = {"transparency": (9, 9, 9)}
    files: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "jpeg": (rgb, "JPEG", {}),
        "jpeg, progressive": (rgb, "JPEG", {"progressive": True, "quality": 95, "subsampling": 0}),
        "jpeg, CMYK": (rgb.convert("CMYK"), "JPEG", {}),
        "jpeg, turned": (rgb, "JPEG", {"exif": exif}),
        "jpeg, grey": (rgb.convert("L"), "JPEG", {}),
        "png, palette": (rgb.quantize(40), "PNG", {}),
        "png, transparent palette": (rgb.quantize(40), "PNG", {"transparency": 3}),
        "png, colour key": (rgb, "PNG", keyed),
        "png, 16 bit": (deep, "PNG", {}),
        "png, alpha": (rgba, "PNG", {}),
        "png, one bit": (rgb.convert("1"), "PNG", {}),
        "tiff, CMYK": (rgb.convert("CMYK"), "TIFF", {}),
        "bmp": (rgb, "BMP", {}),
        "gif": (rgb.quantize(16), "GIF", {}),
        "webp": (rgb, "WEBP", {}),
        "one pixel": (rgb.crop((0, 0, 1, 1)), "PNG", {}),
    }
    encoded = {}
    for name, (image, image_format, options) in files.items():
        file = io.BytesIO()
        image.save(file, image_format, **options)
        encoded[name] = file.getvalue()
    return encoded


def plainly(source: bytes, size: int) -> torch.Tensor:
    """Pixels by Pillow and NumPy alone, in the order of transformers' processor."""
    image = Image.open(io.BytesIO(source))
    if image.getexif().get(0x0112) == 6:
        image = image.transpose(Image.Transpose.ROTATE_270)
    if image.mode == "I;16":
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    small = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)).astype(np.float32)
    mean, std = np.array(TRANSFORM.mean, np.float32), np.array(TRANSFORM.std, np.float32)
    return torch.from_numpy((small / np.float32(255) - mean) / std).permute(2, 0, 1)


def test_pixels_of_odd_images_are_the_same_bits(threads: int, tmp_path: Path) -> None:
    files = odd_files()
    paths = [tmp_path / f"{number}.image" for number in range(len(files))]
    for path, data in zip(paths, files.values(), strict=True):
        path.write_bytes(data)
    expected = torch.stack([plainly(data, TRANSFORM.image_size) for data in files.values()])
    for sources in (paths, list(files.values()), [load_image(path) for path in paths]):
        for name, pixels, wanted in zip(files, pixels_of(sources, 3), expected, strict=True):
            assert torch.equal(pixels, wanted), name
    assert torch.equal(to_pixels([load_image(path) for path in paths], TRANSFORM), expected)


def test_results_stand_beside_their_sources(image_paths: list[Path]) -> None:
    sources = ["gone.png", image_paths[0], b"", image_paths[1]]
    (batch,) = pixel_batches(sources, TRANSFORM, 8)
    assert batch.sources == sources and batch.pixels.shape == (2, 3, 32, 32)
    joined = [result if isinstance(result, str) else type(result) for _, result in batch.join(["a", "b"])]
    assert joined == [ImageError, "a", ImageError, "b"]
    with pytest.raises(ImageError, match=r"gone\.png"):
        batch.whole()
    (nothing,) = pixel_batches(["gone.png"], TRANSFORM, 8)
    assert nothing.pixels.shape == (0, 3, 32, 32)
