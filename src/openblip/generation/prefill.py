"""Prompts of different lengths read as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openblip.errors import OptionError
from openblip.nn.language_model import LanguageConfig, LanguageModel, Reading


@dataclass
class Prefilled:
    """What generation goes on from.

    Attributes:
        reading: one row a prompt.
        logits: of the first new token [P, vocabulary], float32.
        prompt_ids: [P, n] ids that count for the repetition penalty, padded by repetition; n may be 0.
    """

    reading: Reading
    logits: Tensor
    prompt_ids: Tensor


def prefill(
    model: LanguageModel, prompts: Sequence[Tensor], new_tokens: int, prompt_ids: Sequence[Tensor] | None
) -> Prefilled:
    """Read each prompt [T_i, token width] once, leaving room for `new_tokens`.

    Raises:
        OptionError: the longest prompt and the new tokens exceed the model's positions.
    """
    lengths = [prompt.shape[0] for prompt in prompts]
    longest = max(lengths)
    if not fits(model.config, longest, new_tokens):
        raise OptionError(
            f"a prompt of {longest} tokens and {new_tokens} new ones exceed the model's {model.config.max_positions} "
            "positions: shorten the prompt or lower max_tokens"
        )
    embeds = prompts[0].new_zeros(len(prompts), longest, prompts[0].shape[1])
    mask = torch.zeros(len(prompts), longest, dtype=torch.bool, device=embeds.device)
    for row, prompt in enumerate(prompts):
        embeds[row, longest - lengths[row] :] = prompt
        mask[row, longest - lengths[row] :] = True
    reading, logits = model.read(embeds, None if min(lengths) == longest else mask, new_tokens)
    used = _stack_ids(prompt_ids, len(prompts), embeds.device)
    # What the decoder begins with counts as used, as in transformers.
    start = used.new_tensor(model.config.start_ids).expand(len(prompts), -1)
    return Prefilled(reading, logits, torch.cat([start, used], dim=1))


def fits(config: LanguageConfig, prompt: int, new_tokens: int) -> bool:
    """Whether so many tokens of a prompt and of its text have their positions in a model."""
    if config.max_positions is None:
        return True
    if config.encodes_prompts:
        return max(prompt, len(config.start_ids) + new_tokens) <= config.max_positions
    return prompt + new_tokens <= config.max_positions


def _stack_ids(rows: Sequence[Tensor] | None, count: int, device: torch.device) -> Tensor:
    """Rows of ids as a rectangle; a short row repeats its first id, which changes no penalty."""
    if rows is None or not any(len(row) for row in rows):
        return torch.empty(count, 0, dtype=torch.int64, device=device)
    longest = max(len(row) for row in rows)
    if min(len(row) for row in rows) == 0:
        raise OptionError("prompt ids were given for some prompts only: give them for all or none")
    return torch.stack([torch.cat([row, row[:1].expand(longest - len(row))]) for row in rows]).to(device)
