"""Linear layers with 4-bit weights: an eighth of the memory of float32.

Every `GROUP` weights of a row share a scale and a centre: a weight is (code - 8) * scale + centre with a code from 0
to 15. Inputs are taken in bfloat16, sums are made in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from openblip.nn.quant.linear import linear

GROUP = 64
CODES = 16
CENTRE = 8
TINY = 1e-30
CHUNK_ELEMENTS = 500_000
OUTPUTS = 16
"""PyTorch's product makes so many at a time."""
PACKED_ROWS = 1024
"""Rows that are packed at a time: a multiple of the blocks that they are ordered in."""
BLOCKS = ((64, False), (32, False), (32, True))
"""PyTorch's orders, on CPUs with AVX-512, with AVX2 and on others: rows of a block, and whether it is neighbours that
share their bytes, or rows that are half a block apart."""
INNER_TILES = 2
"""A parameter of PyTorch's packing that only GPUs look at."""


def quantize_groups(*pieces: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix [out, in] of any floating type, `in` a multiple of `GROUP`, to codes and the scales of its groups.

    Args:
        pieces: of the matrix, from top to bottom.

    Returns:
        two codes a byte, the first in the low half: uint8 [out, in / 2]; scale and centre, bfloat16
        [in / GROUP, out, 2].

    Raises:
        ValueError: a weight is not finite.
    """
    height, width, device = sum(map(len, pieces)), pieces[0].shape[1], pieces[0].device
    codes = torch.empty(height, width // 2, dtype=torch.uint8, device=device)
    scales = torch.empty(width // GROUP, height, 2, dtype=torch.bfloat16, device=device)
    rows = max(1, CHUNK_ELEMENTS // width)
    # One place for all parts: memory that is new each time costs more than the arithmetic.
    room = torch.empty(min(rows, max(map(len, pieces))), width // GROUP, GROUP, device=device)
    whole = torch.empty(room.shape, dtype=torch.int8, device=device)
    start = 0
    for part in (part for piece in pieces for part in torch.split(piece, rows)):
        end = start + len(part)
        values = room[: len(part)].copy_(part.reshape(len(part), -1, GROUP))
        low, high = values.amin(dim=2), values.amax(dim=2)
        # Codes are chosen for the scale and centre as they are kept, not as they were before rounding.
        scale = ((high - low) / (CODES - 1)).clamp(min=TINY).bfloat16()
        centre = (low + CENTRE * scale.float()).bfloat16()
        scales[:, start:end, 0], scales[:, start:end, 1] = scale.t(), centre.t()
        values.sub_(centre.float()[..., None]).div_(scale.float()[..., None]).round_()
        # By way of int8, which PyTorch makes of floats ten times as fast as uint8.
        signed = whole[: len(part)].copy_(values.add_(CENTRE).clamp_(0, CODES - 1))
        pairs = signed.view(len(part), width).view(torch.int16)
        codes[start:end] = pairs | pairs >> 4
        start = end
    if not scales.isfinite().all():
        raise ValueError("a weight is infinite or no number")
    return codes, scales


def whole_codes(codes: Tensor) -> Tensor:
    """Two codes a byte [out, in / 2] to one int32 each [out, in]."""
    return torch.stack([codes & 15, codes >> 4], dim=2).flatten(1).to(torch.int32)


def dequantize_groups(codes: Tensor, scales: Tensor) -> Tensor:
    """What `quantize_groups` gave, as float32 [out, in]."""
    whole = whole_codes(codes).sub_(CENTRE).float().view(len(codes), -1, GROUP)
    scale, centre = scales.float().permute(2, 1, 0)[..., None].unbind(0)
    return whole.mul_(scale).add_(centre).flatten(1)


def pack(codes: Tensor) -> Tensor:
    """Two codes a byte [out, in / 2] in the order in which PyTorch's product reads them, of the same shape."""
    order = packed_block()
    whole_blocks = 0 if order is None else len(codes) // order[0] * order[0]
    packed = torch.empty_like(codes)
    if order is not None and whole_blocks:
        in_blocks(codes[:whole_blocks], *order, packed[:whole_blocks])
    if whole_blocks < len(codes):
        packed[whole_blocks:] = _packed_by_pytorch(codes[whole_blocks:])
    return packed


def in_blocks(codes: Tensor, block: int, neighbours: bool, packed: Tensor) -> None:
    """What PyTorch's packing does, in a ninth of its time.

    In a block of rows two share their bytes, and those bytes that belong to one input lie side by side: the first
    row's codes in the low halves.

    Args:
        codes: two codes a byte [out, in / 2], `out` a multiple of `block`.
        neighbours: whether the two rows are neighbours; otherwise they are half a block apart.
        packed: of the same shape, is filled.
    """
    if neighbours:
        first, second = codes.view(-1, block // 2, 2, codes.shape[1]).unbind(2)
    else:
        first, second = codes.view(-1, 2, block // 2, codes.shape[1]).unbind(1)
    room = packed.view(-1, codes.shape[1], 2, block // 2)
    room[:, :, 0] = (first & 15).bitwise_or_(second << 4).transpose(1, 2)
    room[:, :, 1] = (first >> 4).bitwise_or_(second & 240).transpose(1, 2)


def _packed_by_pytorch(codes: Tensor) -> Tensor:
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(whole_codes(codes), INNER_TILES)
    return packed


@cache
def packed_block() -> tuple[int, bool] | None:
    """Which of `BLOCKS` is PyTorch's order here, found out by trying; None where it is another one."""
    rows = 2 * max(BLOCKS)[0]
    codes = torch.randint(256, (rows, GROUP), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected, found = _packed_by_pytorch(codes), torch.empty_like(codes)
    for order in BLOCKS:
        in_blocks(codes, *order, found)
        if torch.equal(found, expected):
            return order
    return None


@cache
def has_packed_product() -> bool:
    """Whether this PyTorch multiplies packed 4-bit weights on the CPU."""
    try:
        codes = _packed_by_pytorch(torch.zeros(32, GROUP // 2, dtype=torch.uint8))
        scales = torch.ones(1, 32, 2, dtype=torch.bfloat16)
        torch.ops.aten._weight_int4pack_mm_for_cpu(torch.ones(1, GROUP, dtype=torch.bfloat16), codes, GROUP, scales)
    except (AttributeError, RuntimeError):
        return False
    return True


class Int4Linear(nn.Module):
    """Takes the place of a linear layer of a multiple of `GROUP` inputs and of `OUTPUTS` outputs.

    Attributes:
        weight: two codes a byte, uint8 [out, in / 2]; once packed, the same in another order.
        scale: scale and centre of each group, bfloat16 [in / GROUP, out, 2]; bias: [out] or None.
        packed: whether `pack` has brought the weights into the order in which the CPU's product reads them.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        if in_features % GROUP or out_features % OUTPUTS:
            raise ValueError(
                f"a layer of 4 bits has a multiple of {GROUP} inputs and of {OUTPUTS} outputs, "
                f"not {in_features} and {out_features}"
            )
        self.in_features, self.out_features = in_features, out_features
        codes = torch.empty(out_features, in_features // 2, dtype=torch.uint8)
        scales = torch.empty(in_features // GROUP, out_features, 2, dtype=torch.bfloat16)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scale = nn.Parameter(scales, requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None
        self.packed = False

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def put(self, codes: Tensor, scale: Tensor) -> None:
        """Set the weights: what `quantize_groups` gives."""
        groups = (self.in_features // GROUP, self.out_features, 2)
        if codes.shape != (self.out_features, self.in_features // 2) or scale.shape != groups:
            raise ValueError(
                f"codes {list(codes.shape)} and scales {list(scale.shape)} are not those of "
                f"{self.out_features} rows of {self.in_features}"
            )
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scale = nn.Parameter(scale.to(torch.bfloat16), requires_grad=False)
        self.packed = False

    def take(self, *pieces: Tensor) -> None:
        """Set the weights from those of a layer in floating point [out, in], whole or in pieces from top to bottom.

        Raises:
            ValueError: one is not finite.
        """
        self.put(*quantize_groups(*pieces))

    def pack(self) -> None:
        """Bring the weights into the CPU's order, in place; nothing where there is none."""
        if self.packed or self.weight.device.type != "cpu" or not has_packed_product():
            return
        for rows in torch.split(self.weight.detach(), PACKED_ROWS):
            rows.copy_(pack(rows))
        self.packed = True

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        y: Tensor
        if self.packed:
            if x.requires_grad and torch.is_grad_enabled():
                raise RuntimeError("a packed layer of 4 bits sends no gradient back: train before it is packed")
            y = torch.ops.aten._weight_int4pack_mm_for_cpu(rows.bfloat16(), self.weight, GROUP, self.scale)
        else:
            y = linear(rows, dequantize_groups(self.weight, self.scale).to(x.dtype))
        y = y if self.bias is None else self.bias + y
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int4Linear:
        scale = self.scale.detach()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # Casting a network means the type that it computes in, not the scales of its weights.
        self.scale = nn.Parameter(scale.to(self.scale.device), requires_grad=False)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if self.packed:
            raise RuntimeError("a layer of 4 bits is not saved in the order of this machine: load the model anew")
        super()._save_to_state_dict(destination, prefix, keep_vars)
