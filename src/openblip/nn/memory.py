"""Memory of the process: what a load frees goes back to the system, what layers free is used again, and weights lie in
Linux' huge pages.

Memory comes in pages of 4 kB, and a processor that reads gigabytes spends a fifth of its time on finding them; in huge
pages of 2 MB it finds them at once. Most distributions give those to programs that ask, and the allocators below
PyTorch do not ask. So we do, for what lies there already (`MADV_COLLAPSE`, Linux 6.1); elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Lock

COLLAPSE = 25
"""`MADV_COLLAPSE` of <linux/mman.h>."""
SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
LARGEST_REUSED = 31 * 2**20
"""Bytes; glibc's allocator never keeps pieces of more than 32 MB."""
AT_A_TIME = 128 * 2**20
"""Bytes of new weights after which the process' memory is looked through: that takes a few milliseconds."""


class Gatherer:
    """Asks for huge pages now and then, while weights come to be."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._loose = 0

    def add(self, nbytes: int) -> None:
        """Tell of new weights in the process' memory."""
        with self._lock:
            self._loose += nbytes
            if self._loose < AT_A_TIME:
                return
            self._loose = 0
        gather()


def gather() -> int:
    """Bring this process' own memory into huge pages where it fills whole ones, so that it grows by nothing.

    Returns:
        bytes that lie in huge pages now, some perhaps did before; 0 where there are none to be had.
    """
    size = _huge_size()
    if not size:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    for function, last in ((libc.madvise, ctypes.c_int), (libc.mincore, ctypes.c_char_p)):
        function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, last]
    gathered = 0
    for start, end in _own_memory():
        start, end = -(-start // size) * size, end // size * size
        for run_start, run_end in _filled(libc, start, end, size):
            # Memory may be given back meanwhile, or there may be no huge page left: both are refused, and harmless.
            if libc.madvise(run_start, run_end - run_start, COLLAPSE) == 0:
                gathered += run_end - run_start
    return gathered


def _huge_size() -> int:
    """Bytes of a huge page; 0: none here, or not for those who ask."""
    if sys.platform != "linux":
        return 0
    try:
        allowed = "[never]" not in (SETTINGS / "enabled").read_text()
        return int((SETTINGS / "hpage_pmd_size").read_text()) if allowed else 0
    except (OSError, ValueError):
        return 0


def _own_memory() -> Iterator[tuple[int, int]]:
    """From where to where memory lies that belongs to no file and can be written."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        addresses, rights, _, _, inode, *name = line.split()
        if rights == "rw-p" and inode == "0" and (not name or name[0].startswith(("[heap]", "[anon"))):
            start, _, end = addresses.partition("-")
            yield int(start, 16), int(end, 16)


def _filled(libc: ctypes.CDLL, start: int, end: int, size: int) -> Iterator[tuple[int, int]]:
    """Runs of huge pages of which every small page is in use."""
    if end <= start:
        return
    used = ctypes.create_string_buffer((end - start) // mmap.PAGESIZE)
    if libc.mincore(start, end - start, used):
        return
    pages = size // mmap.PAGESIZE
    marks = used.raw
    run = start
    for place in range(start, end + size, size):
        first = (place - start) // mmap.PAGESIZE
        if place < end and all(mark & 1 for mark in marks[first : first + pages]):
            continue
        if run < place:
            yield run, min(place, end)
        run = place + size


def give_back() -> None:
    """Linux' allocator keeps what is freed, scattered between what stays; tens of megabytes after a load."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
        if trim is not None:
            trim(0)


def reuse_freed() -> None:
    """Let what a layer frees serve the next one, instead of going back to the system, which clears every page anew.

    glibc's allocator keeps pieces as large as the largest one that was freed so far, and twice as many bytes of them;
    so one is freed here, which nobody writes to. Encoding images with `mini` takes a seventh less time then.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
        libc.free.argtypes = [ctypes.c_void_p]
        libc.free(libc.malloc(LARGEST_REUSED))
