"""Rules that change next-token scores before one is chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from openblip.generation.options import ResolvedOptions


def apply_rules(scores: Tensor, used: Tensor, new_tokens: int, options: ResolvedOptions) -> Tensor:
    """Repetition penalty, and no stopping before `min_new_tokens`.

    Args:
        scores: [R, vocabulary] logits or log-probabilities.
        used: [R, n] ids that count as repetitions.
        new_tokens: how many were generated so far.
    """
    if options.repetition_penalty != 1 and used.shape[1]:
        old = scores.gather(1, used)
        penalised = torch.where(old < 0, old * options.repetition_penalty, old / options.repetition_penalty)
        scores = scores.scatter(1, used, penalised)
    if new_tokens < options.min_new_tokens and options.stop_ids:
        scores = scores.clone()
        scores[:, list(options.stop_ids)] = -torch.inf
    return scores


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
