"""Joined layers, opened: the same until a part is replaced, and then that part alone changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from openblip.nn.quant.int8 import Int8Linear
from openblip.nn.quant.linear import Linear
from openblip.nn.split_linear import Part, open_layer


class Twice(nn.Module):
    """Stands in a part's place and doubles its piece."""

    def forward(self, x: Tensor, piece: Tensor) -> Tensor:
        assert x.shape[-1] == 6
        return 2 * piece


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_parts(quantized: bool, bias: bool) -> None:
    torch.manual_seed(0)
    layer: nn.Module = Linear(6, 12, bias=bias)
    if quantized:
        plain, layer = layer, Int8Linear(6, 12, bias)
        layer.take(plain.weight.detach())
        layer.bias = plain.bias if plain.bias is None else nn.Parameter(plain.bias.detach(), requires_grad=False)
    parent = nn.ModuleDict({"layer": layer})
    names = list(parent.state_dict())
    x = torch.randn(2, 5, 6)
    with torch.no_grad():
        before = layer(x)
        open_layer(parent, "layer", ("q", "k", "v"))
        assert torch.equal(parent["layer"](x), before) and list(parent.state_dict()) == names
        opened = copy.deepcopy(parent)["layer"]
        opened.k = Twice()
        factors = torch.tensor([1.0, 2.0, 1.0]).repeat_interleave(4)
        assert torch.equal(opened(x), before * factors)
        assert torch.equal(parent["layer"](x), before)
    part = parent["layer"].v
    assert isinstance(part, Part) and (part.in_features, part.out_features) == (6, 4)
    assert torch.equal(part.weight, parent["layer"].weight[8:])
    if not quantized:
        part.weight.data += 1
        part.weight.data = part.weight.data.clone() + 1
        assert torch.allclose(parent["layer"](x)[..., 8:] - before[..., 8:], 2 * x.sum(dim=-1, keepdim=True), atol=1e-5)
    assert part.bias is None if not bias else torch.equal(part.bias, parent["layer"].bias[8:])


def test_a_layer_of_no_parts_is_hidden() -> None:
    parent = nn.Sequential(nn.Linear(3, 2))
    x = torch.randn(4, 3)
    before = parent(x)
    open_layer(parent, "0", ())
    assert torch.equal(parent(x), before) and not any(isinstance(module, nn.Linear) for module in parent.modules())
