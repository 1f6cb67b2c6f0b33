"""Which of given texts a language model finds likeliest behind a prompt, without generating any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openblip.generation.options import GenerationOptions
from openblip.generation.prefill import prefill
from openblip.generation.prefix import Prefix
from openblip.nn.language_model import LanguageModel


@dataclass(frozen=True)
class Candidate:
    """One of the given texts.

    Attributes:
        index: its place among them.
        score: the sum of its tokens' log-probabilities, the stop token's included, smoothed as the model's loss is.
    """

    index: int
    score: float


@torch.inference_mode()
def rank_candidates(
    model: LanguageModel,
    prompts: Sequence[Tensor],
    candidates: Sequence[Sequence[int]],
    prefix: Prefix | Sequence[Prefix] | None = None,
    first: int = 128,
) -> list[list[Candidate]]:
    """Texts by how likely they are behind each prompt, best first, as LAVIS ranks answers.

    The texts whose first tokens are likeliest are read whole, side by side, and scored.

    Args:
        prompts: embeddings [T_i, token width]; prefix: see `generate`.
        candidates: ids of each text, which ends with a stop token.
        first: how many texts are read of each prompt.

    Raises:
        OptionError: prompt and the longest text exceed the model's positions.
    """
    if not prompts or not candidates:
        return [[] for _ in prompts]
    count, longest = min(first, len(candidates)), max(map(len, candidates))
    options = GenerationOptions(max_new_tokens=longest, num_return_sequences=count, do_sample=True).resolved()
    start = prefill(model, prompts, options, None, prefix, "shorten the question, or leave long answers out")
    device = start.logits.device
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in candidates], device=device)
    lengths = torch.tensor(list(map(len, candidates)), device=device)
    odds = start.logits.softmax(dim=1)[:, ids[:, 0]]
    # Many begin with one token: which of these are read is up to topk, here as in LAVIS.
    chosen = odds.topk(count, dim=1).indices
    # The longest first: those that have ended are left out of the next step.
    by_length = lengths[chosen].argsort(dim=1, descending=True, stable=True)
    texts, ends = ids[chosen].gather(1, by_length[..., None].expand(-1, -1, longest)), lengths[chosen].sort(1, True)[0]
    sums = torch.zeros(len(prompts), count, device=device)
    log_probs = start.logits.log_softmax(dim=1)[:, None]
    smoothing = model.config.label_smoothing
    for place in range(int(ends.max())):
        going = int((ends > place).sum(dim=1).max())
        if place:
            themselves = torch.arange(going, device=device).expand(len(prompts), -1)
            log_probs = start.reading.step(texts[:, :going, place - 1], themselves).log_softmax(dim=2)
        token = log_probs.expand(-1, going, -1).gather(2, texts[:, :going, place, None])[..., 0]
        smoothed = (1 - smoothing) * token + smoothing * log_probs.mean(dim=2)
        sums[:, :going] += smoothed.masked_fill(place >= ends[:, :going], 0.0)
    scores = torch.zeros_like(sums).scatter(1, by_length, sums)
    order = scores.argsort(dim=1, descending=True, stable=True)
    return [
        [Candidate(int(chosen[row, place]), float(scores[row, place])) for place in places]
        for row, places in enumerate(order.tolist())
    ]
