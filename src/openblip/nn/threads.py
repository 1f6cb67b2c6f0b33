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
