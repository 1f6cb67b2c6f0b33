"""Keys and values in memory that stays where it is, for decoding steps that are captured once and replayed."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from openblip.nn.kv_cache import KeyValueCache
from openblip.nn.language_model import Reading


class FixedCache(KeyValueCache):
    """A cache through which every step goes in the same way.

    How far it is filled is told by tensors that a step itself moves on; attention sees the whole capacity behind a
    mask; nothing is allocated anew. Rows beyond the prompts that are held compute something that nobody reads.

    Attributes:
        places: [texts] int64, where the tokens of the last step stand.
        now: [1] int64, the steps of reading, padding included, before that token.
        length, reach: as Python knows them: `advance` tells it of a step.
    """

    def __init__(self, like: KeyValueCache, batch: int, texts: int, capacity: int) -> None:
        depth, _, num_heads, _, head_width = like.keys.shape
        super().__init__(depth, batch, num_heads, capacity, head_width, like.keys.dtype, like.keys.device)
        device = self.keys.device
        self.keys.zero_()  # what is masked weighs nothing, but nothing times NaN would be NaN
        self.values.zero_()
        self.visible = torch.zeros(batch, texts, capacity, dtype=torch.bool, device=device)
        self.hides = True
        self.places = torch.arange(-texts, 0, device=device)
        self.now = torch.full((1,), -1, dtype=torch.int64, device=device)
        self._own = torch.eye(texts, dtype=torch.bool, device=device)
        if like.prefix is not None:
            length = like.prefix.length
            self.prefix = KeyValueCache(depth, 1, num_heads, length, head_width, like.keys.dtype, device)
            self.prefix.length = length

    @property
    def texts(self) -> int:
        return self.visible.shape[1]

    def hold(self, cache: KeyValueCache, rows: Tensor | None = None) -> None:
        """Go on from what another cache has read: of all its prompts, or of `rows` [n] int64 alone.

        Raises:
            ValueError: there is no room for it.
        """
        end, texts = cache.length, self.texts
        rows = torch.arange(cache.batch, device=self.keys.device) if rows is None else rows
        if len(rows) > self.batch or end > self.capacity:
            raise ValueError(
                f"{len(rows)} prompts of {end} tokens do not fit into {self.batch} of {self.capacity}, which are fixed"
            )
        for own, other in ((self.keys, cache.keys), (self.values, cache.values)):
            own.zero_()
            own[:, : len(rows), :, :end] = other[:, rows, :, :end]
        self.visible.zero_()
        self.visible[: len(rows), :, :end] = cache.visible[rows, :, :end]
        self.tokens.zero_()
        self.tokens[: len(rows)] = cache.tokens[rows]
        self.steps[:end] = cache.steps[:end]
        self.places.copy_(torch.arange(end - texts, end, device=self.places.device))
        self.now.fill_(cache.reach - 1)
        self.length, self.reach = end, cache.reach
        if self.prefix is not None and cache.prefix is not None:
            self.prefix.keys.copy_(cache.prefix.keys[:, :, :, : self.prefix.length])
            self.prefix.values.copy_(cache.prefix.values[:, :, :, : self.prefix.length])

    def advance(self) -> None:
        """Tell Python of a step that is about to be made. Raises ValueError when there is no room for it."""
        self._make_room(self.texts)
        self.reach += 1

    def branch(self, texts: int, parents: Tensor | None) -> int:
        if parents is not None:
            self.visible.copy_(self.visible.gather(1, parents[:, :, None].expand(-1, -1, self.capacity)))
        self.places += texts
        self.visible.index_copy_(2, self.places, self._own.expand(self.batch, -1, -1))
        self.tokens += 1
        self.now += 1
        self.steps.index_copy_(0, self.places, self.now.expand(texts))
        return 0  # `places` tells it

    def mask(self) -> Tensor | None:
        return self.visible[:, None]

    def read_steps(self) -> tuple[Tensor, Tensor]:
        return self.now, self.steps

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        self.keys[layer].index_copy_(2, self.places, keys)
        self.values[layer].index_copy_(2, self.places, values)
        return self.keys[layer], self.values[layer]


def fixed_cache(cache: KeyValueCache) -> FixedCache:
    """A cache that has to be fixed. Raises TypeError when it is not."""
    if not isinstance(cache, FixedCache):
        raise TypeError("this reading grows as it reads: only one that `fixed` gave can hold another")
    return cache


class Fixable(Reading, Protocol):
    """A reading whose steps can be made in memory that stays where it is."""

    @property
    def cache(self) -> KeyValueCache: ...
    @property
    def beside(self) -> int:
        """Tokens that are read from elsewhere than the cache: readings share fixed memory where they are as many."""

    def fixed(self, prompts: int, texts: int, capacity: int) -> Fixable:
        """A reading of nothing yet, in fixed memory that has room for any like this one."""

    def hold(self, other: Fixable, rows: Tensor | None = None) -> None:
        """Of such a reading: go on from another, or from its prompts `rows` [n] int64 alone."""
