"""Keys and values of the tokens a decoder has already read, in memory allocated once."""

from __future__ import annotations

import torch
from torch import Tensor


class KeyValueCache:
    """A static key-value cache.

    Memory for `capacity` tokens is taken at the start, so a decoding step writes in place and never
    allocates. Rows may be left-padded: `visible` says which cached tokens may be attended to.

    Attributes:
        keys, values: [layers, batch, heads, capacity, head width].
        visible: [batch, capacity] bool, False for padding.
        length: tokens cached so far, padding included, the same for every row.
        tokens: [batch] int64, tokens cached so far without padding; the next token's position.
        padded: whether any row holds padding; when False, masks can be left out.
    """

    def __init__(
        self,
        depth: int,
        batch: int,
        num_heads: int,
        capacity: int,
        head_width: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (depth, batch, num_heads, capacity, head_width)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.visible = torch.ones(batch, capacity, dtype=torch.bool, device=device)
        self.tokens = torch.zeros(batch, dtype=torch.int64, device=device)
        self.length = 0
        self.padded = False

    @property
    def batch(self) -> int:
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def extend(self, count: int, mask: Tensor | None) -> int:
        """Make room for `count` tokens (mask [batch, count] bool) and return where they start."""
        start, end = self.length, self.length + count
        if end > self.capacity:
            raise ValueError(f"the key-value cache holds {self.capacity} tokens, {end} were asked for")
        if mask is None:
            self.visible[:, start:end] = True
            self.tokens += count
        else:
            self.visible[:, start:end] = mask
            self.tokens += mask.sum(1)
            self.padded = True
        self.length = end
        return start

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store [batch, heads, T, head width] at `start`; return everything cached for this layer."""
        end = start + keys.shape[2]
        self.keys[layer, :, :, start:end] = keys
        self.values[layer, :, :, start:end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def take_rows(self, rows: Tensor) -> None:
        """Replace the batch by `rows` [new batch] int64 of it: repeat a row per beam, drop finished ones."""
        self.keys = self.keys[:, rows]
        self.values = self.values[:, rows]
        self.visible = self.visible[rows]
        self.tokens = self.tokens[rows]

    def reorder(self, rows: Tensor, start: int) -> None:
        """Permute rows in place from token `start` on.

        Beams of one image share their prefix, so only what they generated has to move.
        """
        kept = slice(start, self.length)
        self.keys[:, :, :, kept] = self.keys[:, rows, :, kept]
        self.values[:, :, :, kept] = self.values[:, rows, :, kept]
