"""How tokens of a T5 look at one another: by what they are and how far apart, or at an encoded prompt.

Scores are not scaled: T5's weights were trained with the scale inside them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.nn.kv_cache import KeyValueCache
from openblip.nn.quant.linear import Linear


class AttentionSizes(Protocol):
    """What attention needs of a T5's sizes; see `openblip.nn.t5.T5Config`."""

    @property
    def width(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def head_width(self) -> int: ...
    @property
    def relative_buckets(self) -> int: ...
    @property
    def relative_reach(self) -> int: ...
    @property
    def norm_eps(self) -> float: ...
    @property
    def dropout(self) -> float: ...


@dataclass(frozen=True)
class EncoderMemory:
    """What cross-attention needs of encoded prompts: computed once, read at every step.

    Attributes:
        keys, values: per decoder layer [B, heads, S, head width].
        mask: [B, 1, 1, S] bool, False for padding; None when there is none.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor | None = None

    def take(self, rows: Tensor) -> EncoderMemory:
        """The memory of some of the prompts, in another order or repeated: rows [R] int64."""
        return EncoderMemory(
            tuple(keys[rows] for keys in self.keys),
            tuple(values[rows] for values in self.values),
            None if self.mask is None else self.mask[rows],
        )

    def room(self, prompts: int, length: int) -> EncoderMemory:
        """Memory that stays where it is, for so many prompts of so many tokens."""
        _, heads, _, width = self.keys[0].shape
        keys, values = (
            tuple(one.new_zeros(prompts, heads, length, width) for one in tensors)
            for tensors in (self.keys, self.values)
        )
        return EncoderMemory(keys, values, self.keys[0].new_ones(prompts, 1, 1, length, dtype=torch.bool))

    def hold(self, other: EncoderMemory) -> None:
        """Fill such memory with that of some prompts. Raises ValueError when they do not fit."""
        count, _, length, _ = other.keys[0].shape
        if self.mask is None or count > len(self.mask) or length > self.mask.shape[3]:
            raise ValueError(f"there is no room for {count} encoded prompts of {length} tokens")
        for own, others in ((self.keys, other.keys), (self.values, other.values)):
            for kept, new in zip(own, others, strict=True):
                kept.zero_()
                kept[:count, :, :length] = new
        self.mask.fill_(True)  # a row that sees nothing would turn into NaN
        self.mask[:count] = False
        self.mask[:count, :, :, :length] = True if other.mask is None else other.mask


class RelativeBias(nn.Module):
    """What a head adds to its scores for how far key and query are apart (section 2.1)."""

    def __init__(self, config: AttentionSizes, bidirectional: bool) -> None:
        super().__init__()
        self.bidirectional = bidirectional
        self.reach = config.relative_reach
        self.table = nn.Embedding(config.relative_buckets, config.num_heads)

    def buckets(self, distance: Tensor) -> Tensor:
        """The row of the table for key position minus query position, int64 of any shape.

        Half of the rows stand for one distance each, the others for ranges that grow logarithmically. Both
        directions have such halves, or what lies ahead counts as distance 0.
        """
        count, ahead = self.table.num_embeddings, torch.zeros_like(distance)
        if self.bidirectional:
            count //= 2
            ahead = (distance > 0) * count
            distance = distance.abs()
        else:
            distance = (-distance).clamp(min=0)
        exact = count // 2
        # In this order of float32 operations: bounds of the ranges are whole numbers that another order may miss.
        grown = torch.log(distance.clamp(min=exact).float() / exact) / math.log(self.reach / exact) * (count - exact)
        return ahead + torch.where(distance < exact, distance, (exact + grown.long()).clamp(max=count - 1))

    def forward(self, start: int, length: int) -> Tensor:
        """[1, heads, T, start + T] of `length` queries from position `start` on and all keys up to the last."""
        positions = torch.arange(start + length, device=self.table.weight.device)
        return self.between(positions[start:], positions)

    def between(self, queries: Tensor, keys: Tensor) -> Tensor:
        """[1 or B, heads, T, L] of queries and keys at positions [T] and [L], or of each text at [B, T] and [B, L]."""
        bias: Tensor = self.table(self.buckets(keys[..., None, :] - queries[..., None]))
        bias = bias.movedim(-1, -3)
        return bias[None] if queries.ndim == 1 else bias


class SelfAttention(nn.Module):
    """Pre-norm self-attention with its residual."""

    def __init__(self, config: AttentionSizes) -> None:
        super().__init__()
        self.num_heads, self.dropout = config.num_heads, config.dropout
        inner = config.num_heads * config.head_width
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.qkv = Linear(config.width, 3 * inner, bias=False)
        self.out = Linear(inner, config.width, bias=False)

    def forward(self, x: Tensor, bias: Tensor, cache: KeyValueCache | None, index: int, start: int) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        if cache is not None:
            key, value = cache.write(index, start, key, value)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout, scale=1.0)
        mixed = self.out(mixed.transpose(1, 2).reshape(batch, length, -1))
        return x + F.dropout(mixed, self.dropout, self.training)


class CrossAttention(nn.Module):
    """Pre-norm attention to the encoded prompt with its residual; it knows no distances."""

    def __init__(self, config: AttentionSizes) -> None:
        super().__init__()
        self.num_heads, self.dropout = config.num_heads, config.dropout
        inner = config.num_heads * config.head_width
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.query = Linear(config.width, inner, bias=False)
        self.kv = Linear(config.width, 2 * inner, bias=False)
        self.out = Linear(inner, config.width, bias=False)

    def keys_values(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """[B, S, width] to keys and values [B, heads, S, head width]."""
        batch, length, _ = encoded.shape
        kv = self.kv(encoded).view(batch, length, 2, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        return kv[0], kv[1]

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        batch, length, _ = x.shape
        query = self.query(self.norm(x)).view(batch, length, self.num_heads, -1).transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, dropout_p=dropout, scale=1.0)
        mixed = self.out(mixed.transpose(1, 2).reshape(batch, length, -1))
        return x + F.dropout(mixed, self.dropout, self.training)
