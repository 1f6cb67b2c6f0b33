"""Keys and values of the tokens a decoder has already read, in memory allocated once."""

from __future__ import annotations

import torch
from torch import Tensor


class KeyValueCache:
    """A static key-value cache of prompts, each of which may go on as several texts.

    Memory for `capacity` tokens a prompt is taken at the start, so a decoding step writes in place and never
    allocates. A prompt's texts (beams, samples) share what was read of it, and their own tokens stand behind it, one
    of each text a step: whose is whose is told by `visible` alone, so no key or value is ever moved or copied when
    beams change places.

    Attributes:
        keys, values: [layers, batch, heads, capacity, head width]; a row of the batch is a prompt.
        visible: [batch, texts, capacity] bool: what each text sees; neither padding nor what belongs to other texts.
        steps: [capacity] int64: how many steps of reading, padding included, came before each cached token.
        tokens: [batch] int64: how many tokens each text has so far, without padding; the next token's position.
        length: tokens cached so far, padding and all texts' own included, the same for every row.
        reach: how many tokens, padding included, the next one stands behind.
        hides: whether `visible` hides anything; when False, masks can be left out.
        prefix: a cache of one row that every text sees in front of all; it is only read.
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
        self.visible = torch.zeros(batch, 1, capacity, dtype=torch.bool, device=device)
        self.steps = torch.zeros(capacity, dtype=torch.int64, device=device)
        self.tokens = torch.zeros(batch, dtype=torch.int64, device=device)
        self.length = 0
        self.reach = 0
        self.hides = False
        self.prefix: KeyValueCache | None = None

    @property
    def batch(self) -> int:
        return self.keys.shape[1]

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    @property
    def nbytes(self) -> int:
        """Memory of keys and values."""
        return self.keys.nbytes + self.values.nbytes

    def stand_behind(self, prefix: KeyValueCache) -> None:
        """Let everything that will be read stand behind a prefix."""
        self.prefix = prefix
        self.tokens += prefix.length
        self.reach += prefix.length

    def extend(self, count: int, mask: Tensor | None) -> int:
        """Make room for `count` more tokens of each prompt (mask [batch, count] bool) and return where they start."""
        start, end = self._make_room(count)
        if mask is None:
            self.visible[:, :, start:end] = True
            self.tokens += count
        else:
            self.visible[:, :, start:end] = mask[:, None]
            self.tokens += mask.sum(1)
            self.hides = True
        self.steps[start:end] = torch.arange(self.reach, self.reach + count, device=self.steps.device)
        self.reach += count
        return start

    def branch(self, texts: int, parents: Tensor | None) -> int:
        """Make room for one more token of each of `texts` texts a prompt and return where they start.

        Args:
            parents: [batch, texts] int64, which earlier text of its prompt each goes on from; None: from itself. The
                first time all go on from the prompt. Texts that none goes on from are left behind.
        """
        start, end = self._make_room(texts)
        if self.visible.shape[1] == 1 and texts > 1:
            self.visible = self.visible.repeat(1, texts, 1)
            self.hides = True
        elif parents is not None:
            self.visible = self.visible.gather(1, parents[:, :, None].expand(-1, -1, self.capacity))
        self.visible[:, :, start:end] = torch.eye(texts, dtype=torch.bool, device=self.visible.device)
        self.tokens += 1
        self.steps[start:end] = self.reach
        self.reach += 1
        return start

    def mask(self) -> Tensor | None:
        """[batch, 1, texts, length] bool, what each text's last token sees; None when that is everything."""
        return self.visible[:, None, :, : self.length] if self.hides else None

    def read_steps(self) -> tuple[Tensor, Tensor]:
        """The step of the last token [1], and those of all that are cached [length]."""
        steps = self.steps[: self.length]
        return steps[-1:], steps

    def write(self, layer: int, start: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store [batch, heads, T, head width] at `start`; return everything cached for this layer."""
        end = start + keys.shape[2]
        self.keys[layer, :, :, start:end] = keys
        self.values[layer, :, :, start:end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def take_rows(self, rows: Tensor) -> None:
        """Replace the batch by `rows` [new batch] int64 of it, a copy: when many prompts are done."""
        self.keys = self.keys[:, rows]
        self.values = self.values[:, rows]
        self.visible = self.visible[rows]
        self.tokens = self.tokens[rows]

    def _make_room(self, count: int) -> tuple[int, int]:
        start, end = self.length, self.length + count
        if end > self.capacity:
            raise ValueError(f"the key-value cache holds {self.capacity} tokens, {end} were asked for")
        self.length = end
        return start, end


def causal_mask(length: int, start: int, mask: Tensor | None, cache: KeyValueCache | None) -> Tensor | None:
    """[B or 1, 1, T, start + T] bool, True where a query may look; None for plain causal or full view.

    Args:
        mask: [B, T] bool, False for padding; read only where there is no cache.
    """
    visible = mask if cache is None else (cache.visible[:, 0, : start + length] if cache.hides else None)
    behind = cache is not None and cache.prefix is not None
    if visible is None and (length == 1 or (start == 0 and not behind)):
        return None
    device = visible.device if visible is not None else (cache.keys.device if cache is not None else None)
    rows = torch.arange(start, start + length, device=device)[:, None]
    columns = torch.arange(start + length, device=device)[None]
    allowed = (columns <= rows)[None, None]
    if visible is not None:
        allowed = allowed & visible[:, None, None]
        # Padding in front may look at itself: a row that sees nothing would turn into NaN.
        allowed = allowed | (~allowed.any(dim=-1, keepdim=True) & (columns == rows))
    return allowed
