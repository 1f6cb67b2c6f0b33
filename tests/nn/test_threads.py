"""How many threads share the operations of one thread, and of no other."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from openblip.nn.threads import compute_with


def numbers() -> list[int]:
    """Threads that PyTorch's own operations, OpenMP's and MKL's products have in the calling thread."""
    told = torch.__config__.parallel_info()
    found = re.findall(r"(?:at::get_num_threads|omp_get_max_threads|mkl_get_max_threads)\(\) : (\d+)", told)
    return [int(number) for number in found]


def in_new_thread(work: Callable[[], list[int]]) -> list[int]:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def test_threads_are_those_of_the_calling_thread_alone() -> None:
    usual = torch.get_num_threads()

    def one() -> list[int]:
        if not compute_with(1):
            pytest.skip("PyTorch cannot be told here")
        return numbers()

    def several() -> list[int]:
        compute_with(3)
        return numbers()

    torch.set_num_threads(2)  # from now on, MKL has a number of its own in each thread
    try:
        assert set(in_new_thread(one)) == {1}
        assert set(in_new_thread(several)) == {3}
        assert set(numbers()) == {2} and set(in_new_thread(numbers)) == {2}
    finally:
        torch.set_num_threads(usual)
