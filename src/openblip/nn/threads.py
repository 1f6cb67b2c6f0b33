"""Work on large tensors in parts that stay in the processor's cache, on threads of our own.

PyTorch shares one operation among all threads and waits for the slowest behind each. A chain of short operations, such
as quantizing, then waits more than it works wherever another program has one of the cores. Here each thread takes a
part through the whole chain by itself, and PyTorch shares none of its operations.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")
PART_ELEMENTS = 2**17
"""Numbers of a part: so many that starting operations on it costs little, and that it fits in a core's own cache."""
SHARED_ELEMENTS = 2**15 - 1
"""PyTorch shares an operation on more numbers than these, unless it is told not to."""
GPU_ELEMENTS = 2**20
"""In a part on a GPU, where starting an operation costs most."""
MOST_THREADS = 4
"""Python starts operations one after the other: more threads wait for each other."""
PARTS_A_THREAD = 2
"""Fewer are done before a thread has started."""


def part_elements(device: torch.device, elements: int) -> int:
    """Numbers of a part of a tensor of so many elements on this device."""
    if device.type != "cpu":
        return GPU_ELEMENTS
    if torch.get_num_threads() == 1 or (_sets_threads() is not None and elements >= 2 * PARTS_A_THREAD * PART_ELEMENTS):
        return PART_ELEMENTS
    return min(PART_ELEMENTS, SHARED_ELEMENTS)


def row_parts(pieces: Sequence[Tensor]) -> list[Tensor]:
    """Matrices below each other, all [rows, width], in parts of a row or more."""
    size = part_elements(pieces[0].device, sum(piece.numel() for piece in pieces))
    return [part for piece in pieces for part in torch.split(piece, max(1, size // max(1, piece[:1].numel())))]


def on_threads(work: Callable[[Iterator[T]], R], parts: Sequence[T], device: torch.device) -> list[R]:
    """What `work` returns on each thread, of the parts that it takes from its iterator: each goes to one thread.

    Gradients are not recorded there. What `work` raises is raised.
    """
    threads = min(torch.get_num_threads(), MOST_THREADS, len(parts) // PARTS_A_THREAD)
    left = iter(parts)
    if device.type != "cpu" or threads < 2:
        return [work(left)]

    def run(_: int) -> R:
        _compute_alone()
        with torch.inference_mode():  # which belongs to a thread; what was made under it may be written in no other
            return work(left)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, range(threads)))


def _compute_alone() -> None:
    """Let PyTorch share no operation that the calling thread starts from now on, where it can be told so."""
    torch.get_num_threads()  # the first call in a thread sets what the next line changes
    set_threads = _sets_threads()
    if set_threads is not None:
        set_threads(1)


@cache
def _sets_threads() -> Callable[[int], object] | None:
    """Sets how many threads share an operation of the calling thread; None where that cannot be said of one thread.

    `torch.set_num_threads` says it of all threads that start later, too. Tried out, once.
    """
    try:
        set_threads: Callable[[int], object] = ctypes.CDLL(None).omp_set_num_threads
    except (AttributeError, OSError, TypeError):  # PyTorch shares otherwise, or this is Windows
        return None

    def try_out() -> bool:
        torch.get_num_threads()
        set_threads(1)
        return torch.get_num_threads() == 1

    with ThreadPoolExecutor(1) as pool:
        return set_threads if pool.submit(try_out).result() else None
