"""Layers that hold several projections in one matrix, opened so that each can be changed by itself.

Queries, keys and values are one product here and three layers elsewhere. An adapter that was trained there, or is to
be understood there, stands on one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from openblip.nn.quant.linear import linear


class Rows(Tensor):
    """Some rows of a matrix; data that is put in their place goes into the matrix."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @property
    def data(self) -> Tensor:
        return super().data

    @data.setter
    def data(self, rows: Tensor) -> None:
        with torch.no_grad():
            self.copy_(rows)


class Part(nn.Linear):
    """One projection of a joined layer: rows of the layer's weights, and none of its own.

    It passes on its piece of what the layer computed; what takes its place may add to that.
    """

    whole: Any

    def __init__(self, whole: Any, index: int, count: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = whole.in_features, whole.out_features // count
        self.index, self.count = index, count
        # Not a child of its child.
        object.__setattr__(self, "whole", whole)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """Its rows [out, in]; of a quantized layer the codes."""
        rows: Tensor = self.whole.weight.chunk(self.count)[self.index]
        return rows.as_subclass(Rows)

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        bias = self.whole.bias
        return None if bias is None else bias.chunk(self.count)[self.index]

    def forward(self, x: Tensor, piece: Tensor) -> Tensor:  # type: ignore[override]
        """Input [..., in] of the layer and the piece [..., out] of its output."""
        return piece


class Opened(nn.Module):
    """A linear layer whose parts can be replaced; its own weights keep their names.

    It is no `nn.Linear`, so that whoever looks for those finds its parts instead.
    """

    bias: nn.Parameter | None
    rows: tuple[str, ...] = ()
    """Names of its parts, in the order of the rows."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight = layer.weight
        self.register_parameter("bias", layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return _through_parts(self, x, linear(x, self.weight, self.bias))


def open_layer(parent: nn.Module, name: str, parts: Sequence[str], order: Sequence[str] = ()) -> None:
    """Give the layer `name` of a module a child for each of its parts, which are of equal height; in place.

    Args:
        parts: names of the children, in the order of the rows; none leaves a layer that is no `nn.Linear` any more.
        order: the same names as the children are to follow each other; by default that of the rows.
    """
    layer: Any = getattr(parent, name)
    if isinstance(layer, nn.Linear):
        layer = Opened(layer)
        setattr(parent, name, layer)
    else:  # quantized, with a forward pass of its own
        layer.register_forward_hook(_hook)
    layer.rows = tuple(parts)
    for part in order or parts:
        layer.add_module(part, Part(layer, parts.index(part), len(parts)))


def _hook(layer: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> Tensor:
    return _through_parts(layer, inputs[0], y)


def _through_parts(layer: Any, x: Tensor, y: Tensor) -> Tensor:
    parts = [layer.get_submodule(name) for name in layer.rows]
    if all(type(part) is Part for part in parts):
        return y
    return torch.cat([part(x, piece) for part, piece in zip(parts, y.chunk(len(parts), dim=-1), strict=True)], dim=-1)
