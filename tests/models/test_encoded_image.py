"""What is kept of images: by content, within a bound, for all methods that speak, and never changing what they say."""

from __future__ import annotations

import copy
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
from openblip.images.encoded_image import CachedEncoder, ImageCache
from openblip.images.transform import ImageTransform
from openblip.models.model import Model
from openblip.nn.opt import Opt
from tests.pairs.prompts import visual_prompt

QUESTIONS = ["what color is the ball?", "How many children are there", "why?", "a dog?"]


@pytest.fixture
def model(tiny_model_folder: Path) -> Model:
    """A model of its own, with nothing seen."""
    return fresh(tiny_model_folder)


def fresh(folder: Path, limit: int = 2**28) -> Model:
    return openblip.load(folder, device="cpu", image_cache=limit)


@pytest.fixture
def looks(model: Model, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Grows by the number of images whenever the image encoder runs."""
    seen: list[int] = []
    encode = model.network.image_features

    def counted(pixels: Tensor) -> Tensor:
        seen.append(len(pixels))
        return encode(pixels)

    with monkeypatch.context() as patch:
        patch.setattr(model.network, "image_features", counted)
        yield seen


def test_whatever_is_asked_of_an_image_encodes_it_once(model: Model, image_paths: list[Path], looks: list[int]) -> None:
    model.caption(image_paths[0])
    model.ask(image_paths[0], QUESTIONS)
    model.chat(image_paths[0]).ask(QUESTIONS[0])
    model.generate(model.encode_image(image_paths[0]), ["a dog"])
    model.match(image_paths[0], ["a dog", "a ball"])
    model.scores([image_paths[0]], ["a dog"], itm=True)
    model.embed_images(image_paths[:1])
    model.rank_images("a dog", image_paths[:1])
    model.rank_texts(image_paths[0], ["a dog"])
    model.caption(image_paths[0], num_captions=2)
    assert looks == [1]
    model.caption([image_paths[1], image_paths[0], image_paths[1], image_paths[2]])
    assert looks == [1, 2]
    assert model.match(image_paths[:3], "a dog") and looks == [1, 2]
    model.image_cache.clear()
    assert (len(model.image_cache), model.image_cache.nbytes) == (0, 0)
    model.caption(image_paths[0])
    assert looks == [1, 2, 1]


def test_an_encoded_image_is_accepted_wherever_an_image_is(
    tiny_model_folder: Path, image_paths: list[Path], looks: list[int], model: Model
) -> None:
    other = fresh(tiny_model_folder, 0)
    encoded = [model.encode_image(image_path) for image_path in image_paths[:2]]
    assert looks == [1, 1]
    model.image_cache.clear()
    for call in (
        lambda one, images: one.caption(images),
        lambda one, images: one.ask(images, QUESTIONS),
        lambda one, images: one.generate(images, "a"),
        lambda one, images: one.match(images, ["a dog", "a ball"]),
        lambda one, images: one.rank_texts(images, ["a dog", "a ball"], rerank=0),
        lambda one, images: [[ranked.index for ranked in one.rank_images("a dog", images)]],
        lambda one, images: one.embed_images(images).tolist(),
        lambda one, images: [one.chat(image).ask(QUESTIONS[0]) for image in images],
        lambda one, images: ["".join(one.caption(image, stream=True)) for image in images],
        lambda one, images: [found.source for found in one.caption_many(images)],
    ):
        found, expected = call(model, encoded), call(other, [str(image_path) for image_path in image_paths[:2]])
        assert str(found)[:40] == str(expected)[:40]
    assert looks == [1, 1]
    with pytest.raises(OptionError, match="another model has encoded"):
        other.caption(encoded[0])


def test_what_is_said_is_what_a_model_says_that_keeps_nothing(tiny_model_folder: Path, image_paths: list[Path]) -> None:
    keeping, forgetting = fresh(tiny_model_folder), fresh(tiny_model_folder, 0)
    for _ in range(3):
        for image_path in image_paths[:3]:
            assert keeping.caption(image_path) == forgetting.caption(image_path)
            assert keeping.ask(image_path, QUESTIONS[0]) == forgetting.ask(image_path, QUESTIONS[0])
            found, expected = (
                keeping.ask(image_path, QUESTIONS, details=True),
                forgetting.ask(image_path, QUESTIONS, details=True),
            )
            assert [answer.tokens for answer in found] == [answer.tokens for answer in expected]
            for answer, twin in zip(found, expected, strict=True):
                assert answer.score == pytest.approx(twin.score, abs=1e-5)
            drawn = {"temperature": 1.3, "seed": 4}
            assert keeping.ask(image_path, QUESTIONS, **drawn) == forgetting.ask(image_path, QUESTIONS, **drawn)
            talks = [model.chat(image_path) for model in (keeping, forgetting)]
            assert len({tuple(talk.ask(question) for question in QUESTIONS[:3]) for talk in talks}) == 1
    assert len(keeping.image_cache) == 3 and len(forgetting.image_cache) == 0


def test_pixels_tell_images_apart_not_names(
    model: Model, image_paths: list[Path], looks: list[int], tmp_path: Path
) -> None:
    place = tmp_path / "photo.png"
    place.write_bytes(image_paths[0].read_bytes())
    first = visual_prompt(model, place)
    with Image.open(image_paths[0]) as image:
        again = [image_paths[0].read_bytes(), image.convert("RGB"), np.asarray(image.convert("RGB"))]
    for source in again:
        assert torch.equal(visual_prompt(model, source), first)
    assert looks == [1]
    place.write_bytes(image_paths[1].read_bytes())
    assert not torch.equal(visual_prompt(model, place), first)
    assert looks == [1, 1]
    # What the encoder sees counts: a photo that was shrunk already is the same one, until one value differs by one.
    pixels = np.asarray(again[1].resize((64, 64), Image.Resampling.BICUBIC)).copy()
    assert torch.equal(visual_prompt(model, pixels), first)
    assert looks == [1, 1]
    pixels[30, 30, 1] ^= 1
    visual_prompt(model, pixels)
    assert looks == [1, 1, 1]


def test_what_is_given_out_may_be_changed(model: Model, image_paths: list[Path]) -> None:
    before = model.embed_images(image_paths[:1])
    model.embed_images(image_paths[:1]).zero_()
    assert torch.equal(model.embed_images(image_paths[:1]), before)


# The bound


def test_those_used_last_stay_within_the_bound() -> None:
    """Against the plainest account of it, with images that grow as more is derived of them."""
    rng = random.Random(0)
    lengths = [rng.randint(1, 20) for _ in range(12)]
    limit = 60 * 4
    cache = ImageCache(limit)
    computed: list[int] = []

    def encode(pixels: Tensor) -> Tensor:
        number = int(pixels[0, 0, 0, 0].item() * 255 + 0.5)
        computed.append(number)
        return torch.zeros(1, lengths[number], 1)

    encoder = CachedEncoder(encode, ImageTransform(2, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)), cache)
    expected: dict[int, int] = {}
    evictions = 0
    for _ in range(600):
        number = rng.randrange(12)
        computed.clear()
        image = encoder.encode(np.full((2, 2, 3), number, dtype=np.uint8))
        assert bool(computed) == (number not in expected)
        if rng.random() < 0.3:
            image.derived["keys"] = torch.zeros(2 * lengths[number])
            cache.keep(image)
        size = image.nbytes
        assert size in (4 * lengths[number], 12 * lengths[number])
        expected.pop(number, None)
        if size <= limit:
            expected[number] = size
        while sum(expected.values()) > limit:
            del expected[next(iter(expected))]
            evictions += 1
        assert (len(cache), cache.nbytes) == (len(expected), sum(expected.values()))
        if rng.random() < 0.02:
            cache.clear()
            expected.clear()
    assert evictions > 100


def test_keys_and_values_count_and_are_let_go(tiny_model_folder: Path, image_paths: list[Path]) -> None:
    probe = fresh(tiny_model_folder)
    encoded = probe.encode_image(image_paths[0])
    assert probe.image_cache.nbytes == encoded.features.nbytes
    probe.ask(image_paths[0], QUESTIONS[0])
    lean = probe.image_cache.nbytes
    probe.ask(image_paths[0], QUESTIONS)
    whole = probe.image_cache.nbytes
    # Four queries, and what the language model reads of each: 32 float32 numbers; keys and values of two layers.
    queries = 4 * probe.network.config.qformer.width * 4
    assert lean == encoded.features.nbytes + queries + 4 * 32 * 4
    assert whole == lean + 4 * 32 * 4 * 2 * 2
    model = fresh(tiny_model_folder, 2 * whole)
    for image_path in image_paths:
        model.ask(image_path, QUESTIONS)
        assert model.image_cache.nbytes <= 2 * whole
    assert len(model.image_cache) == 2
    small = fresh(tiny_model_folder, lean)
    assert small.ask(image_paths[0], QUESTIONS) == probe.ask(image_paths[0], QUESTIONS)
    assert small.image_cache.nbytes <= lean


def test_a_row_of_a_batch_keeps_its_own_memory_alone(model: Model, image_paths: list[Path]) -> None:
    model.caption(image_paths)
    for encoded in [model.encode_image(image_path) for image_path in image_paths]:
        held = [encoded.features, encoded.derived["queries"], encoded.derived["prefix"].embeds]
        assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in held)


def test_the_bound_is_an_option_of_load(tiny_model_folder: Path, image_paths: list[Path]) -> None:
    assert openblip.load(tiny_model_folder, device="cpu").image_cache.limit == 256 * 2**20
    off = openblip.load(tiny_model_folder, device="cpu", image_cache=0)
    off.ask(image_paths[0], QUESTIONS)
    assert len(off.image_cache) == 0
    with pytest.raises(OptionError, match="image_cache is -1: it must be a number of bytes, 0 or more"):
        openblip.load(tiny_model_folder, device="cpu", image_cache=-1)


def test_a_copy_starts_with_nothing_seen(model: Model, image_paths: list[Path]) -> None:
    model.encode_image(image_paths[0])
    copied = pickle.loads(pickle.dumps(model.image_cache))
    assert (len(copied), copied.nbytes, copied.limit) == (0, 0, model.image_cache.limit)


def test_an_encoded_image_is_pickled_alone(model: Model, image_paths: list[Path], looks: list[int]) -> None:
    encoded = model.encode_image(image_paths[0])
    said = model.ask(encoded, QUESTIONS), model.match(encoded, "a dog")
    packed = pickle.dumps(encoded)
    # Neither the network nor the keys and values that it has computed.
    assert len(packed) < encoded.features.nbytes + 2_000 < encoded.nbytes
    for duplicate in (pickle.loads(packed), copy.deepcopy(encoded)):
        model.image_cache.clear()
        assert (model.ask(duplicate, QUESTIONS), model.match(duplicate, "a dog")) == said
        assert repr(duplicate) == repr(encoded)
    again = copy.deepcopy(model)
    assert again.ask(encoded, QUESTIONS) == said[0]
    assert sum(looks) == 1


# Requests that fail, and requests at the same time


@pytest.mark.parametrize("questions", [1, 3])
def test_a_request_that_fails_leaves_what_fits_the_bound(
    model: Model, image_paths: list[Path], questions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model.ask(image_paths[0], QUESTIONS)
    before = (len(model.image_cache), model.image_cache.nbytes)

    def fail(*given: object) -> Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Opt, "decode_step", fail)
        with pytest.raises(KeyboardInterrupt):
            model.ask(image_paths[0], QUESTIONS[:questions])
        assert (len(model.image_cache), model.image_cache.nbytes) == before
        model.image_cache.clear()
        with pytest.raises(KeyboardInterrupt):
            model.ask(image_paths[0], QUESTIONS[:questions])
    (kept,) = [image for image, _ in model.image_cache._kept.values()]
    assert model.image_cache.nbytes == kept.nbytes, "keys and values that were computed are not counted"
    assert model.ask(image_paths[0], QUESTIONS) == expected


def test_an_image_that_cannot_be_encoded_is_not_kept(
    model: Model, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(pixels: Tensor) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(model.network, "image_features", fail)
    with pytest.raises(KeyboardInterrupt):
        model.caption(image_paths[0])
    assert len(model.image_cache) == 0
    assert not model.image_cache._lock.locked()


def test_threads_share_it(tiny_model_folder: Path, image_paths: list[Path]) -> None:
    alone = [fresh(tiny_model_folder, 0).ask(image_path, QUESTIONS) for image_path in image_paths]
    probe = fresh(tiny_model_folder)
    probe.ask(image_paths[0], QUESTIONS)
    # Three images with keys and values: threads push out one another's.
    model = fresh(tiny_model_folder, 3 * probe.image_cache.nbytes)
    together = threading.Barrier(4)

    def work(worker: int) -> None:
        together.wait()
        for turn in range(6):
            number = (worker + turn) % len(image_paths)
            assert model.ask(image_paths[number], QUESTIONS) == alone[number]
            assert model.image_cache.nbytes <= model.image_cache.limit

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    kept = [image.nbytes for image, _ in model.image_cache._kept.values()]
    assert model.image_cache.nbytes == sum(kept) <= model.image_cache.limit


def test_its_size_is_taken_while_another_thread_derives_something(model: Model, image_paths: list[Path]) -> None:
    image = model.encode_image(image_paths[0])

    class Derived:
        """Another thread's turn comes as its size is asked for."""

        @property
        def nbytes(self) -> int:
            image.derived["of the other thread"] = torch.zeros(1)
            return 1

    before = image.nbytes
    image.derived["of this thread"] = Derived()
    assert image.nbytes == before + 1
