"""Products in floating point: the same within rounding, whichever library makes them."""

from __future__ import annotations

import platform
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from openblip.nn.quant import linear as module
from openblip.nn.quant.linear import FEW_ROWS, MANY_ROWS, WORTH_IT, has_onednn, linear


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Names of what PyTorch is asked for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1, MANY_ROWS - 1, MANY_ROWS])
@pytest.mark.parametrize("intel", [True, False])
def test_either_library_gives_the_product(rows: int, intel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_mkl_on_intel", lambda: intel)
    torch.manual_seed(rows)
    x, weight, bias = torch.randn(rows, 500), torch.randn(WORTH_IT // 500, 500), torch.randn(WORTH_IT // 500)
    with torch.inference_mode(), Operations() as asked:
        found = linear(x[None], weight, bias)[0]
    expected = F.linear(x.double(), weight.double(), bias.double())
    assert (found - expected).abs().max() <= 5e-4  # of sums of 500 products of up to 100 together
    fused = any("_linear_pointwise" in name for name in asked.names)
    assert fused is (has_onednn() and not (intel and not FEW_ROWS < rows < MANY_ROWS))


@pytest.mark.parametrize(("maker", "expected"), [("GenuineIntel", True), ("AuthenticAMD", False)])
def test_the_maker_of_the_cpu_decides(maker: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", missing)  # as where /proc is not there
    monkeypatch.setattr(platform, "processor", lambda: f"Family 6 Model 143, {maker}")
    assert module._is_intel() is expected
