"""Prompts of different lengths read as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.errors import OptionError
from openblip.generation.options import ResolvedOptions
from openblip.generation.prefix import Prefix
from openblip.nn.language_model import LanguageConfig, LanguageModel, Reader, Reading

SHORTER = "shorten the prompt or lower max_new_tokens"
NO_ID = -1
"""Stands where there is no token."""


@dataclass
class Prefilled:
    """What generation goes on from.

    Attributes:
        reading: with room for as many texts a prompt as are searched or drawn.
        logits: of the first new token [P, vocabulary], float32.
        prompt_ids: [P, n] ids that stand in the text already, padded in front with -1; n may be 0.
        counted: [P] how many of them count in a text's length; None where they do not.
    """

    reading: Reading
    logits: Tensor
    prompt_ids: Tensor
    counted: Tensor | None = None


def prefill(
    model: LanguageModel,
    prompts: Sequence[Tensor],
    options: ResolvedOptions,
    prompt_ids: Sequence[Tensor] | None,
    prefix: Prefix | Sequence[Prefix] | None = None,
    advice: str = SHORTER,
) -> Prefilled:
    """Read each prompt [T_i, token width] once, leaving room for the texts that are to go on from it.

    Args:
        prefix: what the prompts, which are given without it, begin with: one for all, or one each.
        advice: what to do about too many tokens, as the error says.

    Raises:
        OptionError: the longest prompt and the new tokens exceed the model's positions.
    """
    if prefix is None or isinstance(prefix, Prefix):
        in_front = [0 if prefix is None else prefix.length] * len(prompts)
    else:
        in_front = [one.length for one in prefix]
    longest = max(len(prompt) + before for prompt, before in zip(prompts, in_front, strict=True))
    check_positions(model.config, longest, options.max_new_tokens, advice)
    if prompt_ids is not None and 0 < sum(len(row) > 0 for row in prompt_ids) < len(prompts):
        raise OptionError("prompt ids were given for some prompts only: give them for all or none")
    reading, logits = read_prompts(model, prompts, prefix, options.max_new_tokens, options.texts)
    used, counted = used_ids(model.config, prompt_ids or [()] * len(prompts), logits.device)
    return Prefilled(reading, logits, used, counted)


def read_prompts(
    model: LanguageModel,
    prompts: Sequence[Tensor],
    prefix: Prefix | Sequence[Prefix] | None,
    new_tokens: int,
    texts: int,
) -> tuple[Reading, Tensor]:
    """Prompts [T_i, token width] as one batch: what to go on from, and the first scores, as `Reader.read` gives them.

    Args:
        new_tokens: for which room is left, of each of so many texts a prompt.
    """
    reader: Reader = model
    if isinstance(prefix, Prefix):
        reader, prompts = prefix.before_all(prompts)
    elif prefix is not None:
        reader, prompts = prefix[0].before_each(prefix, prompts)
    embeds, mask = _stack(prompts)
    return reader.read(embeds, mask, new_tokens, texts)


def used_ids(
    config: LanguageConfig, prompt_ids: Sequence[Tensor | Sequence[int]], device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Ids that stand in each text already, and how many of them count in its length, as `Prefilled` has them."""
    # What the decoder begins with counts as used, as in transformers.
    start = torch.tensor([config.start_ids] * len(prompt_ids), dtype=torch.int64, device=device)
    longest = max(map(len, prompt_ids), default=0)
    rows = [
        F.pad(torch.as_tensor(row, dtype=torch.int64), (longest - len(row), 0), value=NO_ID).to(device)
        for row in prompt_ids
    ]
    used = torch.cat([start, torch.stack(rows)], dim=1)
    return used, (used >= 0).sum(dim=1) if config.prompt_counts else None


def check_positions(config: LanguageConfig, prompt: int, new_tokens: int, advice: str = SHORTER) -> None:
    """Raises OptionError, which says what to do, when tokens of a prompt and of its text exceed a model's positions."""
    if not fits(config, prompt, new_tokens):
        raise OptionError(
            f"a prompt of {prompt} tokens and {new_tokens} new ones exceed the model's {config.max_positions} "
            f"positions: {advice}"
        )


def fits(config: LanguageConfig, prompt: int, new_tokens: int) -> bool:
    """Whether so many tokens of a prompt and of its text have their positions in a model."""
    if config.max_positions is None:
        return True
    if config.encodes_prompts:
        return max(prompt, len(config.start_ids) + new_tokens) <= config.max_positions
    return prompt + new_tokens <= config.max_positions


def _stack(prompts: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Prompts padded on the left [P, T, width], and their mask [P, T]; None when all are of one length."""
    lengths = [len(prompt) for prompt in prompts]
    longest = max(lengths)
    embeds = prompts[0].new_zeros(len(prompts), longest, prompts[0].shape[1])
    mask = torch.zeros(len(prompts), longest, dtype=torch.bool, device=embeds.device)
    for row, prompt in enumerate(prompts):
        embeds[row, longest - lengths[row] :] = prompt
        mask[row, longest - lengths[row] :] = True
    return embeds, None if min(lengths) == longest else mask
