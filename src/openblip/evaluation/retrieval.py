"""Image-text retrieval: rank everything by contrast (ITC), re-rank the best by matching (ITM)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openblip.nn.blip2 import itc_similarity

Matcher = Callable[[Sequence[int], Sequence[int]], Tensor]
"""(image indices, text indices) of the same length to ITM log-odds [n]."""


@dataclass(frozen=True)
class Recall:
    """Share of queries whose right answer is among the first 1, 5, 10."""

    at_1: float
    at_5: float
    at_10: float


@dataclass(frozen=True)
class RetrievalScores:
    """Both directions; of the several texts of an image any one counts as right."""

    text_to_image: Recall
    image_to_text: Recall


def score_retrieval(
    image_embeds: Tensor, text_embeds: Tensor, image_of_text: Sequence[int], matcher: Matcher, rerank: int
) -> RetrievalScores:
    """Recall of ITC followed by ITM, as BLIP-2 evaluates it.

    Args:
        image_embeds: [I, Q, E]; text_embeds: [T, E].
        image_of_text: for each text its image's index.
        matcher: gives ITM log-odds; its score is added to the cosine of the `rerank` best candidates.
        rerank: candidates a query that ITM looks at; 0 for ITC alone.
    """
    similarity = itc_similarity(image_embeds, text_embeds)
    right = torch.zeros_like(similarity, dtype=torch.bool)
    right[torch.tensor(image_of_text), torch.arange(len(image_of_text))] = True

    def by_image(queries: Sequence[int], answers: Sequence[int]) -> Tensor:
        return matcher(queries, answers)

    def by_text(queries: Sequence[int], answers: Sequence[int]) -> Tensor:
        return matcher(answers, queries)

    return RetrievalScores(
        text_to_image=_recall(_rerank(similarity.T, by_text, rerank), right.T),
        image_to_text=_recall(_rerank(similarity, by_image, rerank), right),
    )


def _rerank(similarity: Tensor, matcher: Matcher, count: int) -> Tensor:
    """Similarities [queries, answers], the best `count` of each row lifted above the rest by their ITM score."""
    if not count:
        return similarity
    best = similarity.topk(min(count, similarity.shape[1]), dim=1)
    queries = torch.arange(len(similarity))[:, None].expand_as(best.indices)
    odds = matcher(queries.flatten().tolist(), best.indices.flatten().tolist()).view_as(best.values)
    # A probability lies in 0..1 and a cosine in -1..1: 10 keeps the chosen ones in front.
    return similarity.scatter(1, best.indices, 10 + best.values + odds.sigmoid())


def _recall(scores: Tensor, right: Tensor) -> Recall:
    ranked = right.gather(1, scores.argsort(dim=1, descending=True))
    first, fifth, tenth = (ranked[:, :count].any(dim=1).double().mean().item() for count in (1, 5, 10))
    return Recall(first, fifth, tenth)
