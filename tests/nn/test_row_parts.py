"""Rows that go through a layer some at a time give what all at once give, bit for bit where they are whole numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from openblip.nn import threads
from openblip.nn.quant.int8 import Int8Linear
from openblip.nn.threads import in_row_parts
from openblip.nn.vit import Mlp, VitConfig


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 40, 65])
def test_parts_are_in_order_and_none_is_lost(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "CACHED_ELEMENTS", 8 * 16)
    x, seen = torch.randn(1, rows, 5), list[int]()

    def run(part: Tensor) -> Tensor:
        seen.append(part.shape[-2])
        return part.repeat_interleave(2, dim=-1)

    with torch.inference_mode():
        found = in_row_parts(run, x, 16)
    assert torch.equal(found, x.repeat_interleave(2, dim=-1)) and sum(seen) == rows
    most = 8 * torch.get_num_threads()
    assert len(seen) == -(-rows // most) and max(seen) - min(seen) < most
    seen.clear()
    in_row_parts(run, x, 16)  # gradients may be wanted
    assert seen == [rows]


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_layers_of_8_bits_do_not_change(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    mlp = Mlp(VitConfig(28, 14, 64, 1, 2, 160, activation=activation)).eval()  # type: ignore[arg-type]
    for name in ("fc1", "fc2"):
        plain = getattr(mlp, name)
        layer = Int8Linear(plain.in_features, plain.out_features)
        layer.take(plain.weight.detach())
        layer.bias = plain.bias
        setattr(mlp, name, layer)
    x = torch.randn(3, 50, 64)
    with torch.inference_mode():
        whole = mlp(x)
        monkeypatch.setattr(threads, "CACHED_ELEMENTS", 12 * 160)
        assert torch.equal(mlp(x), whole)
