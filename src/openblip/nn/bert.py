"""BERT (Devlin et al. 2019, https://arxiv.org/abs/1810.04805) whose layers may read images by cross-attention.

BLIP's text encoder and decoder (https://arxiv.org/abs/2201.12086) are this BERT; BLIP-2's Q-Former is made of the same
attention and feed-forward network. Layers are post-norm: each part's output is added to its input and normalized.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.nn.config_checks import SettingError, check_heads, check_settings
from openblip.nn.quant.int8 import project
from openblip.nn.quant.linear import Linear, WordTable
from openblip.nn.recompute import run_layer


class AttentionSizes(Protocol):
    """What BERT's parts need of the sizes of the model that they belong to."""

    @property
    def width(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def ffn_width(self) -> int: ...
    @property
    def layer_norm_eps(self) -> float: ...
    @property
    def dropout(self) -> float: ...


@dataclass(frozen=True)
class BertConfig:
    """Sizes of a BERT.

    Attributes:
        image_width: width of the features that every layer's cross-attention reads; None leaves cross-attention out.
        images: how many images a text is read with: 2 for NLVR, where each layer has a cross-attention for each image.
        merge_from: with two images, the first layer that merges what it reads of both by a learned projection; earlier
            layers take the mean.
    """

    vocab_size: int = 30524
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    ffn_width: int = 3072
    image_width: int | None = 768
    images: int = 1
    merge_from: int = 6
    max_positions: int = 512
    layer_norm_eps: float = 1e-12
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_settings(self)
        check_heads("BERT", self.width, self.num_heads)
        if self.images == 2 and self.image_width is None:
            raise ValueError("a BERT without image_width reads no images, not 2")
        if self.images > 2:
            raise SettingError("images", f"is {self.images}: a text is read with one image or two")

    def build(self) -> Bert:
        return Bert(self)


@dataclass(frozen=True)
class ImageMemory:
    """What cross-attention needs of images: computed once, read by any number of passes over them.

    Attributes:
        keys, values: per layer with cross-attention [B, heads, N, head width].
        mask: [B, 1, 1, N] bool, False for padding; None when there is none.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor | None = None

    @property
    def batch(self) -> int:
        return self.keys[0].shape[0]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def take(self, rows: Tensor) -> ImageMemory:
        """The memory of some of the images, in another order or repeated: rows [R] int64."""
        return ImageMemory(
            tuple(keys[rows] for keys in self.keys),
            tuple(values[rows] for values in self.values),
            None if self.mask is None else self.mask[rows],
        )

    @classmethod
    def join(cls, memories: Sequence[ImageMemory]) -> ImageMemory:
        """The memories of several batches of images without padding, as one of all of them."""
        if any(memory.mask is not None for memory in memories):
            raise ValueError("memories with padding cannot be joined")
        return cls(
            tuple(torch.cat(keys) for keys in zip(*(memory.keys for memory in memories), strict=True)),
            tuple(torch.cat(values) for values in zip(*(memory.values for memory in memories), strict=True)),
        )


class Projections(nn.Module):
    """Multi-head attention up to its output projection; keys and values may come from elsewhere."""

    def __init__(self, config: AttentionSizes, source_width: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.query = Linear(config.width, config.width)
        self.key = Linear(source_width, config.width)
        self.value = Linear(source_width, config.width)
        self.out = Linear(config.width, config.width)

    def split(self, x: Tensor) -> Tensor:
        """[B, T, D] to [B, heads, T, head width]."""
        return x.view(*x.shape[:2], self.num_heads, x.shape[2] // self.num_heads).transpose(1, 2)

    def keys_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        key, value = project(source, (self.key, self.value))
        return self.split(key), self.split(value)

    def query_key_value(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All of what x [B, T, D] needs to attend to itself, each [B, heads, T, head width]."""
        query, key, value = project(x, (self.query, self.key, self.value))
        return self.split(query), self.split(key), self.split(value)

    def mix(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, query: Tensor | None = None) -> Tensor:
        """What x [B, T, D] attends to, projected: [B, T, D].

        Args:
            query: of x, where `query_key_value` gave it.
        """
        mixed = F.scaled_dot_product_attention(
            self.split(self.query(x)) if query is None else query,
            keys,
            values,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
        )
        projected: Tensor = self.out(mixed.transpose(1, 2).reshape(x.shape))
        return projected


class Attention(Projections):
    """Multi-head attention with BERT's residual and post-norm."""

    def __init__(self, config: AttentionSizes, source_width: int) -> None:
        super().__init__(config, source_width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, query: Tensor | None = None
    ) -> Tensor:
        mixed = self.mix(x, keys, values, mask, query)
        normed: Tensor = self.norm(x + F.dropout(mixed, self.dropout, self.training))
        return normed


class PairAttention(nn.Module):
    """Attention to two images at once, by projections of their own (NLVR), with one residual and post-norm."""

    def __init__(self, config: AttentionSizes, image_width: int, merges: bool) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.first = Projections(config, image_width)
        self.second = Projections(config, image_width)
        self.merge = Linear(2 * config.width, config.width) if merges else None
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, memories: Sequence[ImageMemory], index: int) -> Tensor:
        mixed = [
            one.mix(x, memory.keys[index], memory.values[index], memory.mask)
            for one, memory in zip((self.first, self.second), memories, strict=True)
        ]
        both = torch.stack(mixed).mean(dim=0) if self.merge is None else self.merge(torch.cat(mixed, dim=-1))
        normed: Tensor = self.norm(x + F.dropout(both, self.dropout, self.training))
        return normed


class FeedForward(nn.Module):
    """BERT's feed-forward network (exact gelu) with residual and post-norm."""

    def __init__(self, config: AttentionSizes) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.fc1 = Linear(config.width, config.ffn_width)
        self.fc2 = Linear(config.ffn_width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc2(F.gelu(self.fc1(x)))
        normed: Tensor = self.norm(x + F.dropout(hidden, self.dropout, self.training))
        return normed


class TextHead(nn.Module):
    """BERT's masked-language-model head, used causally; its output table is tied to the embeddings."""

    def __init__(self, config: AttentionSizes, vocab_size: int) -> None:
        super().__init__()
        self.dense = Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, hidden: Tensor, words: WordTable) -> Tensor:
        return words.scores(self.norm(F.gelu(self.dense(hidden))), self.bias)


class BertLayer(nn.Module):
    """Self-attention, cross-attention where there are images, a feed-forward network.

    Args:
        index: of the layer in its BERT.
        shared: another BERT's layer, whose cross-attention and feed-forward network this one has, too.
    """

    def __init__(self, config: BertConfig, index: int, shared: BertLayer | None = None) -> None:
        super().__init__()
        self.self_attention = Attention(config, config.width)
        # In a tuple it is no submodule: each weight has one name.
        self._shared = None if shared is None else (shared,)
        if shared is not None:
            return
        self.cross_attention: Attention | PairAttention | None = None
        if config.image_width is not None:
            if config.images == 2:
                self.cross_attention = PairAttention(config, config.image_width, merges=index >= config.merge_from)
            else:
                self.cross_attention = Attention(config, config.image_width)
        self.ffn = FeedForward(config)

    def look(self, x: Tensor, memories: Sequence[ImageMemory], index: int) -> Tensor:
        """Text [B, T, D] behind self-attention through the rest of the layer, the `index`-th.

        Args:
            memories: of one image a text, or of one for several texts that follow one another; for NLVR of two images
                each; empty for text alone.
        """
        if self._shared is not None:
            return self._shared[0].look(x, memories, index)
        if memories and self.cross_attention is not None:
            memory = memories[0]
            # Texts on one image stand side by side, so that its keys are not copied for each.
            beside = x.reshape(memory.batch, x[..., 0].numel() // max(1, memory.batch), x.shape[-1])
            if isinstance(self.cross_attention, PairAttention):
                beside = self.cross_attention(beside, memories, index)
            else:
                beside = self.cross_attention(beside, memory.keys[index], memory.values[index], memory.mask)
            x = beside.view(x.shape)
        fed: Tensor = self.ffn(x)
        return fed

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        memories: Sequence[ImageMemory],
        index: int,
        queries: int | None = None,
    ) -> Tensor:
        """Text [B, T, D] through the layer; of the first `queries` tokens only, where the others are not wanted."""
        attention = self.self_attention
        if queries is None:
            query, keys, values = attention.query_key_value(x)
            return self.look(attention(x, keys, values, mask, query), memories, index)
        return self.look(attention(x[:, :queries], *attention.keys_values(x), mask), memories, index)


class Bert(nn.Module):
    """A text encoder, which reads texts alone or together with images.

    Args:
        shared: another BERT of these sizes, whose weights this one has, too, apart from self-attention (BLIP's
            pre-training).

    Attributes:
        gradient_checkpointing: as of `VisionTransformer`.
    """

    def __init__(self, config: BertConfig, shared: Bert | None = None) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.dropout = config.dropout
        self._shared = None if shared is None else (shared,)
        others: list[BertLayer | None] = [None] * config.depth if shared is None else [*shared.blocks()]
        if shared is None:
            self.words = WordTable(config.vocab_size, config.width)
            self.positions = nn.Embedding(config.max_positions, config.width)
            self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(BertLayer(config, index, other) for index, other in enumerate(others))

    @property
    def owner(self) -> Bert:
        """The BERT that embeddings, cross-attention and feed-forward networks belong to: itself, or the other one."""
        return self if self._shared is None else self._shared[0]

    def blocks(self) -> list[BertLayer]:
        return cast("list[BertLayer]", list(self.layers))

    def remember(self, features: Tensor, image_mask: Tensor | None = None) -> ImageMemory:
        """What cross-attention reads [B, N, image width] (mask [B, N]), to its keys and values.

        Raises:
            ValueError: it reads two images, see `remember_pair`, or none.
        """
        layers = [layer.cross_attention for layer in self.owner.blocks()]
        return remember(cast("list[Projections]", layers), features, image_mask)

    def remember_pair(self, first: Tensor, second: Tensor) -> tuple[ImageMemory, ImageMemory]:
        """Likewise for the features of two images a text (NLVR)."""
        layers = [cast(PairAttention, layer.cross_attention) for layer in self.blocks()]
        return remember([layer.first for layer in layers], first), remember([layer.second for layer in layers], second)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [...] to embeddings [..., width], without positions."""
        embedded: Tensor = self.owner.words(ids)
        return embedded

    def forward(
        self, ids: Tensor, mask: Tensor | None = None, *memories: ImageMemory, queries: int | None = None
    ) -> Tensor:
        """Texts, alone or with images: ids [B, L] (mask [B, L], False or 0 for padding) to [B, L, D].

        Texts may outnumber images: ids [I * S, L] hold S texts of the first of I images, then S of the second, ...

        Args:
            queries: how many tokens' states are wanted, from the first: the last layer computes no others; None for
                all.

        Raises:
            ValueError: a text has more tokens than there are positions, or texts cannot be shared out among images.
        """
        return self.encode(self.embed(ids), mask, *memories, queries=queries)

    def encode(
        self, embeds: Tensor, mask: Tensor | None = None, *memories: ImageMemory, queries: int | None = None
    ) -> Tensor:
        """As `forward`, of embeddings [B, L, width] with padding in front or behind."""
        if memories and embeds.shape[0] % max(1, memories[0].batch):
            raise ValueError(f"{embeds.shape[0]} texts cannot be shared out evenly among {memories[0].batch} images")
        self.check_positions(embeds.shape[1])
        x = self.place(embeds, token_positions(embeds, mask))
        visible = visible_keys(mask)
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            wanted = queries if index == last else None
            x = run_layer(layer, self.gradient_checkpointing, x, visible, memories, index, wanted)
        return x

    def check_positions(self, count: int) -> None:
        """Raises ValueError when a text of so many tokens is longer than the position table."""
        if count > self.config.max_positions:
            raise ValueError(
                f"a text of {count} tokens is longer than the {self.config.max_positions} positions of BERT"
            )

    def place(self, embeds: Tensor, positions: Tensor) -> Tensor:
        """Embeddings [B, L, width] at their positions [B or 1, L], normalized: what enters the first layer."""
        owner = self.owner
        return F.dropout(owner.norm(embeds + owner.positions(positions)), self.dropout, self.training)


def token_positions(embeds: Tensor, mask: Tensor | None) -> Tensor:
    """[1, L], or [B, L] positions of which the first token of each text that is no padding has 0."""
    positions = torch.arange(embeds.shape[1], device=embeds.device)[None]
    return positions if mask is None else (positions - mask.byte().argmax(dim=1, keepdim=True)).clamp(min=0)


def remember(layers: Sequence[Projections], features: Tensor, image_mask: Tensor | None = None) -> ImageMemory:
    """Keys and values of image features [B, N, image width] (mask [B, N]) for some cross-attentions."""
    found = project(features, [part for layer in layers for part in (layer.key, layer.value)])
    split = [layers[place // 2].split(one) for place, one in enumerate(found)]
    return ImageMemory(tuple(split[::2]), tuple(split[1::2]), visible_keys(image_mask))


def visible_keys(mask: Tensor | None) -> Tensor | None:
    """[B, T] (1 = visible) to [B, 1, 1, T] bool for attention, or None."""
    return None if mask is None else mask.bool()[:, None, None]
