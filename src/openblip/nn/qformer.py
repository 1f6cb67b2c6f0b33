"""The Q-Former of BLIP-2 (Li et al. 2023, section 3.1, https://arxiv.org/abs/2301.12597).

A BERT whose learnt queries read image features through cross-attention. Queries and text share
self-attention; each has a feed-forward network of its own. Three ways of masking serve three objectives:

    image / text       queries and text apart                  contrast (ITC)
    joint              everything sees everything              matching (ITM)
    causal text        queries first, text after, causally     generation (ITG)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.nn.bert import Attention, FeedForward, ImageMemory, TextHead, remember, visible_keys
from openblip.nn.config_checks import check_heads, check_settings
from openblip.nn.quant.linear import WordTable
from openblip.nn.recompute import run_layer


@dataclass(frozen=True)
class QFormerConfig:
    """Sizes of a Q-Former.

    Attributes:
        image_width: width of the image features that cross-attention reads.
        vocab_size: text vocabulary; 0 leaves the text side out, as stage-2 checkpoints do.
        cross_every: layers 0, n, 2n, ... have cross-attention.
    """

    image_width: int
    num_queries: int = 32
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    ffn_width: int = 3072
    cross_every: int = 2
    vocab_size: int = 30523
    max_positions: int = 512
    layer_norm_eps: float = 1e-12
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_settings(self)
        check_heads("Q-Former", self.width, self.num_heads)


@dataclass(frozen=True)
class QueryPass:
    """What one pass of the queries over an image leaves behind.

    Attributes:
        output: [B, Q, D].
        keys, values: per layer [B, heads, Q, head width], for text that attends to the queries (ITG).
    """

    output: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


class QFormerLayer(nn.Module):
    """Shared self-attention, cross-attention of the queries in some layers, two feed-forward networks."""

    def __init__(self, config: QFormerConfig, has_cross_attention: bool) -> None:
        super().__init__()
        self.self_attention = Attention(config, config.width)
        self.cross_attention = Attention(config, config.image_width) if has_cross_attention else None
        self.query_ffn = FeedForward(config)
        self.text_ffn = FeedForward(config) if config.vocab_size else None

    def feed_queries(self, queries: Tensor, memory: ImageMemory, index: int) -> Tensor:
        """Queries [B, Q, D] through cross-attention, if this layer has it (the `index`-th), and their own FFN."""
        if self.cross_attention is not None:
            # Queries of several texts on one image stand side by side, so that its keys are not copied for each.
            images = memory.batch
            beside = queries.reshape(images, queries[..., 0].numel() // max(1, images), queries.shape[-1])
            beside = self.cross_attention(beside, memory.keys[index], memory.values[index], memory.mask)
            queries = beside.view(queries.shape)
        fed: Tensor = self.query_ffn(queries)
        return fed

    def read_queries(self, queries: Tensor, key: Tensor, value: Tensor, memory: ImageMemory, index: int) -> Tensor:
        """Queries [B, Q, D] through the whole layer, given their own keys and values."""
        return self.feed_queries(self.self_attention(queries, key, value, None), memory, index)

    def feed_text(self, text: Tensor) -> Tensor:
        if self.text_ffn is None:
            raise ValueError("this Q-Former has no text side: load a stage-1 checkpoint to embed or match text")
        fed: Tensor = self.text_ffn(text)
        return fed


class QFormer(nn.Module):
    """Learnt queries that turn image features into a few vectors, and the text encoder beside them.

    Attributes:
        gradient_checkpointing: as of `VisionTransformer`, of the queries' pass over an image.
    """

    def __init__(self, config: QFormerConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.dropout = config.dropout
        self.queries = nn.Parameter(torch.zeros(1, config.num_queries, config.width))
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(
            QFormerLayer(config, has_cross_attention=index % config.cross_every == 0) for index in range(config.depth)
        )
        if config.vocab_size:
            self.words = WordTable(config.vocab_size, config.width)
            self.positions = nn.Embedding(config.max_positions, config.width)
            self.head = TextHead(config, config.vocab_size)
        nn.init.normal_(self.queries, std=0.02)

    def matching_side(self) -> list[nn.Module | nn.Parameter]:
        """What ITC and ITM go through: all but the head that writes."""
        return [self.queries, *(part for name, part in self.named_children() if name != "head")]

    def image_side(self) -> list[nn.Module | nn.Parameter]:
        """What queries go through: all that learns when there is no text, as in stage 2."""
        parts: list[nn.Module | nn.Parameter] = [self.queries, self.norm]
        for layer in self.blocks():
            parts += [layer.self_attention, layer.query_ffn]
            if layer.cross_attention is not None:
                parts.append(layer.cross_attention)
        return parts

    def remember(self, features: Tensor, image_mask: Tensor | None = None) -> ImageMemory:
        """Image features [B, N, image width] (mask [B, N]) to the keys and values that queries read."""
        layers = [layer.cross_attention for layer in self.blocks() if layer.cross_attention is not None]
        return remember(layers, features, image_mask)

    def image(self, image: Tensor | ImageMemory) -> Tensor:
        """Image features [B, N, image width], or what was remembered of them, to queries [B, Q, D]."""
        return self.read_image(image).output

    def read_image(self, image: Tensor | ImageMemory) -> QueryPass:
        """As `image`, keeping each layer's keys and values for `causal_text`."""
        memory = self._memory(image)
        queries = self._start_queries(memory.batch)
        keys, values = [], []
        for index, layer in enumerate(self.blocks()):
            key, value = layer.self_attention.keys_values(queries)
            keys.append(key)
            values.append(value)
            cross = index // self.config.cross_every
            queries = run_layer(
                layer, self.gradient_checkpointing, queries, key, value, memory, cross, call=layer.read_queries
            )
        return QueryPass(queries, tuple(keys), tuple(values))

    def text(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Text alone: ids [B, L] (mask [B, L], False or 0 for padding) to [B, L, D]."""
        x = self._embed_text(ids)
        key_mask = visible_keys(mask)
        for layer in self.blocks():
            x = layer.self_attention(x, *layer.self_attention.keys_values(x), key_mask)
            x = layer.feed_text(x)
        return x

    def joint(self, ids: Tensor, mask: Tensor | None, image: Tensor | ImageMemory) -> Tensor:
        """Queries and text that all see each other: [B, Q + L, D], the queries first.

        Texts may outnumber images: ids [I * S, L] hold S texts of the first of I images, then S of the second, ...
        """
        memory = self._memory(image)
        if ids.shape[0] % max(1, memory.batch):
            raise ValueError(f"{ids.shape[0]} texts cannot be shared out evenly among {memory.batch} images")
        count = self.config.num_queries
        x, key_mask = self.begin_joint(ids, mask)
        for index, layer in enumerate(self.blocks()):
            x = layer.self_attention(x, *layer.self_attention.keys_values(x), key_mask)
            queries = layer.feed_queries(x[:, :count], memory, index // self.config.cross_every)
            x = torch.cat([queries, layer.feed_text(x[:, count:])], dim=1)
        return x

    def begin_joint(self, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What enters the first layer of `joint` [B, Q + L, D], and the mask of what is visible there."""
        x = torch.cat([self._start_queries(ids.shape[0]), self._embed_text(ids)], dim=1)
        if mask is None:
            mask = torch.ones_like(ids, dtype=torch.bool)
        return x, visible_keys(torch.cat([mask.new_ones(mask.shape[0], self.config.num_queries), mask], dim=1))

    def causal_text(self, ids: Tensor, mask: Tensor | None, query_pass: QueryPass) -> Tensor:
        """Text that sees an image's queries and its own past: [B, L, D], for `text_logits`."""
        x = self._embed_text(ids)
        length, count = ids.shape[1], self.config.num_queries
        allowed = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()[None]
        if mask is not None:
            allowed = allowed & mask.bool()[:, None]
        allowed = F.pad(allowed, (count, 0), value=True)[:, None]
        for layer, past_keys, past_values in zip(self.blocks(), query_pass.keys, query_pass.values, strict=True):
            keys, values = layer.self_attention.keys_values(x)
            keys = torch.cat([past_keys, keys], dim=2)
            values = torch.cat([past_values, values], dim=2)
            x = layer.feed_text(layer.self_attention(x, keys, values, allowed))
        return x

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Next-word scores [B, L, vocabulary] of hidden text [B, L, D]."""
        self._require_text()
        logits: Tensor = self.head(hidden, self.words)
        return logits

    def blocks(self) -> list[QFormerLayer]:
        return cast("list[QFormerLayer]", list(self.layers))

    def _memory(self, image: Tensor | ImageMemory) -> ImageMemory:
        return image if isinstance(image, ImageMemory) else self.remember(image)

    def _start_queries(self, batch: int) -> Tensor:
        queries: Tensor = self.norm(self.queries).expand(batch, -1, -1)
        return F.dropout(queries, self.dropout, self.training)

    def _embed_text(self, ids: Tensor) -> Tensor:
        self._require_text()
        if ids.shape[1] > self.config.max_positions:
            raise ValueError(
                f"a text of {ids.shape[1]} tokens is longer than the Q-Former's {self.config.max_positions} positions"
            )
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.norm(self.words(ids) + self.positions(places))
        return F.dropout(x, self.dropout, self.training)

    def _require_text(self) -> None:
        if not self.config.vocab_size:
            raise ValueError("this Q-Former has no text side: load a stage-1 checkpoint to embed or match text")
