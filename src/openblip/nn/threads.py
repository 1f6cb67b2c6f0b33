"""Work on large tensors in parts that stay in the processor's cache, on threads of our own.

PyTorch shares one operation among all threads and waits for the slowest behind each. A chain of short operations, such
as quantizing, then waits more than it works wherever another program has one of the cores. Parts of up to
`PART_ELEMENTS` numbers are too small for PyTorch to share: each thread takes a part through the whole chain by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")
PART_ELEMENTS = 2**15 - 1
"""PyTorch shares an operation on more numbers than these; of float32 they fill a tenth of a core's own cache."""
ALONE_ELEMENTS = 2**17
"""In a part where there is one thread: starting operations costs less then, and parts still fit in the cache."""
CACHED_ELEMENTS = 2**20
"""Numbers of all rows on a thread that go through a layer together, at their widest: 256 rows of 4096, of float32 about
two caches of a core, of 8 bits half a one."""
GPU_ELEMENTS = 2**20
"""In a part on a GPU, where starting an operation costs most."""
MOST_THREADS = 4
"""Python starts operations one after the other: more threads wait for each other."""
PARTS_A_THREAD = 8
"""Fewer are done before a thread has started."""


def part_elements(device: torch.device) -> int:
    """Numbers of a part of a tensor on this device."""
    if device.type != "cpu":
        return GPU_ELEMENTS
    return PART_ELEMENTS if torch.get_num_threads() > 1 else ALONE_ELEMENTS


def row_parts(pieces: Sequence[Tensor]) -> list[tuple[int, Tensor]]:
    """Matrices below each other, all [rows, width], in parts of a row or more: each with its first row's number."""
    parts, start = [], 0
    for piece in pieces:
        for part in torch.split(piece, max(1, part_elements(piece.device) // max(1, piece[:1].numel()))):
            parts.append((start, part))
            start += len(part)
    return parts


def in_row_parts(run: Callable[[Tensor], Tensor], x: Tensor, widest: int) -> Tensor:
    """What `run` gives for x [..., in], row by row the same, of some rows at a time: [..., out].

    Between the steps of a layer its numbers then stay in the processor's cache; those of many images would go through
    memory at each step. In inference on a CPU alone: elsewhere `run` gets all at once.

    Args:
        widest: numbers that one row becomes on the way.
    """
    rows = x.reshape(-1, x.shape[-1])
    most = max(1, CACHED_ELEMENTS // widest) * torch.get_num_threads()
    if len(rows) <= most or x.device.type != "cpu" or not torch.is_inference_mode_enabled():
        return run(x)
    parts = rows.chunk(-(-len(rows) // most))
    first = run(parts[0])
    y = first.new_empty(len(rows), first.shape[-1])
    y[: len(first)] = first
    start = len(first)
    for part in parts[1:]:
        y[start : start + len(part)] = run(part)
        start += len(part)
    return y.view(*x.shape[:-1], y.shape[-1])


def on_threads(work: Callable[[Iterator[T]], R], parts: Sequence[T], device: torch.device) -> list[R]:
    """What `work` returns on each thread, of the parts that it takes from its iterator: each goes to one thread.

    Gradients are not recorded there. What `work` raises is raised.
    """
    threads = min(torch.get_num_threads(), MOST_THREADS, len(parts) // PARTS_A_THREAD)
    left = iter(parts)
    if device.type != "cpu" or threads < 2:
        return [work(left)]

    def run(_: int) -> R:
        with torch.inference_mode():  # which belongs to a thread; what was made under it may be written in no other
            return work(left)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, range(threads)))
