"""Retrieval scores against a ranking written out by hand, and what re-ranking may and may not change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from openblip.errors import OptionError
from openblip.evaluation.metrics.recall import RetrievalScores, score_retrieval
from openblip.matching.ranking import Search, rank
from openblip.nn.blip2 import itc_similarity
from openblip.results import Ranked, Rankings


def never(chosen: Tensor) -> Tensor:
    raise AssertionError("ITM was asked although nothing is re-ranked")


def unit(rows: list[list[float]]) -> Tensor:
    return torch.nn.functional.normalize(torch.tensor(rows).float(), dim=-1)


def test_recall_by_hand() -> None:
    # Three images of two queries each; a text belongs to the image whose better query is nearer.
    images = unit([[1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 1, 0]]).view(3, 2, 3)
    texts = unit([[1, 0.1, 0], [0, 1, 0.1], [1, 0.9, 0], [0.1, 1, 0]])
    cosines = itc_similarity(images, texts)
    search = Search(rerank=0)
    rankings = Rankings(rank(cosines.T, ["image"] * 3, search, never), rank(cosines, ["text"] * 4, search, never))
    scores = score_retrieval(rankings, [0, 1, 2, 2])
    # Texts 0, 1, 2 find their images first; text 3 finds image 1 before its own image 2.
    assert scores.text_to_image.at_1 == pytest.approx(3 / 4)
    assert scores.text_to_image.at_5 == 1
    # Images 0 and 2 find a text of theirs first, and so does image 1, whose query is nearest text 3 or 1.
    first = (images[1] @ texts.T).amax(0).argmax().item()
    assert scores.image_to_text.at_1 == pytest.approx((2 + (first == 1)) / 3)


def test_matching_decides_among_the_best_only() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.normalize(torch.randn(30, 1, 8, generator=generator), dim=-1)
    texts = torch.nn.functional.normalize(images[:, 0] + 0.8 * torch.randn(30, 8, generator=generator), dim=-1)
    cosines = itc_similarity(images, texts)

    def oracle(chosen: Tensor) -> Tensor:
        right = chosen == torch.arange(30)[:, None]
        return torch.stack([torch.where(right, -8.0, 8.0), torch.where(right, 8.0, -8.0)], dim=-1)

    def scores(rerank: int) -> RetrievalScores:
        search, names = Search(rerank=rerank), ["one"] * 30
        rankings = Rankings(rank(cosines.T, names, search, oracle), rank(cosines, names, search, oracle))
        return score_retrieval(rankings, list(range(30)))

    plain, ranked = scores(0), scores(5)
    assert plain.text_to_image.at_1 < plain.text_to_image.at_5 < 1
    # A perfect matcher lifts R@1 to R@5, and cannot lift what contrast left out.
    for before, after in (
        (plain.text_to_image, ranked.text_to_image),
        (plain.image_to_text, ranked.image_to_text),
    ):
        assert after.at_1 == after.at_5 == before.at_5
        assert after.at_10 == pytest.approx(before.at_10)


def test_rankings_that_cannot_be_scored_are_refused() -> None:
    rankings = Rankings([[Ranked(0, "image", 1.0)]], [[Ranked(0, "text", 1.0)]] * 2)
    with pytest.raises(OptionError, match="1 texts were ranked, but 2 have an image"):
        score_retrieval(rankings, [0, 1])
    with pytest.raises(OptionError, match="a ranking has 1 results, R@10 needs 2"):
        score_retrieval(rankings, [1])
