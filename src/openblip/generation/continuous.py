"""Continuous batching: requests join a running decode and leave it when they are done, each as if it were alone.

What OPT, T5 and BLIP have read of prompts at different times is decoded as one batch. Models whose batches have to be
whole (`LanguageModel.new_slots`) decode what waited together, and the next when that is done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openblip.generation.cohort import Cohort, DecodeRequest, Row
from openblip.generation.options import Generation, ResolvedOptions
from openblip.generation.prefill import check_positions, read_prompts, used_ids
from openblip.generation.prefix import SHARED_FROM, Prefix
from openblip.nn.language_model import LanguageModel, Reading, Slots

MOST_TEXTS = 64
"""Texts that are decoded together by default: beams and samples count one each."""
MOST_TOKENS = 32_768
"""Of prompts and texts that are decoded together, by default, as long as they may become."""


@dataclass(frozen=True)
class Advance:
    """What a step has brought.

    Attributes:
        tokens: (key, token) of each request that has one text and searches no beams, in order; no stop tokens.
        finished: the texts of each request that is done, best first, by its key.
    """

    tokens: list[tuple[int, int]]
    finished: dict[int, list[Generation]]


class WholeBatch:
    """A reading that nothing can join, as slots that are filled once."""

    def __init__(self, reading: Reading, prompts: int, device: torch.device) -> None:
        self.reading = reading
        self.prompts = prompts
        self.device = device

    @property
    def nbytes(self) -> int:
        return 0  # such a model does not say

    def join(self, reading: Reading) -> None:
        raise TypeError("nothing can join texts of this model")

    def drop(self, rows: Sequence[int]) -> list[int]:
        order = [row for row in range(self.prompts) if row not in set(rows)]
        self.prompts = len(order)
        if order:
            self.reading.take_prompts(torch.tensor(order, device=self.device))
        return order

    def step(self, tokens: Tensor, parents: Tensor | None = None) -> Tensor:
        return self.reading.step(tokens, parents)


class Lane:
    """Rows that have as many texts each, which go through the language model together."""

    def __init__(self, slots: Slots, texts: int) -> None:
        self.slots = slots
        self.texts = texts
        self.rows: list[Row] = []
        self.cohorts: dict[ResolvedOptions, Cohort] = {}

    def add(self, rows: Sequence[Row]) -> None:
        """Rows that stand behind the others in the slots, and of whose texts nobody knows yet."""
        for row in rows:
            row.slot = len(self.rows)
            self.rows.append(row)

    def begin(self, cohort: Cohort) -> None:
        """Go on with such rows, whose first token has been chosen."""
        if cohort.rows and cohort.options in self.cohorts:
            self.cohorts[cohort.options].join(cohort)
        elif cohort.rows:
            self.cohorts[cohort.options] = cohort

    def step(self) -> dict[Row, list[Generation]]:
        """One more token of each text; the texts of rows that are done."""
        cohorts = list(self.cohorts.values())
        places = [torch.tensor([row.slot for row in one.rows], device=one.tokens.device) for one in cohorts]
        tokens = cohorts[0].tokens.new_empty(len(self.rows), self.texts)
        parents: Tensor | None = None
        if any(one.parents is not None for one in cohorts):
            parents = torch.arange(self.texts, device=tokens.device).repeat(len(self.rows), 1)
        for cohort, at in zip(cohorts, places, strict=True):
            tokens[at] = cohort.tokens
            if parents is not None and cohort.parents is not None:
                parents[at] = cohort.parents
        logits = self.slots.step(tokens, parents)
        done: dict[Row, list[Generation]] = {}
        for cohort, at in zip(cohorts, places, strict=True):
            done |= cohort.advance(logits if _stand_so(cohort.rows) and len(cohorts) == 1 else logits[at])
        return done

    def remove(self, rows: Collection[Row]) -> None:
        """Let rows leave; others than its own may be among them."""
        leaving = [row.slot for row in self.rows if row in rows]
        if not leaving:
            return
        for cohort in self.cohorts.values():
            cohort.remove(rows)
        self.cohorts = {options: cohort for options, cohort in self.cohorts.items() if cohort.rows}
        self.rows = [self.rows[before] for before in self.slots.drop(leaving)]
        for slot, row in enumerate(self.rows):
            row.slot = slot


class ContinuousBatch:
    """Requests that are decoded together although they come and go at different times.

    A request's ids are those that it has alone, its scores within rounding; a seed draws alike. One thread at a time
    may use it.

    Args:
        max_texts: decoded together; beams and samples count one each.
        max_tokens: of prompts and texts that are decoded together, as long as they may become. A request that alone
            needs more than either is decoded alone.
    """

    def __init__(self, model: LanguageModel, max_texts: int = MOST_TEXTS, max_tokens: int = MOST_TOKENS) -> None:
        self.model = model
        self.max_texts = max_texts
        self.max_tokens = max_tokens
        self._waiting: deque[Row] = deque()
        self._lanes: list[Lane] = []
        self._has_read = False
        self._keys = 0
        self._joins = model.new_slots(1) is not None

    @property
    def running(self) -> list[int]:
        """Keys of the requests that are decoded."""
        return [row.key for lane in self._lanes for row in lane.rows]

    @property
    def waiting(self) -> list[int]:
        """Keys of those for which there is no room yet, in order."""
        return [row.key for row in self._waiting]

    @property
    def texts(self) -> int:
        """How many are decoded."""
        return sum(lane.texts * len(lane.rows) for lane in self._lanes)

    @property
    def nbytes(self) -> int:
        """Memory of keys and values, as far as the model says."""
        return sum(lane.slots.nbytes for lane in self._lanes)

    def join(self, request: DecodeRequest) -> int:
        """Take a request on: it is read in one of the next steps. Returns the key that it goes by.

        Raises:
            OptionError: prompt and new tokens exceed the model's positions.
        """
        before = 0 if request.prefix is None else request.prefix.length
        check_positions(self.model.config, before + len(request.prompt), request.options.max_new_tokens)
        self._keys += 1
        self._waiting.append(Row(self._keys, request))
        return self._keys

    @torch.inference_mode()
    def step(self) -> Advance:
        """Read requests that wait, as far as there is room, or go on with each text by a token; both take turns.

        After an error, nothing runs or waits any more.
        """
        advance = Advance([], {})
        try:
            admitted = [] if self._has_read and self._lanes else list(self._admit())
            self._has_read = bool(admitted)
            if admitted:
                self._read(admitted, advance)
            else:
                for lane in self._lanes:
                    stepped = list(lane.rows)
                    self._tell(lane, stepped, lane.step(), advance)
        except BaseException:
            self.clear()
            raise
        self._lanes = [lane for lane in self._lanes if lane.rows]
        return advance

    def cancel(self, key: int) -> bool:
        """Let a request leave at once; whether there was such a one."""
        waiting = deque(row for row in self._waiting if row.key != key)
        found = len(waiting) < len(self._waiting)
        self._waiting = waiting
        with torch.inference_mode():
            for lane in self._lanes:
                leaving = [row for row in lane.rows if row.key == key]
                lane.remove(leaving)
                found |= bool(leaving)
        self._lanes = [lane for lane in self._lanes if lane.rows]
        return found

    def clear(self) -> None:
        """Let all requests leave."""
        self._waiting.clear()
        self._lanes.clear()

    def _admit(self) -> Iterator[Row]:
        """Requests that there is room for, in their order: none overtakes another."""
        running = [row for lane in self._lanes for row in lane.rows]
        if running and not self._joins:
            return
        texts = sum(row.request.options.texts for row in running)
        tokens = sum(map(_tokens, running))
        while self._waiting:
            texts += self._waiting[0].request.options.texts
            tokens += _tokens(self._waiting[0])
            if running and (texts > self.max_texts or tokens > self.max_tokens):
                return
            running.append(self._waiting[0])
            yield self._waiting.popleft()

    def _read(self, rows: Sequence[Row], advance: Advance) -> None:
        """Read prompts, and choose the first token of each of their texts."""
        by_texts: dict[int, list[Row]] = {}
        for row in rows:
            by_texts.setdefault(row.request.options.texts, []).append(row)
        for texts, alike in by_texts.items():
            for prefix, together in _batches(alike):
                lane, logits = self._join_lane(together, prefix, texts)
                by_options: dict[ResolvedOptions, list[int]] = {}
                for place, row in enumerate(together):
                    by_options.setdefault(row.request.options, []).append(place)
                for options, places in by_options.items():
                    begun = [together[place] for place in places]
                    ids = [() if row.request.prompt_ids is None else row.request.prompt_ids for row in begun]
                    used, counted = used_ids(self.model.config, ids, logits.device)
                    cohort = Cohort(begun, options, used, counted)
                    done = cohort.advance(logits[places][:, None].expand(-1, texts, -1))
                    lane.begin(cohort)
                    self._tell(lane, begun, done, advance)

    def _join_lane(
        self, rows: Sequence[Row], prefix: Prefix | Sequence[Prefix] | None, texts: int
    ) -> tuple[Lane, Tensor]:
        """The lane in which prompts go on, and the first scores of each [P, vocabulary]."""
        lane = next((lane for lane in self._lanes if lane.texts == texts and self._joins), None)
        slots = self.model.new_slots(texts) if lane is None else lane.slots
        # What joins others moves to their memory.
        room = max(row.request.options.max_new_tokens for row in rows) if slots is None else 0
        reading, logits = read_prompts(self.model, [row.request.prompt for row in rows], prefix, room, texts)
        if slots is None:
            slots = WholeBatch(reading, len(rows), logits.device)
        else:
            slots.join(reading)
        if lane is None:
            lane = Lane(slots, texts)
            self._lanes.append(lane)
        lane.add(rows)
        return lane, logits

    def _tell(self, lane: Lane, rows: Sequence[Row], done: dict[Row, list[Generation]], advance: Advance) -> None:
        for row in rows:
            options = row.request.options
            if options.texts == 1 and row.tokens[0][-1] not in options.stop_ids:
                advance.tokens.append((row.key, row.tokens[0][-1]))
        advance.finished.update({row.key: texts for row, texts in done.items()})
        lane.remove(done)


def _tokens(row: Row) -> int:
    """Of a request's prompt, what stands beside it included, and of its texts as long as they may become."""
    request = row.request
    before = 0 if request.prefix is None else len(request.prefix.embeds)
    return before + len(request.prompt) + request.options.texts * request.options.max_new_tokens


def _batches(rows: Sequence[Row]) -> Iterator[tuple[Prefix | Sequence[Prefix] | None, list[Row]]]:
    """Rows that are read together, and what they begin with: one prefix for all of them, or one each."""
    by_prefix: dict[Prefix | None, list[Row]] = {}
    for row in rows:
        by_prefix.setdefault(row.request.prefix, []).append(row)
    alone = by_prefix.pop(None, [])
    if alone:
        yield None, alone
    few: list[Row] = []
    for prefix, own in by_prefix.items():
        kept = prefix is not None and prefix.is_read and all(len(row.request.prompt) for row in own)
        if prefix is not None and (kept or len(own) >= SHARED_FROM or len(by_prefix) == 1):
            yield prefix, own
        else:
            few += own
    if few:
        yield [row.request.prefix for row in few if row.request.prefix is not None], few


def _stand_so(rows: Sequence[Row]) -> bool:
    return all(row.slot == place for place, row in enumerate(rows))
