"""Linear layers with 4-bit weights that are multiplied as 8-bit ones: small, and nearly as fast as those.

For layers that see hundreds of rows at a time, as an image encoder's do: unpacking a matrix is little work beside such
a product. Every `GROUP` weights of a row share a step and a base that are whole numbers of the row's scale, so that a
weight, code * step + base, is one from -128 to 127, and the product that of `int8.py`, exact.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from openblip.nn.quant.int4 import CHUNK_ELEMENTS, CODES, GROUP
from openblip.nn.quant.int8 import float_product, plain_product, scaled
from openblip.nn.quant.int8_packing import LEVELS, TINY, Rows, input_levels

WIDEST_STEP = 17
"""Of which 15 span all whole numbers of 8 bits."""


def quantize_wide(*pieces: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix [out, in] of any floating type, `in` a multiple of `GROUP`, to codes, scales and steps.

    Args:
        pieces: of the matrix, from top to bottom.

    Returns:
        uint8 [in / 2, out], codes of the first half of the inputs in the low halves of the bytes; float32 [out]; int8
        [2, in / GROUP, 1, out], steps and then bases.

    Raises:
        ValueError: a weight is not finite.
    """
    height, width, device = sum(map(len, pieces)), pieces[0].shape[1], pieces[0].device
    codes = torch.empty(width // 2, height, dtype=torch.uint8, device=device)
    scales = torch.empty(height, device=device)
    steps = torch.empty(2, width // GROUP, 1, height, dtype=torch.int8, device=device)
    rows = max(1, CHUNK_ELEMENTS // width)
    start = 0
    for part in (part for piece in pieces for part in torch.split(piece, rows)):
        end = start + len(part)
        values = part.to(torch.float32, copy=True)
        scale = torch.maximum(values.amax(dim=1), values.amin(dim=1).neg_()).div_(LEVELS).clamp_(min=TINY)
        if not scale.isfinite().all():
            raise ValueError("a weight is infinite or no number")
        values = values.div_(scale[:, None]).view(len(part), -1, GROUP)
        low, high = values.amin(dim=2), values.amax(dim=2)
        # Rounding down leaves the ends of a group outside, which costs less than wider steps for all of it.
        step = ((high - low) / (CODES - 1)).round_().clamp_(1, WIDEST_STEP)
        reach = (CODES - 1) * step
        base = torch.minimum(((low + high - reach) / 2).round_().clamp_(min=-LEVELS - 1), LEVELS - reach)
        whole = values.sub_(base[..., None]).div_(step[..., None]).round_().clamp_(0, CODES - 1)
        first, second = whole.to(torch.int8).view(len(part), 2, width // 2).view(torch.uint8).unbind(1)
        codes[:, start:end] = (first | second << 4).t()
        scales[start:end] = scale
        steps[0, :, 0, start:end], steps[1, :, 0, start:end] = step.t(), base.t()
        start = end
    return codes, scales, steps


def wide_codes(codes: Tensor, steps: Tensor) -> Tensor:
    """What `quantize_wide` gave, as int8 [in, out], to be multiplied by the scales of the rows."""
    half, outputs = codes.shape
    whole = torch.empty(2 * half, outputs, dtype=torch.int8, device=codes.device)
    bits = whole.view(torch.uint8)
    torch.bitwise_and(codes, CODES - 1, out=bits[:half])
    torch.bitwise_right_shift(codes, 4, out=bits[half:])
    whole.view(-1, GROUP, outputs).mul_(steps[0]).add_(steps[1])
    return whole


def dequantize_wide(codes: Tensor, scales: Tensor, steps: Tensor) -> Tensor:
    """What `quantize_wide` gave, as float32 [out, in]."""
    return wide_codes(codes, steps).t() * scales[:, None]


class Int4WideLinear(nn.Module):
    """Takes the place of a linear layer of a multiple of `GROUP` inputs.

    Attributes:
        weight, scale, steps: see `quantize_wide`; bias: [out] or None.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        if in_features % GROUP:
            raise ValueError(f"a layer of 4 bits has a multiple of {GROUP} inputs, not {in_features}")
        self.in_features, self.out_features = in_features, out_features
        codes = torch.empty(in_features // 2, out_features, dtype=torch.uint8)
        steps = torch.empty(2, in_features // GROUP, 1, out_features, dtype=torch.int8)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scale = nn.Parameter(torch.empty(out_features), requires_grad=False)
        self.steps = nn.Parameter(steps, requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def put(self, codes: Tensor, scale: Tensor, steps: Tensor) -> None:
        """Set the weights: what `quantize_wide` gives."""
        if codes.shape != self.weight.shape or scale.shape != self.scale.shape or steps.shape != self.steps.shape:
            raise ValueError(
                f"codes {list(codes.shape)}, scales {list(scale.shape)} and steps {list(steps.shape)} are not those of "
                f"{self.out_features} rows of {self.in_features}"
            )
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.steps = nn.Parameter(steps, requires_grad=False)

    def take(self, *pieces: Tensor) -> None:
        """Set the weights from those of a layer in floating point [out, in], whole or in pieces from top to bottom.

        Raises:
            ValueError: one is not finite.
        """
        self.put(*quantize_wide(*pieces))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        codes = wide_codes(self.weight, self.steps).t()
        # Products of whole numbers send no gradient back, and are exact where inputs may have all levels.
        learns = x.requires_grad and torch.is_grad_enabled()
        if x.device.type == "cpu" and not learns and input_levels() == LEVELS:
            quantized = Rows(rows.float())
            y = plain_product(quantized, codes, self.scale)
            y = scaled(y, quantized.step, self.bias)
        else:
            y = float_product(rows, codes, self.scale)
            y = y if self.bias is None else y + self.bias.to(y.dtype)
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int4WideLinear:
        scale = self.scale.detach()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # Casting a network means the type that it computes in, not the scales of its weights.
        self.scale = nn.Parameter(scale.to(self.scale.device), requires_grad=False)
        return self
