"""Requests with the same options, whose texts are decoded side by side although they began at different times."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.generation.beam import Beams, join_beams
from openblip.generation.logits_processors import reads_used
from openblip.generation.options import Generation, ResolvedOptions, make_generation
from openblip.generation.prefill import NO_ID
from openblip.generation.prefix import Prefix
from openblip.generation.sampling import choose_tokens, text_generators


@dataclass(frozen=True, eq=False)
class DecodeRequest:
    """A prompt whose texts are wanted.

    Attributes:
        prompt: embeddings [T, token width], visual and word tokens alike.
        prefix: what it begins with and leaves out; see `openblip.generation.engine.generate`.
        prompt_ids: ids [n] of the prompt that count as used; None where only generated tokens do.
    """

    prompt: Tensor
    options: ResolvedOptions
    prefix: Prefix | None = None
    prompt_ids: Tensor | None = None


@dataclass(eq=False)
class Row:
    """A request that is being decoded.

    Attributes:
        key: by which its owner knows it.
        length: tokens that each of its texts has.
        slot: its row in the language model's batch.
        tokens, log_probs: of each text, stop tokens included, unless beams are searched.
        draws: what decides of each text that is sampled by a seed.
    """

    key: int
    request: DecodeRequest
    length: int = 0
    slot: int = 0
    tokens: list[list[int]] = field(default_factory=list)
    log_probs: list[list[float]] = field(default_factory=list)
    draws: list[torch.Generator] = field(default_factory=list)


class Search(Protocol):
    """How the texts of a cohort are found.

    Attributes:
        tokens: [P, texts, max_new_tokens] of the texts, as far as they go.
    """

    @property
    def tokens(self) -> Tensor: ...

    def advance(self, logits: Tensor, used: Tensor, rows: Sequence[Row]) -> Chosen:
        """Choose the next token of each text.

        Args:
            logits: [P * texts, vocabulary]; used: [P * texts, n] ids of prompts and texts.
            rows: those of the cohort, whose `length` counts the tokens that are chosen now.
        """

    def take(self, index: Tensor) -> None:
        """Go on with the rows `index` [n] int64 alone."""

    def join(self, other: Any) -> None:
        """Take over the rows of another one of its kind, as the last."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """What a search has decided.

    Attributes:
        tokens: [P, texts] that were chosen.
        parents: [P, texts] which earlier text each goes on from; None: from itself.
        ended: the texts of those rows that are done, by their places.
    """

    tokens: Tensor
    parents: Tensor | None
    ended: dict[int, list[Generation]]


class BeamSearch:
    """Beam searches, see `openblip.generation.beam`."""

    def __init__(self, options: ResolvedOptions, used: Tensor, counted: Tensor | None) -> None:
        self.options = options
        self.state = Beams(len(used), options, used.device, counted)

    @property
    def tokens(self) -> Tensor:
        return self.state.tokens

    def advance(self, logits: Tensor, used: Tensor, rows: Sequence[Row]) -> Chosen:
        lengths = torch.tensor([[row.length] for row in rows], device=logits.device)
        parents = self.state.advance(logits, used, lengths, self.options)
        places = (lengths - 1)[:, :, None].expand(-1, parents.shape[1], 1)
        done = (~self.state.open | (lengths[:, 0] == self.options.max_new_tokens)).nonzero()[:, 0]
        ended = self.state.take(done).results(self.options) if len(done) else {}
        return Chosen(self.state.tokens.gather(2, places)[..., 0], parents, ended)

    def take(self, index: Tensor) -> None:
        self.state = join_beams([self.state.take(index)])

    def join(self, other: BeamSearch) -> None:
        self.state = join_beams([self.state, other.state])


class Walk:
    """One token after the other, the likeliest or a sampled one, see `openblip.generation.sampling`."""

    def __init__(self, options: ResolvedOptions, used: Tensor) -> None:
        self.options = options
        self.tokens = used.new_zeros(len(used), options.texts, options.max_new_tokens)

    def advance(self, logits: Tensor, used: Tensor, rows: Sequence[Row]) -> Chosen:
        texts = self.options.texts
        lengths = torch.tensor([row.length for row in rows], device=logits.device)
        draws = None if self.options.seed is None else [draw for row in rows for draw in row.draws]
        new_tokens = (lengths - 1).repeat_interleave(texts)
        found, log_probs = choose_tokens(logits, used, new_tokens, self.options, draws)
        chosen = found.view(-1, texts)
        self.tokens.scatter_(2, (lengths - 1)[:, None, None].expand(-1, texts, 1), chosen[:, :, None])
        ended = {}
        for place, (row, picked, likely) in enumerate(
            zip(rows, chosen.tolist(), log_probs.view(-1, texts).tolist(), strict=True)
        ):
            going = False
            for own, own_log_probs, token, log_prob in zip(row.tokens, row.log_probs, picked, likely, strict=True):
                if own and own[-1] in self.options.stop_ids:
                    continue  # what a finished text goes on with changes nothing: no other sees it
                own.append(token)
                own_log_probs.append(log_prob)
                going |= token not in self.options.stop_ids
            if not going or row.length == self.options.max_new_tokens:
                texts_of_row = zip(row.tokens, row.log_probs, strict=True)
                made = [make_generation(*one, self.options.stop_ids) for one in texts_of_row]
                ended[place] = sorted(made, key=lambda text: -text.score)
        return Chosen(chosen, None, ended)

    def take(self, index: Tensor) -> None:
        self.tokens = self.tokens[index]

    def join(self, other: Walk) -> None:
        self.tokens = torch.cat([self.tokens, other.tokens])


class Cohort:
    """Rows of the same options.

    Args:
        used: [P, n] ids that stand in each text already, padded in front; counted: [P] how many of them count in a
            text's length, see `Prefilled`.

    Attributes:
        rows: in the order of the tensors.
        tokens, parents: of the last step, see `Chosen`.
    """

    def __init__(self, rows: Sequence[Row], options: ResolvedOptions, used: Tensor, counted: Tensor | None) -> None:
        self.rows = list(rows)
        self.options = options
        self.used = used
        self.search: Search = BeamSearch(options, used, counted) if options.num_beams > 1 else Walk(options, used)
        self.tokens = used.new_zeros(len(used), options.texts)
        self.parents: Tensor | None = None
        for row in rows:
            row.tokens = [[] for _ in range(options.texts)]
            row.log_probs = [[] for _ in range(options.texts)]
            if options.seed is not None:
                row.draws = text_generators(options.texts, options.seed, options.texts, used.device)

    def advance(self, logits: Tensor) -> dict[Row, list[Generation]]:
        """Choose the next token of each text by scores [P, texts, vocabulary]; the texts of rows that are done."""
        used = self._used_so_far() if reads_used(self.options) else self.used[:, :0].repeat(self.options.texts, 1)
        for row in self.rows:
            row.length += 1
        chosen = self.search.advance(logits.flatten(0, 1), used, self.rows)
        self.tokens, self.parents = chosen.tokens, chosen.parents
        done = {self.rows[place]: texts for place, texts in chosen.ended.items()}
        self.remove(done)
        return done

    def remove(self, rows: Collection[Row]) -> None:
        """Go on without some rows; others than its own may be among them."""
        places = [place for place, row in enumerate(self.rows) if row not in rows]
        if len(places) == len(self.rows):
            return
        index = torch.tensor(places, dtype=torch.int64, device=self.used.device)
        self.rows = [self.rows[place] for place in places]
        self.used, self.tokens = self.used[index], self.tokens[index]
        self.parents = None if self.parents is None else self.parents[index]
        self.search.take(index)

    def join(self, other: Cohort) -> None:
        """Take over the rows of another cohort of these options, which has been advanced, too."""
        longest = max(self.used.shape[1], other.used.shape[1])
        padded = [F.pad(one.used, (longest - one.used.shape[1], 0), value=NO_ID) for one in (self, other)]
        self.rows += other.rows
        self.used, self.tokens = torch.cat(padded), torch.cat([self.tokens, other.tokens])
        if self.parents is not None and other.parents is not None:
            self.parents = torch.cat([self.parents, other.parents])
        self.search.join(other.search)

    def _used_so_far(self) -> Tensor:
        """Ids of prompts and texts [P * texts, n], each up to its last one, padded in front."""
        tokens = self.search.tokens
        lengths = torch.tensor([row.length for row in self.rows], device=tokens.device)
        longest = max(row.length for row in self.rows)
        ids = torch.cat([self.used[:, None].expand(-1, tokens.shape[1], -1), tokens[:, :, :longest]], dim=2)
        places = torch.arange(ids.shape[2], device=ids.device) - (longest - lengths[:, None])
        shifted = ids.gather(2, places.clamp(min=0)[:, None].expand_as(ids))
        return shifted.masked_fill((places < 0)[:, None], NO_ID).flatten(0, 1)
