"""Where a BLIP or a BLIP-2 looks when it matches a text with an image: Grad-CAM of its cross-attention.

As in ALBEF and BLIP (https://arxiv.org/abs/2107.07651, section 6.3): what a word attends to, weighed by how much more
attention there would raise the score of the match. In BLIP-2 the queries attend to the image, and words to the queries.
"""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from openblip.nn.bert import Attention

if TYPE_CHECKING:  # of two families, one of which nobody may load
    from openblip.nn.blip import BlipNetwork
    from openblip.nn.blip2 import Blip2Network

LAYER = 7
"""The layer of the text encoder whose attention is shown, counted from 0: of 12, what BLIP's authors show."""


@torch.enable_grad()
def match_map(network: BlipNetwork, ids: Tensor, mask: Tensor, features: Tensor, layer: int = LAYER) -> Tensor:
    """How much each token's attention to each patch speaks for a match: [B, L, patches], 0 or more.

    Args:
        ids, mask: of texts [B, L], which begin with [CLS] and have padding behind.
        features: of an image a text [B, 1 + patches, image width], the class token's first.

    Raises:
        ValueError: there is no such layer.
    """
    encoder = network.encoder
    blocks = encoder.blocks()
    if not 0 <= layer < len(blocks):
        raise ValueError(f"the text encoder has {len(blocks)} layers, counted from 0: there is no layer {layer}")
    # What was computed in inference mode has no gradients; its copy may.
    memory = encoder.remember(features.detach().clone())
    ids, mask = ids.clone(), mask.clone()
    x = encoder.place(
        encoder.embed(network.begin_with_encode(ids)), torch.arange(ids.shape[1], device=ids.device)[None]
    )
    visible = mask.bool()[:, None, None]
    attention = x
    for index, block in enumerate(blocks):
        if index != layer:
            x = block(x, visible, (memory,), index)
            continue
        x = block.self_attention(x, *block.self_attention.keys_values(x), visible)
        cross = block.cross_attention
        assert isinstance(cross, Attention)  # as every BLIP that matches has
        x, attention = _attend(cross, x, memory.keys[index], memory.values[index])
        x = block.ffn(x)
    score = network.itm_head(x[:, 0])[:, 1].sum()
    weighed = _weigh(attention, score) * mask.bool()[:, None, :, None]
    return weighed[..., 1:].mean(dim=1)


@torch.enable_grad()
def query_map(network: Blip2Network, ids: Tensor, mask: Tensor, features: Tensor, layer: int | None = None) -> Tensor:
    """How much the queries' attention to each patch speaks for a match, the mean over queries: [B, patches], 0 or more.

    Args:
        ids, mask: of texts [B, L], which begin with [CLS] and have padding behind.
        features: of an image a text [B, N, image width]: a square grid of patches, or a class token's in front of one.
        layer: of the Q-Former, counted from 0, one in which queries read the image; by default the last of these that
            a text reaches.

    Raises:
        ValueError: there is no such layer, or queries do not read the image there.
    """
    qformer = network.qformer
    blocks = qformer.blocks()
    reading = [index for index, block in enumerate(blocks) if block.cross_attention is not None]
    chosen = reading[-1] if layer is None else layer
    if chosen not in reading:
        places = ", ".join(map(str, reading))
        raise ValueError(f"the Q-Former's queries read the image in layers {places}, not in {chosen}")
    memory = qformer.remember(features.detach().clone())
    x, visible = qformer.begin_joint(ids.clone(), mask.clone())
    count = qformer.config.num_queries
    attention = x
    for index, block in enumerate(blocks):
        x = block.self_attention(x, *block.self_attention.keys_values(x), visible)
        queries, place = x[:, :count], index // qformer.config.cross_every
        if index == chosen:
            assert block.cross_attention is not None
            queries, attention = _attend(block.cross_attention, queries, memory.keys[place], memory.values[place])
            queries = block.query_ffn(queries)
        else:
            queries = block.feed_queries(queries, memory, place)
        x = torch.cat([queries, block.feed_text(x[:, count:])], dim=1)
    score = network.itm_head(x[:, :count]).mean(dim=1)[:, 1].sum()
    maps = _weigh(attention, score).mean(dim=(1, 2))
    return maps[:, maps.shape[1] - isqrt(maps.shape[1]) ** 2 :]


def _attend(cross: Attention, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """What `cross` makes of x [B, T, D], and its attention [B, heads, T, N], where gradients end."""
    query = cross.split(cross.query(x))
    scores = query @ keys.transpose(-1, -2) / query.shape[-1] ** 0.5
    attention = scores.softmax(dim=-1).detach().requires_grad_()
    mixed = cross.out((attention @ values).transpose(1, 2).reshape(x.shape))
    normed: Tensor = cross.norm(x + mixed)
    return normed, attention


def _weigh(attention: Tensor, score: Tensor) -> Tensor:
    """Attention times its positive gradient of a score."""
    (gradient,) = torch.autograd.grad(score, attention)
    return attention.detach() * gradient.clamp(min=0)


def word_map(maps: Tensor, mask: Tensor) -> Tensor:
    """The mean over the words of each text: maps [B, L, patches], mask [B, L], to [B, patches]; no [ENC] and [SEP]."""
    words = mask.bool().clone()
    words[:, 0] = False
    last = mask.long().sum(dim=1, keepdim=True) - 1
    words = words.scatter(1, last, False)
    return (maps * words[:, :, None]).sum(dim=1) / words.sum(dim=1, keepdim=True).clamp(min=1)
