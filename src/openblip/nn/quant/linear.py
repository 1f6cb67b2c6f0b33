"""Linear layers and word tables in floating point, through the CPU's faster library where there are two."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WORTH_IT = 500_000
"""Weights of a matrix from which oneDNN's product is never slower than the one PyTorch takes by itself."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] @ weight [out, in].T + bias [out].

    PyTorch sends float32 products on the CPU to Intel's MKL. oneDNN, which it brings along, makes the same product
    2 to 3 times as fast for few rows, and on AMD for many, within rounding; it knows no gradients.
    """
    if (
        torch.is_inference_mode_enabled()
        and weight.numel() >= WORTH_IT
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and has_onednn()
        and not torch.is_autocast_enabled("cpu")
    ):
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return F.linear(x, weight, bias)


@cache
def has_onednn() -> bool:
    """Whether this PyTorch brings oneDNN along."""
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


class Linear(nn.Linear):
    """As PyTorch's, see `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class WordTable(nn.Embedding):
    """One vector a word, and the scores of all words that some vectors give."""

    def scores(self, hidden: Tensor, bias: Tensor | None = None) -> Tensor:
        """Dot products [..., words] of hidden [..., width] with every word's vector, plus bias [words]."""
        return linear(hidden, self.weight, bias)
