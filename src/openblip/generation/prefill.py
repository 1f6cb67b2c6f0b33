"""Prompts of different lengths read into one cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openblip.errors import OptionError
from openblip.nn.cache import KeyValueCache
from openblip.nn.decoder import Decoder


@dataclass
class Prefilled:
    """What generation goes on from.

    Attributes:
        cache: one row a prompt, padded on the left to `length` tokens.
        logits: of the first new token [P, vocabulary], float32.
        prompt_ids: [P, n] ids that count for the repetition penalty, padded by repetition; n may be 0.
    """

    cache: KeyValueCache
    logits: Tensor
    prompt_ids: Tensor
    length: int


def prefill(
    decoder: Decoder, prompts: Sequence[Tensor], new_tokens: int, prompt_ids: Sequence[Tensor] | None
) -> Prefilled:
    """Read each prompt [T_i, token width] once, leaving room for `new_tokens`.

    Raises:
        OptionError: the longest prompt and the new tokens exceed the model's positions.
    """
    lengths = [prompt.shape[0] for prompt in prompts]
    longest = max(lengths)
    limit = decoder.config.max_positions
    if longest + new_tokens > limit:
        raise OptionError(
            f"a prompt of {longest} tokens and {new_tokens} new ones exceed the model's {limit} positions: "
            "shorten the prompt or lower max_tokens"
        )
    embeds = prompts[0].new_zeros(len(prompts), longest, prompts[0].shape[1])
    mask = torch.zeros(len(prompts), longest, dtype=torch.bool, device=embeds.device)
    for row, prompt in enumerate(prompts):
        embeds[row, longest - lengths[row] :] = prompt
        mask[row, longest - lengths[row] :] = True
    cache = decoder.new_cache(len(prompts), longest + new_tokens)
    hidden = decoder(embeds, None if min(lengths) == longest else mask, cache)
    logits = decoder.logits(hidden[:, -1]).float()
    return Prefilled(cache, logits, _stack_ids(prompt_ids, len(prompts), embeds.device), longest)


def step(decoder: Decoder, tokens: Tensor, cache: KeyValueCache) -> Tensor:
    """Read one more token a row [R] and score the next: [R, vocabulary] float32."""
    hidden = decoder(decoder.embed(tokens[:, None]), None, cache)
    return decoder.logits(hidden[:, -1]).float()


def _stack_ids(rows: Sequence[Tensor] | None, count: int, device: torch.device) -> Tensor:
    """Rows of ids as a rectangle; a short row repeats its first id, which changes no penalty."""
    if rows is None or not any(len(row) for row in rows):
        return torch.empty(count, 0, dtype=torch.int64, device=device)
    longest = max(len(row) for row in rows)
    if min(len(row) for row in rows) == 0:
        raise OptionError("prompt ids were given for some prompts only: give them for all or none")
    return torch.stack([torch.cat([row, row[:1].expand(longest - len(row))]) for row in rows]).to(device)
