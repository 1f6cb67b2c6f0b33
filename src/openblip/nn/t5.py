"""The encoder-decoder language model T5 (Raffel et al. 2020, https://arxiv.org/abs/1910.10683).

BLIP-2 uses FLAN-T5 (https://arxiv.org/abs/2210.11416), whose layout is T5 1.1's: gated feed-forward networks and an
output head of its own. The visual prompt stands in front of the text in the encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.nn.config_checks import SettingError, check_settings
from openblip.nn.kv_cache import KeyValueCache
from openblip.nn.quant.linear import Linear, WordTable
from openblip.nn.recompute import run_layer
from openblip.nn.slots import MemorySlots, SlotCache, SlotMemory
from openblip.nn.static_kv_cache import Fixable, FixedCache, fixed_cache
from openblip.nn.t5_attention import CrossAttention, EncoderMemory, RelativeBias, SelfAttention

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}

MEMORY_STEP = 64
"""Memory of encoded prompts that stays where it is has room for a multiple of so many tokens."""


@dataclass(frozen=True)
class T5Config:
    """Sizes of a T5.

    Attributes:
        depth, decoder_depth: layers of the encoder and of the decoder.
        head_width: num_heads * head_width need not be `width`: in FLAN-T5 small it is not.
        activation: "gelu_new" (tanh), with which FLAN-T5 was trained; "gelu" (exact), with which LAVIS
            runs it: logits differ by about 1e-3; "relu".
        gated: a second projection multiplies the activated one; False for T5 1.0.
        tied_head: the output head is the embedding table and hidden states are scaled by width ** -0.5
            before it (T5 1.0). FLAN-T5 has a head of its own and no scale.
        relative_buckets, relative_reach: distances share this many learnt biases; those of `relative_reach`
            tokens and more share one.
        start_id: what the decoder begins with: the padding token.
        dropout: after embeddings and final norms, in every sublayer and on attention weights.
    """

    vocab_size: int
    width: int
    depth: int
    decoder_depth: int
    num_heads: int
    head_width: int
    ffn_width: int
    activation: str = "gelu_new"
    gated: bool = True
    tied_head: bool = False
    relative_buckets: int = 32
    relative_reach: int = 128
    norm_eps: float = 1e-6
    start_id: int = 0
    dropout: float = 0.0
    kind: ClassVar[str] = "t5"
    prefix: ClassVar[str] = "t5"
    is_external: ClassVar[bool] = False
    prompt_start_ids: ClassVar[tuple[int, ...]] = ()
    prompt_counts: ClassVar[bool] = False
    label_smoothing: ClassVar[float] = 0.0
    encodes_prompts: ClassVar[bool] = True
    max_positions: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        check_settings(self)
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"T5 activation {self.activation!r} is not one of {', '.join(ACTIVATIONS)}")
        if self.relative_buckets < 4:
            raise SettingError("relative_buckets", f"is {self.relative_buckets}: both directions need two at least")
        if self.relative_reach <= self.relative_buckets // 2:
            raise SettingError(
                "relative_reach", f"is {self.relative_reach}, not above half of the {self.relative_buckets} buckets"
            )
        if self.start_id >= self.vocab_size:
            raise SettingError("start_id", f"is {self.start_id}, beyond the {self.vocab_size} words")

    def build(self) -> T5:
        return T5(self)

    @property
    def token_width(self) -> int:
        """Width of the embeddings that enter: what the visual prompt has to have, too."""
        return self.width

    @property
    def start_ids(self) -> tuple[int, ...]:
        return (self.start_id,)


class FeedForward(nn.Module):
    """Pre-norm feed-forward network, gated (Shazeer 2020, https://arxiv.org/abs/2002.05202) or not."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.activation = ACTIVATIONS[config.activation]
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.gated = config.gated
        if config.gated:
            self.gate_value = Linear(config.width, 2 * config.ffn_width, bias=False)
        else:
            self.fc1 = Linear(config.width, config.ffn_width, bias=False)
        self.fc2 = Linear(config.ffn_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        if self.gated:
            gate, value = self.gate_value(normed).chunk(2, dim=-1)
            hidden = self.activation(gate) * value
        else:
            hidden = self.activation(self.fc1(normed))
        hidden = self.fc2(F.dropout(hidden, self.dropout, self.training))
        return x + F.dropout(hidden, self.dropout, self.training)


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.self_attention = SelfAttention(config)
        self.ffn = FeedForward(config)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        read: Tensor = self.ffn(self.self_attention(x, bias, None, 0, 0))
        return read


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoded prompt, a feed-forward network."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.self_attention = SelfAttention(config)
        self.cross_attention = CrossAttention(config)
        self.ffn = FeedForward(config)

    def forward(
        self, x: Tensor, bias: Tensor, memory: EncoderMemory, cache: KeyValueCache | None, index: int, start: int
    ) -> Tensor:
        x = self.self_attention(x, bias, cache, index, start)
        x = self.cross_attention(x, memory.keys[index], memory.values[index], memory.mask)
        read: Tensor = self.ffn(x)
        return read


class T5Encoder(nn.Module):
    """`depth` layers under one relative bias, in which everything sees everything.

    Attributes:
        gradient_checkpointing: as of `VisionTransformer`.
    """

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.dropout = config.dropout
        self.bias = RelativeBias(config, bidirectional=True)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.depth))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)

    def forward(self, embeds: Tensor, mask: Tensor | None) -> Tensor:
        bias = self.bias(0, embeds.shape[1]).to(embeds.dtype)
        if mask is not None:
            # Finite, so that a row that sees nothing does not turn into NaN.
            bias = bias.masked_fill(~mask[:, None, None], torch.finfo(bias.dtype).min)
        x = F.dropout(embeds, self.dropout, self.training)
        for layer in self.layers:
            x = run_layer(layer, self.gradient_checkpointing, x, bias)
        return F.dropout(self.norm(x), self.dropout, self.training)


class T5Decoder(nn.Module):
    """`decoder_depth` causal layers under one relative bias.

    Attributes:
        gradient_checkpointing: as of `VisionTransformer`.
    """

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.dropout = config.dropout
        self.bias = RelativeBias(config, bidirectional=False)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_depth))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)

    def forward(self, embeds: Tensor, memory: EncoderMemory, cache: KeyValueCache | None) -> Tensor:
        length = embeds.shape[1]
        start = 0 if cache is None else cache.extend(length, None)
        bias = self.bias(start, length).to(embeds.dtype)
        if length > 1:
            ahead = torch.ones(bias.shape[2:], dtype=torch.bool, device=bias.device).triu(start + 1)
            bias = bias.masked_fill(ahead, -torch.inf)
        return self._run(embeds, bias, memory, cache, start)

    def decode_step(
        self, embeds: Tensor, memory: EncoderMemory, cache: KeyValueCache, parents: Tensor | None
    ) -> Tensor:
        start = cache.branch(embeds.shape[1], parents)
        # How far tokens are apart is told by the steps they were read at: texts stand side by side in the cache.
        bias = self.bias.between(*cache.read_steps()).to(embeds.dtype)
        mask = cache.mask()
        if mask is not None:
            bias = bias.masked_fill(~mask, -torch.inf)
        return self._run(embeds, bias, memory, cache, start)

    def _run(
        self, embeds: Tensor, bias: Tensor, memory: EncoderMemory, cache: KeyValueCache | None, start: int
    ) -> Tensor:
        x = F.dropout(embeds, self.dropout, self.training)
        for index, layer in enumerate(self.layers):
            x = run_layer(layer, self.gradient_checkpointing and cache is None, x, bias, memory, cache, index, start)
        return F.dropout(self.norm(x), self.dropout, self.training)


class T5(nn.Module):
    """T5: prompts go into the encoder, texts come out of the decoder; both share the token embeddings."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.tokens = WordTable(config.vocab_size, config.width)
        self.encoder = T5Encoder(config)
        self.decoder = T5Decoder(config)
        self.head = None if config.tied_head else Linear(config.width, config.vocab_size, bias=False)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [B, T] to embeddings [B, T, width], for encoder and decoder alike."""
        embedded: Tensor = self.tokens(ids)
        return embedded

    def encode(self, embeds: Tensor, mask: Tensor | None = None) -> Tensor:
        """Read prompts [B, S, width], visual and word tokens alike; mask [B, S], False for padding: [B, S, width].

        Only distances count: padding in front or behind changes nothing, padding within moves words apart.
        """
        encoded: Tensor = self.encoder(embeds, None if mask is None else mask.bool())
        return encoded

    def remember(self, encoded: Tensor, mask: Tensor | None = None) -> EncoderMemory:
        """Project encoded prompts [B, S, width] for the cross-attention of every decoder layer."""
        pairs = [cast(DecoderLayer, layer).cross_attention.keys_values(encoded) for layer in self.decoder.layers]
        keys, values = zip(*pairs, strict=True)
        return EncoderMemory(keys, values, None if mask is None else mask.bool()[:, None, None])

    def new_cache(self, batch: int, capacity: int) -> KeyValueCache:
        """An empty cache of the decoder's self-attention for `batch` rows of up to `capacity` tokens."""
        config, weight = self.config, self.decoder.norm.weight
        return KeyValueCache(
            config.decoder_depth, batch, config.num_heads, capacity, config.head_width, weight.dtype, weight.device
        )

    def forward(self, embeds: Tensor, memory: EncoderMemory, cache: KeyValueCache | None = None) -> Tensor:
        """Read T more tokens of the text that goes with encoded prompts.

        Args:
            embeds: [B, T, width], the first of a text being that of `start_id`. Padding may only stand behind
                a text, where nothing sees it.
            cache: what was read before; it grows by T. None reads from the start and keeps nothing.

        Returns:
            hidden states [B, T, width] after the final norm, for `logits`.

        Raises:
            ValueError: more tokens than the cache holds.
        """
        hidden: Tensor = self.decoder(embeds, memory, cache)
        return hidden

    def decode_step(
        self, embeds: Tensor, memory: EncoderMemory, cache: KeyValueCache, parents: Tensor | None = None
    ) -> Tensor:
        """Read one more token of each of several texts a prompt, which share its memory and the start of the cache.

        Args:
            embeds: [P, B, width], one token of each of B texts.
            parents: [P, B], see `KeyValueCache.branch`.

        Returns:
            hidden states [P, B, width], for `logits`.

        Raises:
            ValueError: more tokens than the cache holds.
        """
        # Cross-attention needs no more than that: a prompt's texts are its queries.
        return self.decoder.decode_step(embeds, memory, cache, parents)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token scores [..., vocabulary] of hidden states [..., width]."""
        if self.head is None:
            return self.tokens.scores(hidden * self.config.width**-0.5)
        scores: Tensor = self.head(hidden)
        return scores

    def read(self, prompts: Tensor, mask: Tensor | None, new_tokens: int, texts: int = 1) -> tuple[T5Reading, Tensor]:
        """See `LanguageModel.read`."""
        memory = self.remember(self.encode(prompts, mask), mask)
        cache = self.new_cache(prompts.shape[0], 1 + texts * new_tokens)
        start = torch.full((prompts.shape[0], 1), self.config.start_id, device=prompts.device)
        hidden = self(self.embed(start), memory, cache)
        return T5Reading(self, memory, cache), self.logits(hidden[:, -1]).float()

    def read_prefix(self, embeds: Tensor) -> None:
        """The encoder reads a prompt in both directions: no part of it can be read before the rest is known."""
        return None

    def new_slots(self, texts: int) -> MemorySlots[EncoderMemory]:
        """See `LanguageModel.new_slots`."""
        cache = SlotCache(self.new_cache(0, 0), texts)
        return MemorySlots(T5Reading(self, EncoderMemory((), ()), cache), cache, SlotMemory(EncoderMemory))

    def hidden_before(self, prompts: Tensor, mask: Tensor | None, labels: Tensor) -> Tensor:
        """Hidden states [B, L, width] that predict each label, given the prompt and the labels before it.

        Args:
            prompts: [B, S, width]; mask: [B, S], False for padding.
            labels: [B, L] ids; negative ones are ignored and may only stand behind a text.
        """
        before = F.pad(labels[:, :-1], (1, 0), value=self.config.start_id)
        before = before.masked_fill(before < 0, self.config.start_id)
        memory = self.remember(self.encode(prompts, mask), mask)
        hidden: Tensor = self(self.embed(before).to(prompts), memory)
        return hidden


class T5Reading:
    """Prompts in the encoder's memory, their texts behind the start token in the decoder's cache."""

    def __init__(self, t5: T5, memory: EncoderMemory, cache: KeyValueCache) -> None:
        self.t5 = t5
        self.memory = memory
        self.cache = cache

    def step(self, tokens: Tensor, parents: Tensor | None = None) -> Tensor:
        hidden = self.t5.decode_step(self.t5.embed(tokens), self.memory, self.cache, parents)
        return self.t5.logits(hidden).float()

    def take_prompts(self, rows: Tensor) -> None:
        self.memory = self.memory.take(rows)
        self.cache.take_rows(rows)

    @property
    def beside(self) -> int:
        """Tokens of the longest prompt in the encoder's memory, rounded up."""
        return -(-self.memory.keys[0].shape[2] // MEMORY_STEP) * MEMORY_STEP

    def fixed(self, prompts: int, texts: int, capacity: int) -> T5Reading:
        """See `Fixable`."""
        memory = self.memory.room(prompts, self.beside)
        return T5Reading(self.t5, memory, FixedCache(self.cache, prompts, texts, capacity))

    def hold(self, other: Fixable, rows: Tensor | None = None) -> None:
        """See `Fixable`."""
        if not isinstance(other, T5Reading):
            raise TypeError("a T5 cannot go on from what another model has read")
        self.memory.hold(other.memory if rows is None else other.memory.take(rows))
        fixed_cache(self.cache).hold(other.cache, rows)
