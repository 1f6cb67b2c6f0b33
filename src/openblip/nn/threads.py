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
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")
PART_ELEMENTS = 2**18
"""Numbers of a part: so many that starting operations on it costs little, and as float32 about a core's own cache."""
SHARED_ELEMENTS = 2**15 - 1
"""PyTorch shares an operation on more numbers than these, unless it is told not to."""
CACHED_ELEMENTS = 2**20
"""Numbers of all rows on a thread that go through a layer together, at their widest: 256 rows of 4096, of float32 about
two caches of a core, of 8 bits half a one."""
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
        compute_with(1)
        with torch.inference_mode():  # which belongs to a thread; what was made under it may be written in no other
            return work(left)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, range(threads)))


def compute_with(threads: int) -> bool:
    """Let so many threads share each operation that the calling thread starts from now on, and no other thread.

    Returns whether PyTorch could be told so.
    """
    torch.get_num_threads()  # the first call in a thread sets what the next lines change
    set_threads = _sets_threads()
    if set_threads is None:
        return False
    set_threads(threads)
    set_products = _sets_threads_of_products()
    if set_products is not None:
        set_products(threads)
    return True


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


@cache
def _sets_threads_of_products() -> Callable[[int], object] | None:
    """The same for MKL, which multiplies matrices; None where it is not there.

    It has a number of its own for each thread, which `torch.set_num_threads` sets, and then heeds no other.
    """
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
        set_threads: Callable[[int], object] = library.MKL_Set_Num_Threads_Local
    except (AttributeError, OSError):
        return None
    return set_threads
