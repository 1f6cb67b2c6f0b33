"""Which layers of a BLIP-2 are quantized, and how they are swapped in before there are weights."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import nn

from openblip.nn.memory import give_back
from openblip.nn.quant.int4 import GROUP, OUTPUTS, Int4Linear
from openblip.nn.quant.int4_wide import Int4WideLinear
from openblip.nn.quant.int8 import Int8Linear, Int8WordTable
from openblip.nn.quant.linear import Linear, WordTable

BITS = (8, 4)
MIN_ELEMENTS = 16_384
"""Smaller matrices are not worth quantizing."""

QuantizedLinear: TypeAlias = Int8Linear | Int4Linear | Int4WideLinear
Quantized: TypeAlias = QuantizedLinear | Int8WordTable
IN_4_BITS = ("decoder.layers.", "t5.encoder.", "t5.decoder.")
"""Beginnings of names of what may have 4 bits: most of the weights, and what is read for every token."""
WIDE_IN_4_BITS = ("vision.blocks.", "text.blocks.")
"""Of what may have 4 bits, and is computed in 8: other large parts, which see all patches of an image, or all words of
a text, at a time."""


def swap_layers(network: nn.Module, bits: int) -> None:
    """Replace large linear layers and word tables by quantized ones without weights, on the device they are on.

    What the last steps of matching and of the visual prompt are made with stays in floating point: it is small, and
    everything behind it would feel its rounding. A language model that is external is none of ours.

    Args:
        bits: 8; or 4, for the layers of the language model and of the image encoder, the rest then having 8: the word
            table, which chooses the words, and the Q-Former, which is small.
    """
    for path, parent in list(network.named_modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, Linear | WordTable) or child.weight.numel() < MIN_ELEMENTS:
                continue
            with child.weight.device:
                swapped: Quantized
                if isinstance(child, WordTable):
                    swapped = Int8WordTable(child.num_embeddings, child.embedding_dim)
                elif (
                    bits == 4
                    and path.startswith(IN_4_BITS)
                    and not (child.in_features % GROUP or child.out_features % OUTPUTS)
                ):
                    swapped = Int4Linear(child.in_features, child.out_features, child.bias is not None)
                elif bits == 4 and path.startswith(WIDE_IN_4_BITS) and not child.in_features % GROUP:
                    swapped = Int4WideLinear(child.in_features, child.out_features, child.bias is not None)
                else:
                    swapped = Int8Linear(child.in_features, child.out_features, child.bias is not None)
            setattr(parent, name, swapped)


def quantized_layers(network: nn.Module) -> dict[str, Quantized]:
    """By their names."""
    return {name: module for name, module in network.named_modules() if isinstance(module, Quantized)}


@torch.no_grad()
def quantize(network: nn.Module, bits: int) -> None:
    """Quantize a network that has its weights, in place."""
    old = {name: module for name, module in network.named_modules() if isinstance(module, Linear | WordTable)}
    swap_layers(network, bits)
    for name, layer in quantized_layers(network).items():
        if name not in old:
            continue  # it was quantized before
        layer.take(old[name].weight.detach())
        if not isinstance(layer, Int8WordTable):
            bias = getattr(old[name], "bias", None)
            layer.bias = bias if isinstance(bias, nn.Parameter) else None


def prepare_layers(network: nn.Module) -> None:
    """Bring 4-bit weights into the order in which this machine reads them; 8-bit ones follow once it is worth it."""
    layers = [layer for layer in quantized_layers(network).values() if isinstance(layer, Int4Linear)]
    for layer in layers:
        layer.pack()
    if layers:
        give_back()
