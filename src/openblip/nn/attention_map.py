"""Where a BLIP looks when it matches a text with an image: Grad-CAM of its cross-attention.

As in ALBEF and BLIP (https://arxiv.org/abs/2107.07651, section 6.3): what a word attends to, weighed by how much more
attention there would raise the score of the match.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openblip.nn.bert import Attention
from openblip.nn.blip import BlipNetwork

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
        query = cross.split(cross.query(x))
        scores = query @ memory.keys[index].transpose(-1, -2) / query.shape[-1] ** 0.5
        attention = scores.softmax(dim=-1).detach().requires_grad_()
        mixed = cross.out((attention @ memory.values[index]).transpose(1, 2).reshape(x.shape))
        x = block.ffn(cross.norm(x + mixed))
    score = network.itm_head(x[:, 0])[:, 1].sum()
    (gradient,) = torch.autograd.grad(score, attention)
    weighed = attention.detach() * gradient.clamp(min=0) * mask.bool()[:, None, :, None]
    return weighed[..., 1:].mean(dim=1)


def word_map(maps: Tensor, mask: Tensor) -> Tensor:
    """The mean over the words of each text: maps [B, L, patches], mask [B, L], to [B, patches]; no [ENC] and [SEP]."""
    words = mask.bool().clone()
    words[:, 0] = False
    last = mask.long().sum(dim=1, keepdim=True) - 1
    words = words.scatter(1, last, False)
    return (maps * words[:, :, None]).sum(dim=1) / words.sum(dim=1, keepdim=True).clamp(min=1)
