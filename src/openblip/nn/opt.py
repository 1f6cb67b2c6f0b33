"""The decoder-only language model OPT (Zhang et al. 2022, https://arxiv.org/abs/2205.01068).

Covers every size of `facebook/opt-*`, the post-norm 350m variant with its narrower embeddings included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.nn.config_checks import check_heads, check_settings
from openblip.nn.kv_cache import KeyValueCache, causal_mask
from openblip.nn.language_model import join_texts
from openblip.nn.prefix_attention import attend_to_both
from openblip.nn.quant.linear import Linear, WordTable
from openblip.nn.recompute import run_layer
from openblip.nn.slots import CacheSlots, SlotCache
from openblip.nn.static_kv_cache import Fixable, FixedCache, fixed_cache

POSITION_OFFSET = 2
"""OPT's position table has two unused rows in front, inherited from fairseq's padding index."""


@dataclass(frozen=True)
class OptConfig:
    """Sizes of an OPT-layout decoder.

    Attributes:
        embed_width: width of the token embeddings; when it differs from `width` (opt-350m), a
            projection without bias leads in and another leads out.
        pre_norm: LayerNorm before each sublayer (every OPT but 350m) or after it.
        final_norm: a LayerNorm after the last layer; OPT has one exactly when it is pre-norm.
        dropout: of what a sublayer adds, in training; embeddings have none, as in the paper.
        attention_dropout: of attention's weights, in training; the published models have none.
    """

    vocab_size: int
    width: int
    depth: int
    num_heads: int
    ffn_width: int
    max_positions: int = 2048
    embed_width: int | None = None
    pre_norm: bool = True
    final_norm: bool = True
    layer_norm_eps: float = 1e-5
    dropout: float = 0.0
    attention_dropout: float = 0.0
    kind: ClassVar[str] = "opt"
    prefix: ClassVar[str] = "decoder"
    is_external: ClassVar[bool] = False
    prompt_start_ids: ClassVar[tuple[int, ...]] = ()
    prompt_counts: ClassVar[bool] = False
    label_smoothing: ClassVar[float] = 0.0
    encodes_prompts: ClassVar[bool] = False
    start_ids: ClassVar[tuple[int, ...]] = ()

    def __post_init__(self) -> None:
        check_settings(self)
        check_heads("decoder", self.width, self.num_heads)

    @property
    def token_width(self) -> int:
        """Width of the embeddings that enter: what the visual prompt has to have, too."""
        return self.embed_width or self.width

    def build(self) -> Opt:
        return Opt(self)


class DecoderLayer(nn.Module):
    """Causal self-attention and a ReLU feed-forward network, each with its residual."""

    def __init__(self, config: OptConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.pre_norm = config.pre_norm
        self.dropout = config.dropout
        self.attention_dropout = config.attention_dropout
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        self.ffn_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.fc1 = Linear(width, config.ffn_width)
        self.fc2 = Linear(config.ffn_width, width)

    def attend(self, x: Tensor, mask: Tensor | None, cache: KeyValueCache | None, index: int, start: int) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        if cache is not None:
            key, value = cache.write(index, start, key, value)
        if cache is not None and cache.prefix is not None:
            shared = cache.prefix
            mixed = attend_to_both(query, shared.keys[index, 0], shared.values[index, 0], key, value, mask)
        else:
            causal = mask is None and length > 1
            dropout = self.attention_dropout if self.training else 0.0
            mixed = F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal
            )
        attended: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return attended

    def forward(self, x: Tensor, mask: Tensor | None, cache: KeyValueCache | None, index: int, start: int) -> Tensor:
        attended = self.attend(self.attention_norm(x) if self.pre_norm else x, mask, cache, index, start)
        x = x + F.dropout(attended, self.dropout, self.training)
        if not self.pre_norm:
            x = self.attention_norm(x)
        hidden = F.relu(self.fc1(self.ffn_norm(x) if self.pre_norm else x))
        x = x + F.dropout(self.fc2(hidden), self.dropout, self.training)
        return x if self.pre_norm else self.ffn_norm(x)


class Opt(nn.Module):
    """OPT: token and position embeddings, `depth` layers, an output head tied to the embeddings.

    Attributes:
        gradient_checkpointing: as of `VisionTransformer`.
    """

    def __init__(self, config: OptConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.tokens = WordTable(config.vocab_size, config.token_width)
        self.positions = nn.Embedding(config.max_positions + POSITION_OFFSET, config.width)
        projected = config.token_width != config.width
        self.project_in = Linear(config.token_width, config.width, bias=False) if projected else None
        self.project_out = Linear(config.width, config.token_width, bias=False) if projected else None
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps) if config.final_norm else None

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [B, T] to embeddings [B, T, token width], to be joined with a visual prompt."""
        embedded: Tensor = self.tokens(ids)
        return embedded

    def new_cache(self, batch: int, capacity: int) -> KeyValueCache:
        """An empty cache for `batch` rows of up to `capacity` tokens, on the model's device and dtype."""
        config, weight = self.config, self.positions.weight
        head_width = config.width // config.num_heads
        return KeyValueCache(config.depth, batch, config.num_heads, capacity, head_width, weight.dtype, weight.device)

    def forward(self, embeds: Tensor, mask: Tensor | None = None, cache: KeyValueCache | None = None) -> Tensor:
        """Read T more tokens.

        Args:
            embeds: [B, T, token width].
            mask: [B, T] bool, False for padding; None when there is none.
            cache: what was read before; it grows by T. None reads from the start and keeps nothing.

        Returns:
            hidden states [B, T, width] after the final norm, for `logits`.

        Raises:
            ValueError: more tokens than the cache or the position table holds.
        """
        length = embeds.shape[1]
        mask = None if mask is None else mask.bool()
        self._check_positions(length if cache is None else cache.reach + length)
        if cache is None:
            start, read = 0, torch.zeros(embeds.shape[0], dtype=torch.int64, device=embeds.device)
        else:
            read = cache.tokens.clone()
            start = cache.extend(length, mask)
        positions = _positions(read, length, mask)
        return self._run(embeds, positions, causal_mask(length, start, mask, cache), cache, start)

    def decode_step(self, embeds: Tensor, cache: KeyValueCache, parents: Tensor | None = None) -> Tensor:
        """Read one more token of each of several texts a prompt, which share the prompt in the cache.

        Args:
            embeds: [P, B, token width], one token of each of B texts.
            parents: [P, B], see `KeyValueCache.branch`.

        Returns:
            hidden states [P, B, width], for `logits`.

        Raises:
            ValueError: more tokens than the cache or the position table holds.
        """
        self._check_positions(cache.reach + 1)
        positions = cache.tokens[:, None].clone()
        start = cache.branch(embeds.shape[1], parents)
        # The texts stand where consecutive tokens otherwise do: as queries of one prompt.
        return self._run(embeds, positions, cache.mask(), cache, start)

    def _check_positions(self, count: int) -> None:
        if count > self.config.max_positions:
            raise ValueError(f"{count} tokens are more than the {self.config.max_positions} positions of this model")

    def _run(
        self, embeds: Tensor, positions: Tensor, mask: Tensor | None, cache: KeyValueCache | None, start: int
    ) -> Tensor:
        x = embeds if self.project_in is None else self.project_in(embeds)
        x = x + self.positions(positions + POSITION_OFFSET)
        for index, layer in enumerate(self.layers):
            x = run_layer(layer, self.gradient_checkpointing and cache is None, x, mask, cache, index, start)
        return x if self.norm is None else self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token scores [..., vocabulary] of hidden states [..., width]."""
        if self.project_out is not None:
            hidden = self.project_out(hidden)
        return self.tokens.scores(hidden)

    def read(
        self, prompts: Tensor, mask: Tensor | None, new_tokens: int, texts: int = 1, prefix: KeyValueCache | None = None
    ) -> tuple[DecoderReading, Tensor]:
        """See `LanguageModel.read`. Raises ValueError when prompts and new tokens exceed the position table.

        Args:
            prefix: what `read_prefix` gave: the prompts stand behind it.
        """
        cache = self.new_cache(prompts.shape[0], prompts.shape[1] + texts * new_tokens)
        if prefix is not None:
            cache.stand_behind(prefix)
        hidden = self(prompts, mask, cache)
        return DecoderReading(self, cache), self.logits(hidden[:, -1]).float()

    def read_prefix(self, embeds: Tensor) -> DecoderPrefix:
        """See `LanguageModel.read_prefix`. Raises ValueError when it exceeds the position table."""
        cache = self.new_cache(1, embeds.shape[0])
        self(embeds[None], None, cache)
        return DecoderPrefix(self, cache)

    def new_slots(self, texts: int) -> CacheSlots:
        """See `LanguageModel.new_slots`."""
        cache = SlotCache(self.new_cache(0, 0), texts)
        return CacheSlots(DecoderReading(self, cache), cache)

    def hidden_before(self, prompts: Tensor, mask: Tensor | None, labels: Tensor) -> Tensor:
        """Hidden states [B, L, width] that predict each label: see `LanguageModel.hidden_before`."""
        before = labels[:, :-1]
        text = self.embed(before.clamp(min=0)).to(prompts)
        embeds, joint_mask, places = join_texts(prompts, mask, text, before >= 0)
        hidden: Tensor = self(embeds, joint_mask)
        return hidden.gather(1, places[:, :, None].expand(-1, -1, hidden.shape[2]))


def _positions(read: Tensor, length: int, mask: Tensor | None) -> Tensor:
    """[B, T] positions of T more tokens behind `read` [B] earlier ones; padding is skipped, and itself gets -1."""
    if mask is None:
        return read[:, None] + torch.arange(length, device=read.device)
    visible = mask.long()
    return (read[:, None] + visible.cumsum(1)) * visible - 1


class DecoderReading:
    """Prompts and their texts in one cache."""

    def __init__(self, decoder: Opt, cache: KeyValueCache) -> None:
        self.decoder = decoder
        self.cache = cache

    def step(self, tokens: Tensor, parents: Tensor | None = None) -> Tensor:
        hidden = self.decoder.decode_step(self.decoder.embed(tokens), self.cache, parents)
        return self.decoder.logits(hidden).float()

    def take_prompts(self, rows: Tensor) -> None:
        self.cache.take_rows(rows)

    @property
    def beside(self) -> int:
        """Tokens of the prefix that all texts see."""
        return 0 if self.cache.prefix is None else self.cache.prefix.length

    def fixed(self, prompts: int, texts: int, capacity: int) -> DecoderReading:
        """See `Fixable`."""
        return DecoderReading(self.decoder, FixedCache(self.cache, prompts, texts, capacity))

    def hold(self, other: Fixable, rows: Tensor | None = None) -> None:
        """See `Fixable`."""
        fixed_cache(self.cache).hold(other.cache, rows)


class DecoderPrefix:
    """Keys and values of what prompts begin with: read once, seen by all."""

    def __init__(self, decoder: Opt, cache: KeyValueCache) -> None:
        self.decoder = decoder
        self.cache = cache

    @property
    def nbytes(self) -> int:
        return self.cache.nbytes

    def read(
        self, prompts: Tensor, mask: Tensor | None, new_tokens: int, texts: int = 1
    ) -> tuple[DecoderReading, Tensor]:
        return self.decoder.read(prompts, mask, new_tokens, texts, self.cache)
