"""Exact comparison of a query with all vectors, kept in half precision.

The similarity of a query of K unit vectors and an image of Q is the mean over the query's vectors of the best cosine
(MaxSim, https://arxiv.org/abs/2004.12832): of a text, which has one, the best cosine. What dominates is reading the
vectors, 1.6 GB for 100,000 images of a BLIP-2. So a first pass reads codes, a fifth of that, where there are some. Of
what it leaves, products with one vector are made in half precision where the processor does that fast, without an array
in float32. What may be among the best is then computed again in float64.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import accumulate, groupby

import torch
from torch import Tensor

from openblip.search.codes import Codes

ROWS = 4096
"""Vectors that are converted at once: they stay in the processor's cache."""
HALF_ERROR = 2**-10
"""More than a cosine is off that was summed in float32 with a query in half precision, and rounded to it itself."""
FEW = 4
"""Vectors of a query for which codes are faster: of more, multiplying takes longer than reading."""
WORTH = 0.5
"""The share of the images up to which it is worth picking those that the codes left, rather than reading all."""
SEEDS = 4
"""Times as many images as are wanted, which are compared in full before what their codes leave."""
PAIRS = 256
"""Images whose mean vectors are compared with all others at once."""


def best(
    blocks: Sequence[Tensor],
    query: Tensor,
    count: int,
    unwanted: Sequence[Tensor] = (),
    codes: Codes | None = None,
) -> list[tuple[int, float]]:
    """The best images of all: places in the order of the blocks, and scores; of equals, what comes first is first.

    Args:
        blocks: [n, Q, width] each, float16.
        query: [K, width].
        unwanted: queries of which the greatest similarity is subtracted.
        codes: of these blocks, which make it several times faster, and change nothing.
    """
    total = sum(len(block) for block in blocks)
    if not total:
        return []
    count = min(count, total)
    left = None if codes is None or len(query) > FEW else _left_by(codes, blocks, query, count, unwanted)
    if left is None:
        rough = torch.cat([_scores(block, query, unwanted, _similarity) for block in blocks])
    else:
        rough = torch.cat([_scores(some, query, unwanted, _similarity) for some in _rows(blocks, left)])
    off = HALF_ERROR * (2 if unwanted else 1)
    # So many scores are at least this: what cannot reach it is none of the best.
    least = (rough - off).topk(count).values[-1]
    places = (rough + off >= least).nonzero().flatten()
    if left is not None:
        places = left[places]
    scores = exact(torch.cat(list(_rows(blocks, places))), query, unwanted)
    order = scores.argsort(descending=True, stable=True)[:count]
    return [(int(places[row]), float(scores[row])) for row in order]


def _left_by(
    codes: Codes, blocks: Sequence[Tensor], query: Tensor, count: int, unwanted: Sequence[Tensor]
) -> Tensor | None:
    """Sorted places of the images that can be among the best by their codes; None if these are too many to pick."""
    rough, off = codes.bounds(query, unwanted)
    # Those that seem to be the best say what a score must reach.
    seeds = rough.topk(min(len(rough), SEEDS * count)).indices
    least = exact(torch.cat(list(_rows(blocks, seeds))), query, unwanted).topk(count).values[-1]
    left = (rough + off >= least - HALF_ERROR**2).nonzero().flatten()
    codes.left = len(left) / len(rough)
    return left if codes.left <= WORTH else None


def exact(vectors: Tensor, query: Tensor, unwanted: Sequence[Tensor] = ()) -> Tensor:
    """Scores [n] of images [n, Q, width], summed in float64: the same among whichever images; arguments as `best`."""
    return _scores(vectors, query.double(), [one.double() for one in unwanted], _in_full).float()


def alike(blocks: Sequence[Tensor], least: float) -> Iterator[tuple[int, int, float]]:
    """Pairs of images i < j whose vectors, compared one by one, have a mean cosine of at least so much, and the cosine.

    Where two images' mean vectors are farther apart than their vectors can be on average, nothing else is computed:
    |mean(a) - mean(b)|^2 <= mean |a_q - b_q|^2 = 2 - 2 mean(a_q . b_q). No pair is missed by this.
    """
    if not blocks:
        return
    means = torch.cat([block.float().mean(dim=1) for block in blocks])
    lengths = means.square().sum(dim=1)
    farthest = 2 * (1 - least) + 8 * HALF_ERROR  # unit vectors in half precision are not quite of length 1
    for start in range(0, len(means), PAIRS):
        own = means[start : start + PAIRS]
        apart = lengths[start : start + PAIRS, None] + lengths[None, start:] - 2 * own @ means[start:].T
        left, right = (apart <= farthest).nonzero().unbind(dim=1)
        later = left < right
        left, right = left[later] + start, right[later] + start
        for first in range(0, len(left), ROWS // 4):
            some = left[first : first + ROWS // 4], right[first : first + ROWS // 4]
            one, other = (torch.cat(list(_rows(blocks, places))).float() for places in some)
            cosines = (one * other).sum(dim=-1).mean(dim=-1)
            for i, j, cosine in zip(some[0].tolist(), some[1].tolist(), cosines.tolist(), strict=True):
                if cosine >= least:
                    yield i, j, cosine


def picked(blocks: Sequence[Tensor], places: Sequence[int]) -> list[Tensor]:
    """The images at these places in the blocks' order: one block, or the blocks as they are if all are wanted."""
    if len(places) == sum(len(block) for block in blocks):
        return list(blocks)
    return [torch.cat(list(_rows(blocks, torch.tensor(places))))]


def _scores(
    block: Tensor, query: Tensor, unwanted: Sequence[Tensor], similarity: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    wanted = similarity(block, query)
    if not unwanted:
        return wanted
    return wanted - torch.stack([similarity(block, one) for one in unwanted]).amax(dim=0)


def _similarity(block: Tensor, query: Tensor) -> Tensor:
    """[n] of a block [n, Q, width] and a query [K, width], off by at most HALF_ERROR."""
    images, vectors, width = block.shape
    if len(query) == 1 and half_is_fast():
        products = torch.mv(block.view(-1, width), query[0].to(torch.float16))
        return products.view(images, vectors).amax(dim=1).float()
    return _in_full(block, query.float())


def _in_full(block: Tensor, query: Tensor) -> Tensor:
    """[n] of a block and a query, in the query's type."""
    images, vectors, width = block.shape
    together = max(1, ROWS // vectors)
    found = torch.empty(images, dtype=query.dtype)
    buffer = torch.empty(min(together, images) * vectors, width, dtype=query.dtype)
    for start in range(0, images, together):
        part = block[start : start + together]
        rows = buffer[: len(part) * vectors]
        rows.copy_(part.reshape(-1, width))
        cosines = rows @ query.T
        found[start : start + together] = cosines.view(len(part), vectors, -1).amax(dim=1).mean(dim=-1)
    return found


def _rows(blocks: Sequence[Tensor], places: Tensor) -> Iterator[Tensor]:
    """The images at sorted or unsorted places in the blocks' order, one tensor for a run of them in one block."""
    if len(blocks) == 1:
        yield blocks[0].index_select(0, places)
        return
    ends = list(accumulate(len(block) for block in blocks))
    owners = torch.searchsorted(torch.tensor(ends), places, right=True).tolist()
    done = 0
    for owner, run in groupby(owners):
        size, block = len(list(run)), blocks[owner]
        yield block.index_select(0, places[done : done + size] - (ends[owner] - len(block)))
        done += size


@cache
def half_is_fast() -> bool:
    """Whether this processor, with this PyTorch, multiplies half precision exactly enough, and sooner than float32.

    It does so where there is a kernel that converts in registers (F16C, AVX-512, Arm); elsewhere it is many times
    slower, or sums in half precision.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(ROWS // 2, 256, generator=generator), dim=-1)
    halves, vector = rows.half(), rows[7].half()

    def in_half() -> Tensor:
        return torch.mv(halves, vector).float()

    def in_full() -> Tensor:
        return torch.mv(halves.float(), vector.float())

    if (in_half() - in_full()).abs().max() > HALF_ERROR / 2:
        return False
    return _seconds(in_half) < _seconds(in_full)


@cache
def codes_are_fast() -> bool:
    """Whether this processor, with this PyTorch, multiplies codes exactly enough, and sooner than the vectors.

    Without AVX2, and on some other processors, it multiplies them one by one.
    """
    generator = torch.Generator().manual_seed(0)
    block = torch.nn.functional.normalize(torch.randn(256, 32, 256, generator=generator), dim=-1).half()
    query = block[7, :1].float()
    try:
        codes = Codes([block])
    except (AttributeError, RuntimeError):
        return False
    return _seconds(lambda: codes.bounds(query)[0]) < _seconds(lambda: _similarity(block, query))


def _seconds(work: Callable[[], Tensor]) -> float:
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)
