"""BERT as a decoder: causal self-attention with a key-value cache, cross-attention to images or encoded questions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.nn.bert import Bert, BertConfig, BertLayer, ImageMemory, TextHead, token_positions
from openblip.nn.kv_cache import KeyValueCache, causal_mask
from openblip.nn.recompute import run_layer


class BertDecoder(Bert):
    """A BERT that writes: each token sees those before it, and the head's output table is the word table."""

    def __init__(self, config: BertConfig, shared: Bert | None = None) -> None:
        super().__init__(config, shared)
        self.head = TextHead(config, config.vocab_size)

    def new_cache(self, batch: int, capacity: int) -> KeyValueCache:
        """An empty cache of self-attention for `batch` rows of up to `capacity` tokens."""
        config, weight = self.config, self.owner.norm.weight
        head_width = config.width // config.num_heads
        return KeyValueCache(config.depth, batch, config.num_heads, capacity, head_width, weight.dtype, weight.device)

    def decode(
        self, embeds: Tensor, mask: Tensor | None, memory: ImageMemory, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Read T more tokens of each text.

        Args:
            embeds: [B, T, width]; mask: [B, T], False or 0 for padding; None when there is none.
            memory: of one image a text, or of one for several texts that follow one another.
            cache: what was read before; it grows by T. None reads from the start and keeps nothing.

        Returns:
            hidden states [B, T, width], for `logits`.

        Raises:
            ValueError: more tokens than the cache or the position table holds.
        """
        length = embeds.shape[1]
        mask = None if mask is None else mask.bool()
        self.check_positions(length if cache is None else cache.reach + length)
        if cache is None:
            start, read = 0, torch.zeros(embeds.shape[0], dtype=torch.int64, device=embeds.device)
        else:
            read = cache.tokens.clone()
            start = cache.extend(length, mask)
        positions = read[:, None] + token_positions(embeds, mask)
        allowed = causal_mask(length, start, mask, cache)
        return self._run(embeds, positions, allowed, allowed is None and length > 1, memory, cache, start)

    def decode_step(
        self, embeds: Tensor, memory: ImageMemory, cache: KeyValueCache, parents: Tensor | None = None
    ) -> Tensor:
        """Read one more token of each of several texts a prompt, which share its image and the start of the cache.

        Args:
            embeds: [P, B, width], one token of each of B texts.
            parents: [P, B], see `KeyValueCache.branch`.

        Returns:
            hidden states [P, B, width], for `logits`.

        Raises:
            ValueError: more tokens than the cache or the position table holds.
        """
        self.check_positions(cache.reach + 1)
        positions = cache.tokens[:, None].clone()
        start = cache.branch(embeds.shape[1], parents)
        # The texts stand where consecutive tokens otherwise do: as queries of one prompt.
        return self._run(embeds, positions, cache.mask(), False, memory, cache, start)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token scores [..., vocabulary] of hidden states [..., width]."""
        scores: Tensor = self.head(hidden, self.owner.words)
        return scores

    def _run(
        self,
        embeds: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        causal: bool,
        memory: ImageMemory,
        cache: KeyValueCache | None,
        start: int,
    ) -> Tensor:
        if causal:
            length = embeds.shape[1]
            mask = torch.ones(length, length, dtype=torch.bool, device=embeds.device).tril()
        x = self.place(embeds, positions)
        recompute = self.gradient_checkpointing and cache is None
        for index, layer in enumerate(self.blocks()):
            x = run_layer(layer, recompute, x, layer, mask, memory, cache, index, start, call=_read)
        return x


def _read(
    x: Tensor,
    layer: BertLayer,
    mask: Tensor | None,
    memory: ImageMemory,
    cache: KeyValueCache | None,
    index: int,
    start: int,
) -> Tensor:
    """Tokens [B, T, D] through one layer, the `index`-th, behind what the cache has of it."""
    query, keys, values = layer.self_attention.query_key_value(x)
    if cache is not None:
        keys, values = cache.write(index, start, keys, values)
    return layer.look(layer.self_attention(x, keys, values, mask, query), (memory,), index)


def sequence_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """The label-smoothed cross-entropy of each text, summed over its tokens: [B].

    Args:
        logits: [B, L, vocabulary], which predict the label that follows; labels: [B, L] ids, negative ones are ignored.
    """
    targets = labels[:, 1:]
    losses = F.cross_entropy(
        logits[:, :-1].transpose(1, 2).float(),
        targets.masked_fill(targets < 0, -100),
        reduction="none",
        label_smoothing=smoothing,
    )
    return losses.sum(dim=1)
