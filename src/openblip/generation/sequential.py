"""One token after the other: greedy search and random draws."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from openblip.generation.options import Generation, GenerationOptions, make_generation
from openblip.generation.prefill import Prefilled
from openblip.generation.processors import apply_rules, shape_distribution


def generate_sequentially(start: Prefilled, options: GenerationOptions) -> list[list[Generation]]:
    """Greedy or sampled texts, `num_return` a prompt; samples are sorted by score."""
    prompts, copies = start.logits.shape[0], options.num_return
    if copies > 1:
        rows = torch.arange(prompts, device=start.logits.device).repeat_interleave(copies)
        start.reading.take_rows(rows)
        start.logits, start.prompt_ids = start.logits[rows], start.prompt_ids[rows]
    tokens: list[list[int]] = [[] for _ in range(prompts * copies)]
    log_probs: list[list[float]] = [[] for _ in range(prompts * copies)]
    for row, token, log_prob in walk(start, options):
        tokens[row].append(token)
        log_probs[row].append(log_prob)
    found = [
        make_generation(row_tokens, row_log_probs, options.stop_ids)
        for row_tokens, row_log_probs in zip(tokens, log_probs, strict=True)
    ]
    groups = [found[first : first + copies] for first in range(0, len(found), copies)]
    return [sorted(group, key=lambda text: -text.score) for group in groups]


def walk(start: Prefilled, options: GenerationOptions) -> Iterator[tuple[int, int, float]]:
    """Yield (row, token, log-probability) as tokens are chosen, stop tokens included."""
    reading, logits, used = start.reading, start.logits, start.prompt_ids
    live = list(range(logits.shape[0]))
    draws = None if options.seed is None else _generators(len(live), options.seed, options.num_return, logits.device)
    for new_tokens in range(options.max_new_tokens):
        log_probs = logits.log_softmax(dim=1)
        scores = apply_rules(logits, used, new_tokens, options)
        if not options.sample:
            chosen = scores.argmax(dim=1)
        elif draws is None:
            chosen = torch.multinomial(shape_distribution(scores, options), 1)[:, 0]
        else:
            chances = shape_distribution(scores, options)
            picks = [torch.multinomial(chances[place], 1, generator=draws[row]) for place, row in enumerate(live)]
            chosen = torch.cat(picks)
        told = log_probs.gather(1, chosen[:, None])[:, 0].tolist()
        picked = chosen.tolist()
        yield from zip(live, picked, told, strict=True)
        going = [place for place, token in enumerate(picked) if token not in options.stop_ids]
        if not going or new_tokens + 1 == options.max_new_tokens:
            return
        used = torch.cat([used, chosen[:, None]], dim=1)
        if len(going) < len(live):
            keep = torch.tensor(going, device=logits.device)
            reading.take_rows(keep)
            chosen, used = chosen[keep], used[keep]
            live = [live[place] for place in going]
        logits = reading.step(chosen)


def _generators(rows: int, seed: int, num_return: int, device: torch.device) -> list[torch.Generator]:
    """A source of randomness for each row, so that no row's draws depend on its neighbours.

    The n-th text of every prompt draws alike: a prompt gives the same texts alone or in any batch. Without a seed,
    PyTorch's global generator draws for all rows at once, one text being the one that transformers draws.
    """
    return [torch.Generator(device=device).manual_seed(seed + row % num_return) for row in range(rows)]
