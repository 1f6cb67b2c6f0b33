"""Search finds what LAVIS' retrieval evaluation finds, keeps no more images than it needs, and is stable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from torch import Tensor

import openblip
from openblip.errors import ImageError, OptionError
from openblip.matching import ranking
from openblip.matching.ranking import Search, rank
from openblip.models.load import model_of
from openblip.models.model import Model
from openblip.results import Ranked
from tests.checkpoints.theirs import write_matcher
from tests.pairs.folders import TEXTS, lavis_ranks, noise_images, their_scores

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return noise_images(11)


def count_looks(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    model.image_cache.clear()
    seen: list[int] = []
    encode = model.network.image_features

    def run(pixels: Tensor) -> Tensor:
        seen.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(model.network, "image_features", run)
    return seen


def test_ranks_and_scores_are_those_of_lavis_rule(tmp_path: Path, images: list[Image.Image]) -> None:
    theirs = write_matcher(tmp_path)
    ours = openblip.load(tmp_path, device="cpu")
    cosines, logits = their_scores(theirs, images, TEXTS)
    yes = logits[..., 1]
    for k in (1, 3, 5):
        for similarity, itm, found in (
            (cosines, yes, ours.rank_texts(images, TEXTS, rerank=k, batch_size=4)),
            (cosines.T, yes.T, ours.rank_images(TEXTS, images, rerank=k, batch_size=4)),
        ):
            for query, ranked in enumerate(found):
                expected, scores = lavis_ranks(similarity[query], itm[query], k)
                assert [one.index for one in ranked[:k]] == expected
                assert [one.score for one in ranked[:k]] == pytest.approx(scores, abs=TOLERANCE)
                assert all(one.itm is None and one.score is None for one in ranked[k:])
    # The ITM logit really decides: contrast alone ranks otherwise.
    reranked = [[one.index for one in row] for row in ours.rank_images(TEXTS, images, top=None)]
    assert reranked != [[one.index for one in row] for row in ours.rank_images(TEXTS, images, top=None, rerank=0)]


def same(found: list[Ranked], expected: list[Ranked]) -> bool:
    """Equal but for rounding, which depends on the batch."""
    return [(one.index, one.source) for one in found] == [(one.index, one.source) for one in expected] and all(
        getattr(one, name) == pytest.approx(getattr(other, name), abs=TOLERANCE)
        for one, other in zip(found, expected, strict=True)
        for name in ("itc", "itm", "score")
    )


def test_results_are_typed_and_agree_with_match(tiny_model: Model, image_paths: list[Path]) -> None:
    found = tiny_model.rank_images("a dog", image_paths, top=None, rerank=3)
    assert sorted(one.index for one in found) == [0, 1, 2, 3, 4]
    for one in found[:3]:
        match = tiny_model.match(image_paths[one.index], "a dog")
        assert one.source == str(image_paths[one.index])
        assert (one.itc, one.itm) == pytest.approx((match.itc, match.itm), abs=TOLERANCE)
    assert [one.score for one in found[:3]] == sorted((one.score for one in found[:3]), reverse=True)
    assert [one.itc for one in found[3:]] == sorted((one.itc for one in found[3:]), reverse=True)
    assert min(one.itc for one in found[:3]) >= found[3].itc
    texts = tiny_model.rank_texts(image_paths[0], TEXTS)
    assert {one.source for one in texts} == set(TEXTS)
    assert all(TEXTS[one.index] == one.source for one in texts)


def test_one_look_serves_both_ways_and_all_queries(
    tiny_model: Model, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tiny_model.rank_images(TEXTS, image_paths, rerank=2)
    texts = tiny_model.rank_texts(image_paths, TEXTS, rerank=2)
    looks = count_looks(tiny_model, monkeypatch)
    both = tiny_model.rank_both(iter(image_paths), TEXTS, rerank=2, batch_size=2)
    assert looks == [2, 2, 1]
    assert len(both.images) == len(TEXTS) and len(both.texts) == len(image_paths)
    assert all(same(ranked, expected) for ranked, expected in zip(both.images, found, strict=True))
    assert all(same(ranked, expected) for ranked, expected in zip(both.texts, texts, strict=True))
    assert same(tiny_model.rank_images(TEXTS[1], image_paths, rerank=2), found[1])
    assert same(tiny_model.rank_texts(image_paths[1], TEXTS, rerank=2), texts[1])
    assert same(tiny_model.rank_images(TEXTS[1], image_paths, rerank=2, top=1), found[1][:1])


def test_only_candidates_are_kept(
    tiny_model: Model, images: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    add = ranking._ImagesForTexts.add

    def counted(self: Any, *arguments: Any) -> None:
        add(self, *arguments)
        kept.append(len(self.features))

    monkeypatch.setattr(ranking._ImagesForTexts, "add", counted)
    tiny_model.rank_images("a dog", images, rerank=2, batch_size=3)
    assert kept == [2, 2, 2, 2]
    tiny_model.rank_images("a dog", images, rerank=0)
    tiny_model.rank_images(TEXTS, images, rerank=2, batch_size=4)
    assert kept[4:6] == [0, 0] and max(kept[6:]) <= 10


def test_twins_are_ranked_in_the_order_given(tiny_model: Model, images: list[Image.Image]) -> None:
    twins = [images[0], images[1]] * 4
    for text in TEXTS:
        found = tiny_model.rank_images(text, twins, top=None, rerank=3, batch_size=1)
        first, second = found[0].index % 2, 1 - found[0].index % 2
        # What is read together may differ in the last bit, and so in order; which is read may not.
        assert sorted(one.index for one in found[:3]) == [first, first + 2, first + 4]
        assert [one.index for one in found[3:]] == [first + 6, *range(second, 8, 2)]


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(0, 4), st.integers(0, 6)).flatmap(
        lambda shape: st.tuples(*(arrays(np.float32, shape, elements=st.sampled_from([-0.5, 0.0, 0.5, 1.0])),) * 2)
    ),
    st.integers(0, 7),
    st.one_of(st.none(), st.integers(1, 7)),
)
def test_the_rule(scores: tuple[Any, Any], rerank: int, top: int | None) -> None:
    """Many equals, on purpose."""
    cosines, yes = (torch.from_numpy(values) for values in scores)
    count = cosines.shape[1]
    found = rank(cosines, [f"answer {index}" for index in range(count)], Search(top, rerank), logits_of(yes))
    assert len(found) == len(cosines)
    for query, ranked in enumerate(found):
        row, itm = cosines[query].tolist(), yes[query].tolist()
        by_itc = sorted(range(count), key=lambda index: -row[index])
        head = sorted(by_itc[:rerank], key=lambda index: -(row[index] + itm[index]))
        assert [one.index for one in ranked] == (head + by_itc[rerank:])[:top]
        for place, one in enumerate(ranked):
            assert one.source == f"answer {one.index}" and one.itc == row[one.index]
            matched = place < len(head)
            assert one.score == (row[one.index] + itm[one.index] if matched else None)
            assert (one.itm is not None) is matched


def logits_of(yes: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda chosen: torch.stack([torch.zeros(chosen.shape), yes.gather(1, chosen)], dim=-1)


def test_nothing_finds_nothing_and_wrong_options_are_named(tiny_model: Model, image_paths: list[Path]) -> None:
    assert tiny_model.rank_images([], image_paths) == []
    assert tiny_model.rank_images(["a dog", "a cat"], []) == [[], []]
    assert tiny_model.rank_images("a dog", []) == []
    assert tiny_model.rank_texts([], TEXTS) == []
    assert tiny_model.rank_texts(image_paths[:2], []) == [[], []]
    both = tiny_model.rank_both([], [])
    assert (both.images, both.texts) == ([], [])
    (only,) = tiny_model.rank_images("a dog", str(image_paths[0]))
    assert only.index == 0 and only.itm is not None
    for options, named in (({"top": 0}, "top is 0"), ({"rerank": -1}, "rerank is -1"), ({"batch_size": 0}, "batch")):
        with pytest.raises(OptionError, match=named):
            tiny_model.rank_texts(image_paths, TEXTS, **options)
    with pytest.raises(ImageError, match=r"gone\.png"):
        tiny_model.rank_images("a dog", [image_paths[0], "gone.png"])


def test_a_model_without_text_side_cannot_search(tiny_model: Model, image_paths: list[Path]) -> None:
    model = model_of(replace(tiny_model.parts, matching=None), tiny_model.placement)
    for call in (
        lambda: model.scores(image_paths, TEXTS),
        lambda: next(model.match_many(image_paths, TEXTS)),
        lambda: model.rank_images("a dog", image_paths),
        lambda: model.rank_texts(image_paths, TEXTS),
        lambda: model.rank_both(image_paths, TEXTS),
    ):
        with pytest.raises(openblip.CheckpointError, match="has no text side"):
            call()
