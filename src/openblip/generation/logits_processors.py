"""Logits processors: they change the scores of the next token before one is chosen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from openblip.generation.bad_words import bad_words
from openblip.generation.options import ResolvedOptions


def process_logits(scores: Tensor, used: Tensor, new_tokens: int | Tensor, options: ResolvedOptions) -> Tensor:
    """Scores after the repetition penalty, without tokens that would repeat, say bad words, or stop before
    `min_new_tokens`.

    Args:
        scores: [R, vocabulary] logits or log-probabilities.
        used: [R, n] ids that stand in the text already; -1 is none.
        new_tokens: how many were generated so far: of all alike, or of each row [R].
    """
    if options.repetition_penalty != 1 and used.shape[1]:
        count = scores.shape[1]
        # One column more, for what is no token.
        occurs = scores.new_zeros(scores.shape[0], count + 1, dtype=torch.bool)
        occurs = occurs.scatter(1, torch.where(used < 0, count, used), True)[:, :count]
        penalized = torch.where(scores < 0, scores * options.repetition_penalty, scores / options.repetition_penalty)
        scores = torch.where(occurs, penalized, scores)
    if options.no_repeat_ngram_size:
        scores = without_repeated_ngrams(scores, used, options.no_repeat_ngram_size)
    if options.no_repeat_words and options.vocabulary is not None:
        scores = without_tokens(scores, used, options.vocabulary.repeating)
    if options.bad_words and options.vocabulary is not None:
        scores = without_tokens(scores, used, bad_words(options.vocabulary, options.bad_words).completing)
    if options.min_new_tokens and options.stop_ids:
        scores = _without_early_stops(scores, new_tokens, options)
    return scores


def reads_used(options: ResolvedOptions) -> bool:
    """Whether `process_logits` looks at what stands in a text already."""
    repeats = options.repetition_penalty != 1 or options.no_repeat_ngram_size or options.no_repeat_words
    return bool(repeats or options.bad_words)


def _without_early_stops(scores: Tensor, new_tokens: int | Tensor, options: ResolvedOptions) -> Tensor:
    if isinstance(new_tokens, int):
        if new_tokens < options.min_new_tokens:
            scores = scores.clone()
            scores[:, list(options.stop_ids)] = -torch.inf
        return scores
    rows = (new_tokens < options.min_new_tokens).nonzero()
    stops = torch.tensor(options.stop_ids, device=scores.device)
    return scores.index_put((rows, stops[None]), scores.new_tensor(-torch.inf))


def without_repeated_ngrams(scores: Tensor, used: Tensor, size: int) -> Tensor:
    """Scores of -inf for tokens that would complete a sequence of `size` tokens that `used` [R, n] has already."""
    if used.shape[1] < size:
        return scores
    sequences = used.unfold(1, size, 1)
    begun = used[:, used.shape[1] - size + 1 :]
    repeats = (sequences[:, :, :-1] == begun[:, None]).all(dim=2) & (sequences[:, :, -1] >= 0)
    rows, places = repeats.nonzero(as_tuple=True)
    return scores.index_put((rows, sequences[rows, places, -1]), scores.new_tensor(-torch.inf))


def without_tokens(scores: Tensor, used: Tensor, forbidden: Callable[[list[int]], set[int]]) -> Tensor:
    """Scores of -inf for the tokens that are `forbidden` behind the ids of each row of `used` [R, n]."""
    found = [(row, token) for row, ids in enumerate(used.tolist()) for token in forbidden(ids)]
    if not found:
        return scores
    rows, tokens = torch.tensor(found, device=scores.device).T
    return scores.index_put((rows, tokens), scores.new_tensor(-torch.inf))


def shape_distribution(scores: Tensor, options: ResolvedOptions) -> Tensor:
    """Probabilities to draw from: temperature, then top-k, then top-p (Holtzman et al. 2020): [R, vocabulary]."""
    scores = scores.float() / options.temperature
    if 0 < options.top_k < scores.shape[1]:
        least = scores.topk(options.top_k, dim=1).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if options.top_p < 1:
        ordered, order = scores.sort(dim=1)
        outside = ordered.softmax(dim=1).cumsum(dim=1) <= 1 - options.top_p
        outside[:, -1] = False
        scores = scores.masked_fill(outside.scatter(1, order, outside), -torch.inf)
    return scores.softmax(dim=1)
