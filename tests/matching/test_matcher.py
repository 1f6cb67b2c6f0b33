"""Scores of all pairs equal those of one pair at a time, ours and transformers', and nothing is computed twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import openblip
from openblip.errors import ImageError, OptionError
from openblip.matching.matcher import Matcher
from openblip.models.blip2 import Blip2Comparison
from openblip.models.model import Model
from tests.checkpoints.theirs import Theirs, write_matcher
from tests.pairs.folders import their_scores
from tests.pairs.gaps import difference

TOLERANCE = 1e-5
TEXTS = ["a red dog", "two children play with a ball on the beach", "dog", "the beach and nobody", "red red red", ""]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Theirs:
    return write_matcher(tmp_path_factory.mktemp("models") / "matcher")


@pytest.fixture(scope="module")
def model(theirs: Theirs) -> Model:
    return openblip.load(theirs.folder, device="cpu")


def matcher_of(model: Model, pairs: int) -> Matcher:
    assert model.parts.matching is not None
    return Matcher(Blip2Comparison(model.network), model.parts.matching, model.components.encoder, pairs)


def counted(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch, size: Callable[..., int]) -> list[int]:
    """Grows by the size of a batch whenever a method runs."""
    seen: list[int] = []
    method = getattr(owner, name)

    def run(*arguments: Any) -> Any:
        seen.append(size(*arguments))
        return method(*arguments)

    monkeypatch.setattr(owner, name, run)
    return seen


def test_all_pairs_equal_transformers_and_single_pairs(theirs: Theirs, model: Model, image_paths: list[Path]) -> None:
    scores = model.scores(image_paths, TEXTS, itm=True, batch_size=2)
    assert scores.itm is not None
    assert scores.itc.shape == scores.itm.shape == (5, 6) and scores.itc.dtype == scores.itm.dtype == torch.float32
    cosines, logits = their_scores(theirs, [Image.open(image_path).convert("RGB") for image_path in image_paths], TEXTS)
    assert difference(scores.itc, cosines) <= TOLERANCE
    assert difference(scores.itm, logits.softmax(dim=-1)[..., 1]) <= TOLERANCE
    alone = reference(model, tuple(image_paths))
    assert difference(scores.itc, alone[0]) <= TOLERANCE
    assert difference(scores.itm, alone[1]) <= TOLERANCE
    # They depend on both: else the comparison proves little.
    assert scores.itm.std(dim=0).min() > 1e-3 and scores.itm.std(dim=1).min() > 1e-3


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_order_and_batches_do_not_matter(model: Model, image_paths: list[Path], data: st.DataObject) -> None:
    whole = reference(model, tuple(image_paths))
    images = data.draw(st.lists(st.integers(0, 4), max_size=5))
    texts = data.draw(st.lists(st.integers(0, 5), max_size=7))
    found = matcher_of(model, data.draw(st.integers(1, 9))).scores(
        [image_paths[image] for image in images],
        [TEXTS[text] for text in texts],
        itm=True,
        batch_size=data.draw(st.integers(1, 4)),
    )
    assert found.itc.shape == (len(images), len(texts)) and found.itm is not None
    for ours, expected in ((found.itc, whole[0]), (found.itm, whole[1])):
        picked = expected[images][:, texts]
        assert ours.shape == picked.shape and torch.allclose(ours, picked, rtol=0, atol=TOLERANCE)


@cache
def reference(model: Model, image_paths: Sequence[Path]) -> tuple[Tensor, Tensor]:
    rows = [[model.match(image_path, text) for text in TEXTS] for image_path in image_paths]
    return (
        torch.tensor([[match.itc for match in row] for row in rows]),
        torch.tensor([[match.itm for match in row] for row in rows]),
    )


def test_every_image_and_text_is_encoded_once(
    tiny_model: Model, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = tiny_model.network
    tiny_model.image_cache.clear()
    looks = counted(network, "image_features", monkeypatch, len)
    memories = counted(network.qformer, "remember", monkeypatch, len)
    reads = counted(network.qformer, "text", monkeypatch, lambda ids, mask: len(ids))
    pairs = counted(network, "itm_logits", monkeypatch, lambda ids, mask, image: len(ids))
    texts = [f"{text} {number}" for number in range(25) for text in TEXTS]
    scores = tiny_model.scores(image_paths, texts, itm=True, batch_size=2)
    assert scores.itc.shape == (5, 150)
    assert looks == memories == [2, 2, 1]
    assert sum(reads) == 150
    assert sum(pairs) == 5 * 150 and max(pairs) == 64
    del looks[:], pairs[:]
    assert tiny_model.scores(image_paths, texts).itm is None
    tiny_model.match(image_paths[0], texts)
    assert looks == [] and len(pairs) == 3


def test_images_are_looked_at_as_their_turn_comes(
    tiny_model: Model, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model.image_cache.clear()
    looks = counted(tiny_model.network, "image_features", monkeypatch, len)
    found = tiny_model.match_many(iter(image_paths), ["a dog"], batch_size=2)
    assert looks == []
    next(found)
    assert looks == [2]
    assert len(list(found)) == 4


def test_labels_have_the_softmax_of_their_cosines(tiny_model: Model, image_paths: list[Path]) -> None:
    labels, templates = ["dog", "ball", "beach"], ["a photo of a {}", "the {}, and a {}"]
    cosines = torch.stack(
        [tiny_model.scores(image_paths, [text.replace("{}", label) for label in labels]).itc for text in templates]
    )
    expected = (cosines.mean(dim=0) / tiny_model.network.temperature).softmax(dim=1)
    found = tiny_model.classify(iter(image_paths), (label for label in labels), templates=iter(templates), batch_size=2)
    assert len(found) == len(image_paths)
    for row, odds in zip(found, expected, strict=True):
        assert [one.probability for one in row] == sorted((one.probability for one in row), reverse=True)
        by_label = {one.label: one.probability for one in row}
        assert [by_label[label] for label in labels] == pytest.approx(odds.tolist(), abs=1e-5)
        assert sum(by_label.values()) == pytest.approx(1, abs=1e-5)
    usual, named = (
        tiny_model.classify(image_paths[0], labels),
        tiny_model.classify(image_paths[0], labels, templates=templates[0]),
    )
    assert usual == named and usual != found[0]
    assert tiny_model.classify(image_paths[0], "dog") == [openblip.Classified("dog", 1.0)]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"labels": []}, "no labels"),
        ({"labels": ["dog"], "templates": ()}, "no templates"),
        ({"labels": ["dog"], "templates": "a photo of"}, "'a photo of' has no {} in it"),
        ({"labels": ["dog", 3]}, "the labels have 3"),
    ],
)
def test_wrong_labels_and_templates_are_named(
    tiny_model: Model, image_paths: list[Path], wrong: Any, named: str
) -> None:
    with pytest.raises(OptionError, match=named):
        tiny_model.classify(image_paths[0], **wrong)


def test_a_bad_image_leaves_the_others(tiny_model: Model, image_paths: list[Path]) -> None:
    texts = ["a dog", "the beach"]
    sources = ["gone.png", image_paths[0], b"no image", image_paths[1], "gone.png"]
    for batch_size in (1, 2, 8):
        found = list(tiny_model.match_many(sources, texts, batch_size=batch_size))
        assert [one.error is None for one in found] == [False, True, False, True, False]
        assert [one.source for one in found] == [
            "gone.png",
            str(image_paths[0]),
            "<8 bytes>",
            str(image_paths[1]),
            "gone.png",
        ]
        assert found[0].matches == ()
        for one, image_path in ((found[1], image_paths[0]), (found[3], image_paths[1])):
            for ours, alone in zip(one.matches, tiny_model.match(image_path, texts), strict=True):
                assert ours.text == alone.text
                assert (ours.itm, ours.itc) == pytest.approx((alone.itm, alone.itc), abs=TOLERANCE)
    with pytest.raises(ImageError, match=r"gone\.png"):
        tiny_model.scores([image_paths[0], "gone.png"], texts)


@pytest.mark.parametrize("itm", [False, True])
def test_nothing_gives_nothing(tiny_model: Model, image_paths: list[Path], itm: bool) -> None:
    for images, texts in (([], []), ([], ["a dog"]), (image_paths, []), (image_paths[:1], ["a dog"])):
        scores = tiny_model.scores(images, texts, itm=itm)
        assert scores.itc.shape == (len(images), len(texts))
        assert (scores.itm is None) is not itm
        assert scores.itm is None or scores.itm.shape == scores.itc.shape
    assert list(tiny_model.match_many([], ["a dog"])) == []
    assert [one.matches for one in tiny_model.match_many(image_paths[:2], [])] == [(), ()]
    assert tiny_model.scores(str(image_paths[0]), "a dog").itc.shape == (1, 1)
    with pytest.raises(OptionError, match="batch_size is 0"):
        tiny_model.scores(image_paths, ["a dog"], batch_size=0)


def test_features_can_be_learnt_from(tiny_model: Model, image_paths: list[Path]) -> None:
    """What was computed in inference mode refuses to be saved for a backward pass."""
    probe = torch.nn.Linear(16, 1)
    scores = tiny_model.scores(image_paths, ["a dog"], itm=True)
    assert scores.itm is not None
    for features in (tiny_model.embed_images(image_paths)[:, 0], tiny_model.embed_texts(TEXTS)):
        probe(features).sum().backward()
    (torch.ones(1, requires_grad=True) * scores.itc * scores.itm).sum().backward()
    assert not torch.is_inference_mode_enabled()


def test_half_types_give_float32_scores(tiny_model: Model, tiny_model_folder: Path, image_paths: list[Path]) -> None:
    half = openblip.load(tiny_model_folder, device="cpu", dtype="bfloat16").scores(image_paths, TEXTS, itm=True)
    whole = tiny_model.scores(image_paths, TEXTS, itm=True)
    assert half.itm is not None and half.itc.dtype == half.itm.dtype == torch.float32
    assert difference(half.itc, whole.itc) < 0.1
