"""One token after the other: greedy search and sampling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from openblip.generation.logits_processors import process_logits, shape_distribution
from openblip.generation.options import Generation, ResolvedOptions, make_generation
from openblip.generation.prefill import Prefilled
from openblip.nn.language_model import Reading


def generate_sequentially(
    start: Prefilled, options: ResolvedOptions, uniforms: Tensor | None = None
) -> list[list[Generation]]:
    """Greedy or sampled texts, `num_return_sequences` a prompt; samples are sorted by score."""
    count, copies = start.logits.shape[0], options.num_return_sequences
    tokens: list[list[int]] = [[] for _ in range(count * copies)]
    log_probs: list[list[float]] = [[] for _ in range(count * copies)]
    for text, token, log_prob in iterate_tokens(start, options, uniforms):
        tokens[text].append(token)
        log_probs[text].append(log_prob)
    found = [
        make_generation(text_tokens, text_log_probs, options.stop_ids)
        for text_tokens, text_log_probs in zip(tokens, log_probs, strict=True)
    ]
    groups = [found[first : first + copies] for first in range(0, len(found), copies)]
    return [sorted(group, key=lambda text: -text.score) for group in groups]


def iterate_tokens(
    start: Prefilled, options: ResolvedOptions, uniforms: Tensor | None = None
) -> Iterator[tuple[int, int, float]]:
    """Yield (text, token, log-probability) as tokens are chosen, stop tokens included.

    Texts are numbered prompt after prompt, `num_return_sequences` each.

    Args:
        uniforms: see `generate`.
    """
    copies = options.num_return_sequences
    logits = start.logits.repeat_interleave(copies, dim=0)
    used = start.prompt_ids.repeat_interleave(copies, dim=0)
    live = list(range(logits.shape[0]))
    rows = LiveRows(start.logits.shape[0], copies, start.reading)
    draws = None if options.seed is None else text_generators(len(live), options.seed, copies, logits.device)
    for new_tokens in range(options.max_new_tokens):
        own_draws = None if draws is None else [draws[text] for text in live]
        own_uniforms = None if uniforms is None else uniforms.flatten(0, 1)[live, new_tokens]
        chosen, own_log_probs = choose_tokens(logits, used, new_tokens, options, own_draws, own_uniforms)
        chosen_log_probs, picked = own_log_probs.tolist(), chosen.tolist()
        yield from zip(live, picked, chosen_log_probs, strict=True)
        going = [place for place, token in enumerate(picked) if token not in options.stop_ids]
        if not going or new_tokens + 1 == options.max_new_tokens:
            return
        used = torch.cat([used, chosen[:, None]], dim=1)
        if len(going) < len(live):
            keep = torch.tensor(going, device=logits.device)
            chosen, used = chosen[keep], used[keep]
            live = [live[place] for place in going]
        logits = rows.step(chosen, live)


def choose_tokens(
    logits: Tensor,
    used: Tensor,
    new_tokens: int | Tensor,
    options: ResolvedOptions,
    draws: Sequence[torch.Generator] | None = None,
    uniforms: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The next token of each text [R], and its log-probability [R] under the model.

    Args:
        logits: [R, vocabulary]; used, new_tokens: see `process_logits`.
        draws: what decides of each text that is sampled; None: PyTorch's global generator.
        uniforms: numbers [R] from 0 to 1 that decide instead.
    """
    log_probs = logits.log_softmax(dim=1)
    scores = process_logits(logits, used, new_tokens, options)
    if not options.do_sample:
        chosen = scores.argmax(dim=1)
    elif uniforms is not None:
        sums = shape_distribution(scores, options).double().cumsum(dim=1)
        # The first token whose sum is above the number: one of no weight adds nothing to the sum before it.
        chosen = torch.searchsorted(sums, (uniforms.to(sums) * sums[:, -1])[:, None], right=True)[:, 0]
        chosen = chosen.clamp(max=sums.shape[1] - 1)  # sums of no numbers are below nothing
    elif draws is None:
        chosen = torch.multinomial(shape_distribution(scores, options), 1)[:, 0]
    else:
        weights = shape_distribution(scores, options)
        picks = [torch.multinomial(row, 1, generator=draw) for row, draw in zip(weights, draws, strict=True)]
        chosen = torch.cat(picks)
    return chosen, log_probs.gather(1, chosen[:, None])[:, 0]


class LiveRows:
    """Finds the rows of live texts in the batch that is decoded: a prompt stays there until all its texts are done."""

    def __init__(self, prompts: int, copies: int, reading: Reading) -> None:
        self.prompts = list(range(prompts))
        self.copies = copies
        self.reading = reading

    def step(self, tokens: Tensor, live: list[int]) -> Tensor:
        """Read one more token [n] of each live text and score the next: [n, vocabulary]."""
        going = sorted({text // self.copies for text in live})
        if 2 * len(going) <= len(self.prompts):
            # Taking prompts out copies the cache, so it waits until half of them are done.
            rows = [self.prompts.index(prompt) for prompt in going]
            self.reading.take_prompts(torch.tensor(rows, device=tokens.device))
            self.prompts = going
        count = len(self.prompts) * self.copies
        if len(live) == count:
            return self.reading.step(tokens.view(-1, self.copies)).flatten(0, 1)
        row = {prompt: place for place, prompt in enumerate(self.prompts)}
        places = [row[text // self.copies] * self.copies + text % self.copies for text in live]
        at = torch.tensor(places, device=tokens.device)
        # What a finished text goes on with changes nothing: no other sees it.
        read = tokens.new_zeros(count).index_copy(0, at, tokens)
        return self.reading.step(read.view(-1, self.copies)).flatten(0, 1)[at]


def text_generators(rows: int, seed: int, texts: int, device: torch.device) -> list[torch.Generator]:
    """A generator for each row, so that no row's draws depend on its neighbours.

    The n-th text of every prompt draws alike: a prompt gives the same texts alone or in any batch. Without a seed,
    PyTorch's global generator draws for all rows at once, one text being the one that transformers draws.
    """
    return [torch.Generator(device=device).manual_seed(seed + row % texts) for row in range(rows)]
