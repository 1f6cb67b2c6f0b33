"""Keys and values of prompts that come and go while texts are written, for continuous batching."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, Protocol, TypeVar, cast

import torch
from torch import Tensor

from openblip.nn.kv_cache import KeyValueCache
from openblip.nn.language_model import Reading

COLUMN_STEP = 64
"""Room grows by a multiple of so many tokens."""
SPARE = 4
"""Memory is given back once it has room for so many times the rows there are."""


def order_without(count: int, rows: Iterable[int]) -> list[int]:
    """Which of `count` rows stands where once `rows` have left: the last ones take the places that became free."""
    order = list(range(count))
    for row in sorted(rows, reverse=True):
        order[row] = order[-1]
        order.pop()
    return order


def room_for(rows: int, allocated: int) -> int:
    """How many rows to have memory for: as it is, twice what is needed where that is too little or far too much."""
    return allocated if rows <= allocated < SPARE * max(rows, 1) else 2 * rows


class SlotCache(KeyValueCache):
    """A cache whose rows are slots: prompts join at any time and leave again.

    A prompt stands in the first columns of its slot. A step writes to the same columns of all slots: the first ones
    that no row has anything in. So nothing moves while texts grow, a new prompt costs a copy of itself, and one that
    leaves costs a copy of the last row, which takes its slot.

    Attributes:
        texts: of each prompt.
        visible: [batch, texts, capacity] bool, as in `KeyValueCache`.
        steps: [batch, capacity] int64: the place of each cached token in its own text.
        length: columns in use.
        reach: tokens of the longest text.
    """

    def __init__(self, like: KeyValueCache, texts: int) -> None:
        depth, _, num_heads, _, head_width = like.keys.shape
        super().__init__(depth, 0, num_heads, 0, head_width, like.keys.dtype, like.keys.device)
        self.texts = texts
        self.hides = True
        self.visible = self.visible.new_zeros(0, texts, 0)
        self.steps = self.steps.new_zeros(0, 0)
        self._counts: list[int] = []
        self._columns: list[int] = []  # of each row, as the bits of a number
        self._own = torch.eye(texts, dtype=torch.bool, device=like.keys.device)

    @property
    def batch(self) -> int:
        return len(self._counts)

    def join(self, cache: KeyValueCache) -> None:
        """Take over the prompts that another cache has read, padded in front, behind which no text has begun.

        A prefix that they share is copied, each to its slot.
        """
        counts = [int(count) for count in cache.tokens.tolist()]
        first, shared = self.batch, 0 if cache.prefix is None else cache.prefix.length
        self._resize(first + len(counts), max(counts, default=0))
        for row, count in enumerate(counts, first):
            own = slice(cache.length - (count - shared), cache.length)
            for kept, read in ((self.keys, cache.keys), (self.values, cache.values)):
                slot = kept[:, row].zero_()  # what is masked weighs nothing, but nothing times NaN would be NaN
                slot[:, :, shared:count] = read[:, row - first, :, own]
            if cache.prefix is not None:
                self.keys[:, row, :, :shared] = cache.prefix.keys[:, 0, :, :shared]
                self.values[:, row, :, :shared] = cache.prefix.values[:, 0, :, :shared]
        columns = torch.arange(self.capacity, device=self.keys.device)
        read_columns = columns < cache.tokens[:, None]
        self.visible = torch.cat([self.visible, read_columns[:, None].expand(-1, self.texts, -1)])
        self.steps = torch.cat([self.steps, columns.expand(len(counts), -1)])
        self.tokens = torch.cat([self.tokens, cache.tokens])
        self._counts += counts
        self._columns += [(1 << count) - 1 for count in counts]
        self._measure()

    def drop(self, rows: Iterable[int]) -> list[int]:
        """Let prompts leave. Returns which row each that stays was before."""
        order = order_without(self.batch, rows)
        for row, before in enumerate(order):
            if row != before:
                self.keys[:, row] = self.keys[:, before]
                self.values[:, row] = self.values[:, before]
        index = torch.tensor(order, dtype=torch.int64, device=self.keys.device)
        self.visible, self.steps, self.tokens = self.visible[index], self.steps[index], self.tokens[index]
        self._counts = [self._counts[row] for row in order]
        self._columns = [self._columns[row] for row in order]
        self._measure()
        self._resize(len(order), self.length)
        return order

    def branch(self, texts: int, parents: Tensor | None) -> int:
        start = self._free_column()
        end = start + texts
        self._resize(self.batch, end)
        if parents is not None and texts > 1:
            self.visible = self.visible.gather(1, parents[:, :, None].expand(-1, -1, self.capacity))
        self.visible[:, :, start:end] = self._own
        self.steps[:, start:end] = self.tokens[:, None]
        self.tokens += 1
        written = ((1 << texts) - 1) << start
        self._columns = [columns | written for columns in self._columns]
        self._counts = [count + 1 for count in self._counts]
        self._measure()
        return start

    def read_steps(self) -> tuple[Tensor, Tensor]:
        """The step of each row's last token [batch, 1], and those of all that are cached [batch, length]."""
        return self.tokens[:, None] - 1, self.steps[:, : self.length]

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        found = []
        for kept, new in ((self.keys, keys), (self.values, values)):
            rows = kept[layer, : self.batch]
            rows[:, :, start : start + new.shape[2]] = new
            found.append(rows[:, :, : self.length])
        return found[0], found[1]

    def _free_column(self) -> int:
        """Where the first columns are, one for each text, in which no row has anything."""
        free = ~self._used()
        starts = free
        for ahead in range(1, self.texts):
            starts &= free >> ahead
        return (starts & -starts).bit_length() - 1

    def _used(self) -> int:
        used = 0
        for columns in self._columns:
            used |= columns
        return used

    def _measure(self) -> None:
        self.length, self.reach = self._used().bit_length(), max(self._counts, default=0)

    def _resize(self, rows: int, columns: int) -> None:
        """Have memory for so many rows and columns, and give back what is far too much."""
        allocated, capacity = room_for(rows, self.keys.shape[1]), self.capacity
        if columns > capacity or SPARE * columns < capacity - COLUMN_STEP:
            columns = max(columns, min(capacity, columns) * 3 // 2)
            columns = -(-columns // COLUMN_STEP) * COLUMN_STEP
        else:
            columns = capacity
        if (allocated, columns) == (self.keys.shape[1], capacity):
            return
        kept, width = min(self.batch, rows), min(capacity, columns)
        for name in ("keys", "values"):
            old: Tensor = getattr(self, name)
            new = old.new_zeros(old.shape[0], allocated, old.shape[2], columns, old.shape[4])
            new[:, :kept, :, :width] = old[:, :kept, :, :width]
            setattr(self, name, new)
        if columns != capacity:
            visible = self.visible.new_zeros(self.visible.shape[0], self.texts, columns)
            visible[:, :, :width] = self.visible[:, :, :width]
            steps = self.steps.new_zeros(self.steps.shape[0], columns)
            steps[:, :width] = self.steps[:, :width]
            self.visible, self.steps = visible, steps


class Memory(Protocol):
    """What cross-attention reads: per layer keys and values [B, heads, S, head width], and a mask [B, 1, 1, S]."""

    @property
    def keys(self) -> tuple[Tensor, ...]: ...
    @property
    def values(self) -> tuple[Tensor, ...]: ...
    @property
    def mask(self) -> Tensor | None: ...


Remembered = TypeVar("Remembered", bound=Memory)
MakeMemory = Callable[[tuple[Tensor, ...], tuple[Tensor, ...], "Tensor | None"], Remembered]


class SlotMemory(Generic[Remembered]):
    """What cross-attention reads of prompts or images that come and go, each of its own length.

    Args:
        make: keys, values and mask to what attention takes.
    """

    def __init__(self, make: MakeMemory[Remembered]) -> None:
        self.make = make
        self._kept: list[Tensor] = []  # of each layer the keys, then the values
        self._counts: list[int] = []

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in self._kept)

    def join(self, memory: Remembered, prompts: int) -> Remembered:
        """Take over the memory of `prompts` prompts, of which as many as follow one another may share an image's."""
        new = [one for pair in zip(memory.keys, memory.values, strict=True) for one in pair]
        given, _, width, _ = new[0].shape
        masks = None if memory.mask is None else memory.mask[:, 0, 0]
        counts = [width] * given if masks is None else [int(count) for count in masks.sum(dim=1).tolist()]
        if not self._kept:
            self._kept = [one.new_zeros(0, one.shape[1], 0, one.shape[3]) for one in new]
        first = len(self._counts)
        self._resize(first + prompts, max(counts))
        for place in range(prompts):
            source = place * given // prompts
            count = counts[source]
            for kept, read in zip(self._kept, new, strict=True):
                slot = kept[first + place].zero_()
                slot[:, :count] = read[source] if masks is None else read[source][:, masks[source]]
            self._counts.append(count)
        return self.view()

    def drop(self, order: Sequence[int]) -> Remembered:
        """Go on with rows in such an order, in which only those that others left are taken by later ones."""
        for row, before in enumerate(order):
            if row != before:
                for kept in self._kept:
                    kept[row] = kept[before]
        self._counts = [self._counts[row] for row in order]
        self._resize(len(order), max(self._counts, default=0))
        return self.view()

    def view(self) -> Remembered:
        """What attention reads now."""
        rows, width = len(self._counts), max(self._counts, default=0)
        mask = None
        if self._kept and min(self._counts, default=0) < width:
            device = self._kept[0].device
            counts = torch.tensor(self._counts, device=device)
            mask = (torch.arange(width, device=device) < counts[:, None])[:, None, None]
        keys, values = (tuple(one[:rows, :, :width] for one in self._kept[part::2]) for part in (0, 1))
        return self.make(keys, values, mask)

    def _resize(self, rows: int, width: int) -> None:
        allocated, capacity = room_for(rows, len(self._kept[0])), self._kept[0].shape[2]
        wanted = capacity if width <= capacity < SPARE * max(width, COLUMN_STEP) else width
        if (allocated, wanted) == (len(self._kept[0]), capacity):
            return
        kept, both = min(len(self._counts), rows), min(capacity, wanted)
        for place, old in enumerate(self._kept):
            new = old.new_zeros(allocated, old.shape[1], wanted, old.shape[3])
            new[:kept, :, :both] = old[:kept, :, :both]
            self._kept[place] = new


class Cached(Reading, Protocol):
    """A reading whose prompts and texts are in a cache."""

    @property
    def cache(self) -> KeyValueCache: ...


class CacheSlots:
    """See `openblip.nn.language_model.Slots`: of a model that keeps nothing beside its cache.

    Args:
        reading: of nothing yet, by whose steps all texts go on; its cache is a `SlotCache`.
    """

    def __init__(self, reading: Cached, cache: SlotCache) -> None:
        self.reading = reading
        self.cache = cache

    @property
    def nbytes(self) -> int:
        return self.cache.nbytes

    def join(self, reading: Reading) -> None:
        self.cache.join(self._checked(reading).cache)

    def drop(self, rows: Sequence[int]) -> list[int]:
        return self.cache.drop(rows)

    def step(self, tokens: Tensor, parents: Tensor | None = None) -> Tensor:
        return self.reading.step(tokens, parents)

    def _checked(self, reading: Reading) -> Cached:
        if not isinstance(reading, type(self.reading)):
            raise TypeError(f"a {type(reading).__name__} cannot join texts of a {type(self.reading).__name__}")
        return reading


class Remembering(Cached, Protocol[Remembered]):
    """A reading that has a memory, too, of what stands beside its texts."""

    memory: Remembered


class MemorySlots(CacheSlots, Generic[Remembered]):
    """Likewise of a model whose texts look at encoded prompts or images by cross-attention."""

    reading: Remembering[Remembered]

    def __init__(self, reading: Remembering[Remembered], cache: SlotCache, memory: SlotMemory[Remembered]) -> None:
        super().__init__(reading, cache)
        self.memory = memory

    @property
    def nbytes(self) -> int:
        return self.cache.nbytes + self.memory.nbytes

    def join(self, reading: Reading) -> None:
        other = cast("Remembering[Remembered]", self._checked(reading))
        self.cache.join(other.cache)
        self.reading.memory = self.memory.join(other.memory, other.cache.batch)

    def drop(self, rows: Sequence[int]) -> list[int]:
        order = self.cache.drop(rows)
        self.reading.memory = self.memory.drop(order)
        return order
