"""A first pass over all vectors that reads a quarter of what float32 takes, and says how far off each score may be.

Each vector is kept as whole numbers of 8 bits and a step: v = step * codes + rest. The query is rounded to bfloat16
(q'), and so is each product. By Cauchy and Schwarz no product is off by more than

    |q . v - q' . (step * codes)| <= |q| |rest| + |q - q'| |step * codes|,

whose lengths are known, and its own rounding. Images that can be among the best by this are compared again in float64,
and no other can be: the answer is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LEVELS = 127
"""Whole numbers each side of zero."""
TOGETHER = 20_480
"""Vectors whose codes are made, and multiplied, together: their numbers in float32 nearly stay in a cache."""
ROUNDED = 2**-8
"""By how much of itself a number changes at most when it is rounded to bfloat16."""
ROUNDING = 1e-5
"""More than the sums of 256 products in float32 are off, of unit vectors."""


@dataclass(frozen=True, eq=False)
class _Part:
    """Images that lie one behind the other.

    Attributes:
        codes: int8 [n * Q, width] of their vectors.
        steps: bfloat16 [n * Q].
        errors, lengths: [n] of each image, the greatest of its vectors: of what the codes leave out, and of the codes.
    """

    codes: Tensor
    steps: Tensor
    errors: Tensor
    lengths: Tensor


class Codes:
    """The codes of all images of some blocks.

    Args:
        blocks: [n, Q, width] each, of any floating-point type.

    Raises:
        AttributeError, RuntimeError: this PyTorch cannot multiply them.
    """

    def __init__(self, blocks: Sequence[Tensor]) -> None:
        self._parts = [_coded(part) for block in blocks if len(block) for part in _parts(block)]
        for part in self._parts[:1]:
            some = part.codes[:64]
            exact = some.float() @ some[0].float() * part.steps[:64].float()
            found = _products(some[:1].bfloat16(), some, part.steps[:64])[0]
            if not ((found - exact).abs() <= ROUNDED * exact.abs()).all():
                raise RuntimeError("products of 8-bit numbers are not exact enough here")

    def bounds(self, query: Tensor, unwanted: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """Scores [n] of all images, and by how much [n] each of them may be off; arguments as of `scan.best`."""
        queries = [query.float(), *(one.float() for one in unwanted)]
        counts = [len(one) for one in queries]
        rounded = torch.cat(queries).bfloat16()
        lengths = [float(one.norm(dim=1).mean()) for one in queries]
        lefts = [float((one.bfloat16().float() - one).norm(dim=1).mean()) for one in queries]
        scores, errors = [], []
        for part in self._parts:
            products = _products(rounded, part.codes, part.steps).view(len(rounded), len(part.errors), -1)
            best = torch.split(products.amax(dim=-1).float(), counts)
            found = [one.mean(dim=0) for one in best]
            off = [
                part.errors * length + part.lengths * left + ROUNDED * one.abs().mean(dim=0)
                for length, left, one in zip(lengths, lefts, best, strict=True)
            ]
            if unwanted:
                found[0] -= torch.stack(found[1:]).amax(dim=0)
                off[0] += torch.stack(off[1:]).amax(dim=0)
            scores.append(found[0])
            errors.append(off[0] + ROUNDING)
        return torch.cat(scores), torch.cat(errors)


def _parts(block: Tensor) -> Iterator[Tensor]:
    yield from torch.split(block, max(1, TOGETHER // block.shape[1]))


def _coded(images: Tensor) -> _Part:
    rows = images.float().flatten(0, 1)
    least, most = rows.aminmax(dim=1)
    # A step that bfloat16 holds, and no smaller than it must be.
    steps = (
        (torch.maximum(-least, most) * ((1 + ROUNDED) / LEVELS)).clamp_min_(torch.finfo(torch.float32).tiny).bfloat16()
    )
    exact_steps = steps.float()[:, None]
    whole = (rows / exact_steps).round_()
    codes = whole.to(torch.int8)
    kept = whole.mul_(exact_steps)
    lengths = kept.norm(dim=1).view(len(images), -1).amax(dim=1)
    errors = rows.sub_(kept).norm(dim=1).view(len(images), -1).amax(dim=1)
    return _Part(codes, steps, errors, lengths)


def _products(queries: Tensor, codes: Tensor, steps: Tensor) -> Tensor:
    """bfloat16 [K, rows] of queries bfloat16 [K, width]; summed in float32."""
    products: Tensor = torch._weight_int8pack_mm(queries, codes, steps)
    return products
