"""What is kept of images: by content, within a bound, for all methods that speak, and never changing what they say."""

from __future__ import annotations

import pickle
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import openblip
from openblip.errors import OptionError
from openblip.generation.prefix import Prefix
from openblip.models.blip2 import Blip2
from openblip.models.encoded_image import ImageCache
from openblip.nn.opt import Opt, OptConfig

QUESTIONS = ["what color is the ball?", "How many children are there", "why?", "a dog?"]


@pytest.fixture
def model(tiny_model_folder: Path) -> Blip2:
    """A model of its own, with nothing seen."""
    return fresh(tiny_model_folder)


def fresh(folder: Path, limit: int = 2**28) -> Blip2:
    return openblip.load(folder, device="cpu", image_cache=limit)


@pytest.fixture
def looks(model: Blip2, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Grows by the number of images whenever the image encoder runs."""
    seen: list[int] = []
    encode = model.network.image_features

    def counted(pixels: Tensor) -> Tensor:
        seen.append(len(pixels))
        return encode(pixels)

    with monkeypatch.context() as patch:
        patch.setattr(model.network, "image_features", counted)
        yield seen


def test_every_method_that_speaks_looks_at_an_image_once(model: Blip2, photos: list[Path], looks: list[int]) -> None:
    model.caption(photos[0])
    model.ask(photos[0], QUESTIONS)
    model.chat(photos[0]).ask(QUESTIONS[0])
    model.complete(model.look(photos[0]), ["a dog"])
    model.visual_prompt(photos[0])
    model.caption(photos[0], num_captions=2)
    assert looks == [1]
    model.caption([photos[1], photos[0], photos[1], photos[2]])
    assert looks == [1, 2]
    model.image_cache.clear()
    assert (len(model.image_cache), model.image_cache.nbytes) == (0, 0)
    model.caption(photos[0])
    assert looks == [1, 2, 1]


def test_what_is_said_is_what_a_model_says_that_keeps_nothing(tiny_model_folder: Path, photos: list[Path]) -> None:
    keeping, forgetting = fresh(tiny_model_folder), fresh(tiny_model_folder, 0)
    for _ in range(3):
        for photo in photos[:3]:
            assert keeping.caption(photo) == forgetting.caption(photo)
            assert keeping.ask(photo, QUESTIONS[0]) == forgetting.ask(photo, QUESTIONS[0])
            found, expected = keeping.answer(photo, QUESTIONS), forgetting.answer(photo, QUESTIONS)
            assert [answer.tokens for answer in found] == [answer.tokens for answer in expected]
            for answer, twin in zip(found, expected, strict=True):
                assert answer.score == pytest.approx(twin.score, abs=1e-5)
            drawn = {"temperature": 1.3, "seed": 4}
            assert keeping.ask(photo, QUESTIONS, **drawn) == forgetting.ask(photo, QUESTIONS, **drawn)
            talks = [model.chat(photo) for model in (keeping, forgetting)]
            assert len({tuple(talk.ask(question) for question in QUESTIONS[:3]) for talk in talks}) == 1
    assert len(keeping.image_cache) == 3 and len(forgetting.image_cache) == 0


def test_pixels_tell_images_apart_not_names(model: Blip2, photos: list[Path], looks: list[int], tmp_path: Path) -> None:
    place = tmp_path / "photo.png"
    place.write_bytes(photos[0].read_bytes())
    first = model.visual_prompt(place)
    with Image.open(photos[0]) as picture:
        again = [photos[0].read_bytes(), picture.convert("RGB"), np.asarray(picture.convert("RGB"))]
    for source in again:
        assert torch.equal(model.visual_prompt(source), first)
    assert looks == [1]
    place.write_bytes(photos[1].read_bytes())
    assert not torch.equal(model.visual_prompt(place), first)
    assert looks == [1, 1]
    # What the encoder sees counts: a photo that was shrunk already is the same one, until one value differs by one.
    pixels = np.asarray(again[1].resize((64, 64), Image.Resampling.BICUBIC)).copy()
    assert torch.equal(model.visual_prompt(pixels), first)
    assert looks == [1, 1]
    pixels[30, 30, 1] ^= 1
    model.visual_prompt(pixels)
    assert looks == [1, 1, 1]


def test_what_is_given_out_may_be_changed(model: Blip2, photos: list[Path]) -> None:
    before = model.visual_prompt(photos[0])
    model.visual_prompt(photos[0]).zero_()
    assert torch.equal(model.visual_prompt(photos[0]), before)


# The bound


def test_those_used_last_stay_within_the_bound() -> None:
    """Against the plainest account of it, with images that grow as their keys and values are computed."""
    draw = random.Random(0)
    decoder = Opt(OptConfig(9, 8, 1, 1, 8, max_positions=64)).requires_grad_(False)
    lengths = [draw.randint(1, 20) for _ in range(12)]
    small, grown = 4 * 8, 3 * 4 * 8  # bytes a token, without and with keys and values in one layer
    limit = 60 * small
    cache = ImageCache(limit)
    expected: dict[int, int] = {}
    evictions = 0
    for _ in range(600):
        number = draw.randrange(12)
        computed: list[float] = []

        def see(missing: Tensor, computed: list[float] = computed) -> list[Prefix]:
            computed.append(float(missing[0, 0, 0, 0]))
            return [Prefix(decoder, torch.zeros(lengths[int(computed[0])], 8))]

        (seen,) = cache.look(torch.full((1, 3, 2, 2), float(number)), see)
        assert bool(computed) == (number not in expected)
        if draw.random() < 0.3:
            seen.prefix.reader(2)
            cache.keep(seen)
        size = seen.prefix.nbytes
        assert size in (len(seen.prefix.embeds) * small, len(seen.prefix.embeds) * grown)
        expected.pop(number, None)
        if size <= limit:
            expected[number] = size
        while sum(expected.values()) > limit:
            del expected[next(iter(expected))]
            evictions += 1
        assert (len(cache), cache.nbytes) == (len(expected), sum(expected.values()))
        if draw.random() < 0.02:
            cache.clear()
            expected.clear()
    assert evictions > 100


def test_keys_and_values_count_and_are_let_go(tiny_model_folder: Path, photos: list[Path]) -> None:
    probe = fresh(tiny_model_folder)
    probe.ask(photos[0], QUESTIONS[0])
    lean = probe.image_cache.nbytes
    probe.ask(photos[0], QUESTIONS)
    whole = probe.image_cache.nbytes
    # Four queries of 32 float32 numbers; keys and values of two layers.
    assert (lean, whole) == (4 * 32 * 4, 4 * 32 * 4 * (1 + 2 * 2))
    model = fresh(tiny_model_folder, 2 * whole)
    for photo in photos:
        model.ask(photo, QUESTIONS)
        assert model.image_cache.nbytes <= 2 * whole
    assert len(model.image_cache) == 2
    small = fresh(tiny_model_folder, lean)
    assert small.ask(photos[0], QUESTIONS) == probe.ask(photos[0], QUESTIONS)
    assert small.image_cache.nbytes <= lean


def test_a_row_of_a_batch_keeps_its_own_memory_alone(model: Blip2, photos: list[Path]) -> None:
    model.caption(photos)
    prefixes = [model.look(photo).prefix for photo in photos]
    assert all(prefix.embeds.untyped_storage().nbytes() == prefix.embeds.nbytes for prefix in prefixes)


def test_the_bound_is_an_option_of_load(tiny_model_folder: Path, photos: list[Path]) -> None:
    assert openblip.load(tiny_model_folder, device="cpu").image_cache.limit == 256 * 2**20
    off = openblip.load(tiny_model_folder, device="cpu", image_cache=0)
    off.ask(photos[0], QUESTIONS)
    assert len(off.image_cache) == 0
    with pytest.raises(OptionError, match="image_cache is -1 bytes"):
        openblip.load(tiny_model_folder, device="cpu", image_cache=-1)


def test_a_copy_starts_with_nothing_seen(model: Blip2, photos: list[Path]) -> None:
    model.look(photos[0])
    copied = pickle.loads(pickle.dumps(model.image_cache))
    assert (len(copied), copied.nbytes, copied.limit) == (0, 0, model.image_cache.limit)


# Requests that fail, and requests at the same time


@pytest.mark.parametrize("questions", [1, 3])
def test_a_request_that_fails_leaves_what_fits_the_bound(
    model: Blip2, photos: list[Path], questions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model.ask(photos[0], QUESTIONS)
    before = (len(model.image_cache), model.image_cache.nbytes)

    def fail(*given: object) -> Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Opt, "go_on", fail)
        with pytest.raises(KeyboardInterrupt):
            model.ask(photos[0], QUESTIONS[:questions])
        assert (len(model.image_cache), model.image_cache.nbytes) == before
        model.image_cache.clear()
        with pytest.raises(KeyboardInterrupt):
            model.ask(photos[0], QUESTIONS[:questions])
    (seen,) = [seen for seen, _ in model.image_cache._kept.values()]
    assert model.image_cache.nbytes == seen.prefix.nbytes, "keys and values that were computed are not counted"
    assert model.ask(photos[0], QUESTIONS) == expected


def test_an_image_that_cannot_be_seen_is_not_kept(model: Blip2, photos: list[Path], looks: list[int]) -> None:
    def fail(pixels: Tensor) -> list[Prefix]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.image_cache.look(torch.zeros(1, 3, 4, 4), fail)
    assert len(model.image_cache) == 0
    assert not model.image_cache._lock.locked()


def test_threads_share_it(tiny_model_folder: Path, photos: list[Path]) -> None:
    alone = [fresh(tiny_model_folder, 0).ask(photo, QUESTIONS) for photo in photos]
    model = fresh(tiny_model_folder, 3 * 2560)  # three images with keys and values: threads push out one another's
    together = threading.Barrier(4)

    def work(worker: int) -> None:
        together.wait()
        for turn in range(6):
            number = (worker + turn) % len(photos)
            assert model.ask(photos[number], QUESTIONS) == alone[number]
            assert model.image_cache.nbytes <= model.image_cache.limit

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    kept = [seen.prefix.nbytes for seen, _ in model.image_cache._kept.values()]
    assert model.image_cache.nbytes == sum(kept) <= model.image_cache.limit
