"""Linear layers, word tables and convolutions in floating point, through the CPU's fastest library for each.

A CPU that does not compute a half type by itself gets its products and convolutions in float32: oneDNN refuses them,
and PyTorch's own take 4 to 100 times as long. Weights stay in the half type, which is what saves memory.
"""

from __future__ import annotations

import platform
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HALF_TYPES = (torch.bfloat16, torch.float16)
WORTH_IT = 500_000
"""Weights of a matrix from which oneDNN's product is never slower than the one PyTorch takes by itself."""
FEW_ROWS, MANY_ROWS = 3, 512
WIDENED = 750_000
"""Weights in a half type that become float32 at a time: few enough to stay in the processor's cache."""


@cache
def has_onednn() -> bool:
    """Whether this PyTorch brings oneDNN along."""
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def mkl_leads(rows: int) -> bool:
    """Whether Intel's MKL multiplies so many rows faster than oneDNN: up to `FEW_ROWS` and from `MANY_ROWS` on, on
    Intel's CPUs.

    There it takes 0.6 to 0.9 of the time for up to 3 rows (about the same without AVX-512), 0.7 for the 577 of an image
    of 384 pixels and 0.8 for 901, whose last rows fill no block of oneDNN's. The maker decides, not a measurement:
    results are the same each time.
    """
    return (rows <= FEW_ROWS or rows >= MANY_ROWS) and _mkl_on_intel()


@cache
def _mkl_on_intel() -> bool:
    return bool(torch.backends.mkl.is_available()) and _is_intel()  # type: ignore[no-untyped-call]


def _is_intel() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            return any(line.startswith("vendor_id") and "GenuineIntel" in line for line in lines)
    except OSError:  # no Linux
        return "GenuineIntel" in platform.processor()


@cache
def cpu_computes(dtype: torch.dtype) -> bool:
    """Whether this CPU multiplies and convolves a type by itself: for the half types tried out, once.

    bfloat16 needs AVX-512 or AVX-NE-CONVERT on x86, float16 the half-precision instructions beside them.
    """
    if dtype not in HALF_TYPES:
        return True
    if not has_onednn():
        return False
    x, weight = torch.ones(4, 32, dtype=dtype), torch.ones(32, 32, dtype=dtype)
    try:
        with torch.inference_mode():
            torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
            image, kernel = x.view(1, 32, 2, 2), weight.view(32, 32, 1, 1)
            torch.ops.mkldnn._convolution_pointwise(image, kernel, None, [0, 0], [1, 1], [1, 1], 1, "none", [], "")
    except (AttributeError, RuntimeError):
        return False
    return True


def computed_type(x: Tensor) -> torch.dtype:
    """What a product or a convolution of `x` is computed in: its own type, or float32 where the CPU has no such one.

    Under autocast PyTorch chooses the type.
    """
    if x.device.type != "cpu" or cpu_computes(x.dtype) or torch.is_autocast_enabled("cpu"):
        return x.dtype
    return torch.float32


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] @ weight [out, in].T + bias [out].

    PyTorch sends float32 products on the CPU to Intel's MKL. On AMD's CPUs oneDNN, which it brings along, makes the
    same product 2 to 3 times as fast, within rounding; on Intel's it depends, see `mkl_leads`. It knows no gradients.
    """
    if computed_type(x) != x.dtype:
        return _in_float32(x, weight, bias)
    if (
        torch.is_inference_mode_enabled()
        and weight.numel() >= WORTH_IT
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and has_onednn()
        and not mkl_leads(x.numel() // x.shape[-1])
        and not torch.is_autocast_enabled("cpu")
    ):
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return F.linear(x, weight, bias)


def _in_float32(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same, of a half type."""
    wide = x.float()
    if torch.is_inference_mode_enabled():
        # A whole matrix in float32 would be written to memory and read again: three times the work of one row.
        parts = torch.split(weight, max(1, WIDENED // weight.shape[1]))
        y = torch.cat([F.linear(wide, part.float()) for part in parts], dim=-1)
    else:
        y = F.linear(wide, weight.float())
    return (y if bias is None else y + bias.float()).to(x.dtype)


class Linear(nn.Linear):
    """As PyTorch's, see `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Conv2d(nn.Conv2d):
    """As PyTorch's, in float32 where the CPU does not compute the half type that it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(x, self.padding)

    def convolve(self, x: Tensor, padding: str | int | tuple[int, ...]) -> Tensor:
        """Images [B, C, H, W], to be padded so."""
        wanted, weight, bias = computed_type(x), self.weight, self.bias
        if wanted == x.dtype:
            return F.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)
        weight, bias = weight.to(wanted), None if bias is None else bias.to(wanted)
        return F.conv2d(x.to(wanted), weight, bias, self.stride, padding, self.dilation, self.groups).to(x.dtype)


class WordTable(nn.Embedding):
    """One vector a word, and the scores of all words that some vectors give."""

    def scores(self, hidden: Tensor, bias: Tensor | None = None) -> Tensor:
        """Dot products [..., words] of hidden [..., width] with every word's vector, plus bias [words]."""
        return linear(hidden, self.weight, bias)
