"""Beam search with finished texts set aside, as transformers defines it, so that its ids are the same.

A prompt's live beams share what was read of it, and go on from one another: `Reading.step` is told which from which.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openblip.generation.logits_processors import process_logits
from openblip.generation.options import Generation, ResolvedOptions, make_generation
from openblip.generation.prefill import Prefilled

NEVER = -1.0e9
"""The score of what must not be chosen; finite, as -inf would turn sums into NaN."""


class Beams:
    """The state of P searches with B beams each.

    Attributes:
        prompts: which prompt each search belongs to, as finished searches are taken out.
        tokens, log_probs: [P, B, T] of live beams; scores: [P, B].
        done_*: the best finished texts, likewise; done_lengths [P, B], 0 for an empty place.
        open: [P] whether a live beam may still beat a finished text.
        counted: [P, 1] tokens of the prompt, where they are part of the text; None where they are not.

    A score is divided by the text's length. Where prompts count, that is as transformers 4 had it until 4.37: with the
    prompt, without the stop token; and at the end of a search live beams are candidates, too.
    """

    def __init__(self, prompts: int, options: ResolvedOptions, device: torch.device, counted: Tensor | None) -> None:
        beams, length = options.num_beams, options.max_new_tokens
        self.prompts = torch.arange(prompts, device=device)
        self.tokens = torch.zeros(prompts, beams, length, dtype=torch.int64, device=device)
        self.log_probs = torch.zeros(prompts, beams, length, device=device)
        # All beams start alike: only the first may go on, or they would stay alike.
        self.scores = torch.full((prompts, beams), NEVER, device=device)
        self.scores[:, 0] = 0
        self.done_tokens = torch.zeros_like(self.tokens)
        self.done_log_probs = torch.zeros_like(self.log_probs)
        self.done_scores = torch.full((prompts, beams), NEVER, device=device)
        self.done_lengths = torch.zeros(prompts, beams, dtype=torch.int64, device=device)
        self.open = torch.ones(prompts, dtype=torch.bool, device=device)
        self.counted = None if counted is None else counted[:, None]

    def advance(self, logits: Tensor, used: Tensor, length: int | Tensor, options: ResolvedOptions) -> Tensor:
        """Choose each beam's next token, the `length`-th.

        Args:
            logits: [P * B, vocabulary]; used: [P * B, n] ids of prompts and live beams.
            length: of all searches alike, or of each [P, 1].

        Returns:
            for each live beam [P, B] the beam it goes on from.
        """
        prompts, beams = self.scores.shape
        raw = logits.log_softmax(dim=1)
        new_tokens = length - 1 if isinstance(length, int) else (length - 1).repeat_interleave(beams)
        scored = process_logits(raw, used, new_tokens, options).view(prompts, beams, -1)
        vocabulary = scored.shape[2]
        totals = (scored + self.scores[:, :, None]).flatten(1)
        # Enough candidates that `beams` of them go on, even if every beam's best ones are stop tokens.
        wanted = max(2, 1 + len(options.stop_ids)) * beams
        best, places = totals.topk(min(wanted, totals.shape[1]), dim=1)
        parents, chosen = places // vocabulary, places % vocabulary
        tokens, log_probs = _rows(self.tokens, parents), _rows(self.log_probs, parents)
        _put(tokens, chosen, length)
        _put(log_probs, raw.view(prompts, -1).gather(1, places), length)
        last = length == options.max_new_tokens
        stopping = torch.zeros_like(chosen, dtype=torch.bool)
        if self.counted is None:
            stopping |= last
        for stop_id in options.stop_ids:
            stopping |= chosen == stop_id
        spoken = length if self.counted is None else (self.counted + length - 1).clamp(min=1)
        self._set_aside(tokens, log_probs, best, stopping, length, spoken, options)
        likeliest = best[:, :1]
        best = best.masked_fill(stopping, NEVER)
        going = best.topk(beams, dim=1).indices
        self.tokens, self.log_probs = _rows(tokens, going), _rows(log_probs, going)
        self.scores = best.gather(1, going)
        hoped = (self.scores[:, :1] if self.counted is None else likeliest) / spoken**options.length_penalty
        worst = self.done_scores.min(dim=1, keepdim=True).values
        self.open &= ((self.done_lengths == 0) | (hoped > worst)).any(dim=1)
        if options.early_stopping:
            self.open &= (self.done_lengths == 0).any(dim=1)
        self.open &= ~stopping.all(dim=1)
        if self.counted is not None and (last if isinstance(last, bool) else bool(last.any())):
            live = torch.ones_like(going, dtype=torch.bool) & last
            self._set_aside(self.tokens, self.log_probs, self.scores, live, length, spoken + 1, options)
        return parents.gather(1, going)

    def _set_aside(
        self,
        tokens: Tensor,
        log_probs: Tensor,
        totals: Tensor,
        stopping: Tensor,
        length: int | Tensor,
        spoken: int | Tensor,
        options: ResolvedOptions,
    ) -> None:
        """Keep the best B of the finished texts so far and those that finish now among the B best candidates.

        Args:
            length: tokens that were generated; spoken: those that the score is divided by; one number or [P, 1] each.
        """
        beams = self.scores.shape[1]
        finished = stopping.clone()
        finished[:, beams:] = False
        finished &= self.open[:, None]
        scores = (totals / spoken**options.length_penalty).masked_fill(~finished, NEVER)
        all_scores = torch.cat([self.done_scores, scores], dim=1)
        self.done_scores, kept = all_scores.topk(beams, dim=1)
        self.done_tokens = _rows(torch.cat([self.done_tokens, tokens], dim=1), kept)
        self.done_log_probs = _rows(torch.cat([self.done_log_probs, log_probs], dim=1), kept)
        lengths = finished * length
        self.done_lengths = torch.cat([self.done_lengths, lengths], dim=1).gather(1, kept)

    def results(self, options: ResolvedOptions) -> dict[int, list[Generation]]:
        """The best texts of every search, by prompt."""
        found: dict[int, list[Generation]] = {}
        for row, prompt in enumerate(self.prompts.tolist()):
            texts = []
            for beam in range(options.num_return_sequences):
                length = int(self.done_lengths[row, beam])
                texts.append(
                    make_generation(
                        self.done_tokens[row, beam, :length].tolist(),
                        self.done_log_probs[row, beam, :length].tolist(),
                        options.stop_ids,
                        float(self.done_scores[row, beam]),
                    )
                )
            found[prompt] = texts
        return found

    def take(self, rows: Tensor) -> Beams:
        """The searches in `rows` [n] as a state of their own."""
        part = object.__new__(Beams)
        for name, value in vars(self).items():
            setattr(part, name, None if value is None else value[rows])
        return part


def join_beams(states: Sequence[Beams]) -> Beams:
    """Searches of the same options as one state, in which they are numbered in this order."""
    joined = object.__new__(Beams)
    for name, value in vars(states[0]).items():
        parts = [getattr(state, name) for state in states]
        setattr(joined, name, None if value is None else torch.cat(parts))
    joined.prompts = torch.arange(len(joined.scores), device=joined.scores.device)
    return joined


def generate_beams(start: Prefilled, options: ResolvedOptions) -> list[list[Generation]]:
    """The `num_return_sequences` best texts of each prompt."""
    count, beams = start.logits.shape[0], options.num_beams
    device = start.logits.device
    state = Beams(count, options, device, start.counted)
    logits = start.logits.repeat_interleave(beams, dim=0)
    prompt_ids = start.prompt_ids.repeat_interleave(beams, dim=0)
    found: dict[int, list[Generation]] = {}
    for length in range(1, options.max_new_tokens + 1):
        used = torch.cat([prompt_ids, state.tokens.flatten(0, 1)[:, : length - 1]], dim=1)
        parents = state.advance(logits, used, length, options)
        going = state.open.nonzero()[:, 0]
        if len(going) == 0 or length == options.max_new_tokens:
            break
        if 2 * len(going) <= len(state.open):
            # Taking prompts out copies the cache, so it waits until half of them are done.
            found |= state.take((~state.open).nonzero()[:, 0]).results(options)
            rows = (going[:, None] * beams + torch.arange(beams, device=device)).flatten()
            state, parents, prompt_ids = state.take(going), parents[going], prompt_ids[rows]
            start.reading.take_prompts(going)
        logits = start.reading.step(state.tokens[:, :, length - 1], parents).flatten(0, 1)
    found |= state.results(options)
    return [found[prompt] for prompt in range(count)]


def _put(values: Tensor, chosen: Tensor, length: int | Tensor) -> None:
    """Set the `length`-th of values [P, n, T], all alike or of each [P, 1], to chosen [P, n]; in place."""
    if isinstance(length, int):
        values[:, :, length - 1] = chosen
    else:
        values.scatter_(2, (length - 1)[:, :, None].expand(-1, chosen.shape[1], 1), chosen[:, :, None])


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """values [P, n, T] picked along n by index [P, m]: a new tensor [P, m, T]."""
    return values.gather(1, index[:, :, None].expand(-1, -1, values.shape[2]))
