"""A first pass that reads a fraction of the vectors, and says how far off each score may be.

The vectors of an image are much alike, and what differs among them lies mostly in a few directions. So each vector is
kept as the mean of its image's vectors, whole numbers of 8 bits along some directions P (orthonormal columns) with a
step, and a rest: v = mean + P (step * codes + error) + rest. The query is rounded to bfloat16 along P (p' for
p = P^T q), and so is each product. By Cauchy and Schwarz no product is off by more than

    |q . v - q . mean - p' . (step * codes)| <= |p| |error| + |p - p'| |step * codes| + |q - P p| |rest|,

whose lengths are known, and its own rounding. Images that can be among the best by this are compared again in full, and
no other can be: the answer is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

LEVELS = 127
"""Whole numbers each side of zero."""
SHARE = 1 / 4
"""Of the directions that are kept: of fewer, more images are left for the second pass."""
SAMPLE = 4096
"""Images by which the directions are chosen, at most."""
TOGETHER = 20_480
"""Vectors whose codes are made together: their numbers in float32 nearly stay in a cache."""
READ_TOGETHER = 4 * TOGETHER
"""Vectors that are multiplied together."""
ROUNDED = 2**-8
"""By how much of itself a number changes at most when it is rounded to bfloat16."""
ROUNDING = 1e-5
"""More than the sums of 256 products in float32 are off, of unit vectors."""


class Codes:
    """The codes of all images of some blocks.

    Args:
        blocks: [n, Q, width] each, of any floating-point type.
        share: of the directions; 1 leaves no rest.

    Attributes:
        share: as it was given.
        left: the share of the images that could not be told from the best by the last bounds, as `scan.best` found.

    Raises:
        AttributeError, RuntimeError: this PyTorch cannot multiply them.
    """

    def __init__(self, blocks: Sequence[Tensor], share: float = SHARE) -> None:
        self.share = share
        self.left = 0.0
        blocks = [block for block in blocks if len(block)]
        total = sum(map(len, blocks))
        vectors, width = blocks[0].shape[1:] if blocks else (1, 1)
        self._directions = _directions(blocks, share) if total else torch.eye(width)
        rank = self._directions.shape[1]
        self._codes = torch.empty(total, vectors, rank, dtype=torch.int8)
        self._steps = torch.empty(total, vectors, dtype=torch.bfloat16)
        self._means = torch.empty(total, width, dtype=torch.float16)
        # Of each image, the greatest of its vectors: of the error, of the codes, and of the rest.
        self._errors, self._lengths, self._rests = torch.empty(3, total)
        done = 0
        for part in (part for block in blocks for part in torch.split(block, max(1, TOGETHER // vectors))):
            self._encode(part, slice(done, done + len(part)))
            done += len(part)
        if total:
            some, steps = self._codes[:2].flatten(0, 1)[:64], self._steps[:2].flatten()[:64]
            exact = some.float() @ some[0].float() * steps.float()
            found = _products(some[:1].bfloat16(), some, steps)[0]
            if not ((found - exact).abs() <= ROUNDED * exact.abs()).all():
                raise RuntimeError("products of 8-bit numbers are not exact enough here")

    def bounds(self, query: Tensor, unwanted: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        """Scores [n] of all images, and by how much [n] each of them may be off; arguments as of `scan.best`."""
        queries = [query.float(), *(one.float() for one in unwanted)]
        counts = [len(one) for one in queries]
        whole = torch.cat(queries)
        along = whole @ self._directions
        rounded = along.bfloat16()
        sizes = (
            along.norm(dim=1),
            (along - rounded.float()).norm(dim=1),
            (whole - along @ self._directions.T).norm(dim=1),
        )
        lengths, lefts, rests = ([float(own.mean()) for own in torch.split(size, counts)] for size in sizes)
        scores, errors = [], []
        for part in self._slices():
            means = torch.split(whole @ self._means[part].float().T, counts)
            products = _products(rounded, self._codes[part].flatten(0, 1), self._steps[part].flatten())
            best = torch.split(products.view(len(whole), *self._steps[part].shape).amax(dim=-1).float(), counts)
            found = [(mean + one).mean(dim=0) for mean, one in zip(means, best, strict=True)]
            off = [
                self._errors[part] * length
                + self._lengths[part] * left
                + self._rests[part] * rest
                + ROUNDED * one.abs().mean(dim=0)
                for length, left, rest, one in zip(lengths, lefts, rests, best, strict=True)
            ]
            if unwanted:
                found[0] -= torch.stack(found[1:]).amax(dim=0)
                off[0] += torch.stack(off[1:]).amax(dim=0)
            scores.append(found[0])
            errors.append(off[0] + ROUNDING)
        return torch.cat(scores), torch.cat(errors)

    def _slices(self) -> Iterator[slice]:
        images, vectors = self._steps.shape
        together = max(1, READ_TOGETHER // vectors)
        for start in range(0, images, together):
            yield slice(start, start + together)

    def _encode(self, images: Tensor, place: slice) -> None:
        means = images.float().mean(dim=1).half()
        rows = (images.float() - means.float()[:, None]).flatten(0, 1)
        along = rows if self.share == 1 else rows @ self._directions
        least, most = along.aminmax(dim=1)
        # A step that bfloat16 holds, and no smaller than it must be.
        steps = torch.maximum(-least, most) * ((1 + ROUNDED) / LEVELS)
        steps = steps.clamp_min_(torch.finfo(torch.float32).tiny).bfloat16()
        exact_steps = steps.float()[:, None]
        codes = (along / exact_steps).round_()
        kept = codes * exact_steps
        whole, known = rows.square().sum(dim=1), along.square().sum(dim=1)
        # The difference of two sums in float32 is not quite exact.
        rests = torch.zeros(()) if self.share == 1 else (whole - known).clamp_(min=0) + ROUNDING * whole
        shape = self._steps[place].shape
        self._codes[place] = codes.to(torch.int8).view(*shape, -1)
        self._steps[place] = steps.view(shape)
        self._means[place] = means
        self._lengths[place] = kept.norm(dim=1).view(shape).amax(dim=1)
        self._errors[place] = (along - kept).norm(dim=1).view(shape).amax(dim=1)
        self._rests[place] = rests.expand(len(rows)).sqrt().view(shape).amax(dim=1)


def _directions(blocks: Sequence[Tensor], share: float) -> Tensor:
    """[width, rank]: orthonormal columns, in which the vectors of an image differ most."""
    width = blocks[0].shape[-1]
    if share == 1:
        return torch.eye(width)
    apart = max(1, sum(map(len, blocks)) // SAMPLE)
    scatter = torch.zeros(width, width)
    for block in blocks:
        some = block[::apart].float()
        rows = (some - some.mean(dim=1, keepdim=True)).flatten(0, 1)
        scatter += rows.T @ rows
    directions: Tensor = torch.linalg.eigh(scatter)[1]
    return directions[:, -max(1, round(width * share)) :].contiguous()


def _products(queries: Tensor, codes: Tensor, steps: Tensor) -> Tensor:
    """bfloat16 [K, rows] of queries bfloat16 [K, width]; summed in float32."""
    products: Tensor = torch._weight_int8pack_mm(queries, codes, steps)
    return products
