"""Memory that images take while they are decoded, of all threads together."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

BYTES_PER_PIXEL = 12
"""What an image within the limit of pixels may take while it is decoded."""
SMALL_BYTES = 2**30
"""What any image may take, however low the limit of pixels is."""
GREEDY = {"WEBP": 18, "JPEG2000": 25, "AVIF": 14}
"""Bytes a pixel that decoders take, as measured, where it is more than Pillow's own pixels and ours (at most 10)."""
USUAL = 10


def bytes_needed(image_format: str | None, width: int, height: int) -> int:
    """Of an encoded image until it is RGB."""
    return width * height * GREEDY.get(image_format or "", USUAL)


class MemoryBudget:
    """So many bytes for all threads; an image that needs more waits until it is alone.

    Args:
        size: bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._taken = 0
        self._changed = threading.Condition()

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        """Memory that one thread may take, once, and that it gives back at the end."""
        lease = Lease(self)
        try:
            yield lease
        finally:
            self._give_back(lease.size)

    def take(self, size: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + size <= self.size)
            self._taken += size

    def _give_back(self, size: int) -> None:
        with self._changed:
            self._taken -= size
            self._changed.notify_all()


class Lease:
    """What one thread has of a budget.

    Attributes:
        size: bytes; 0 until it takes some.
    """

    def __init__(self, budget: MemoryBudget) -> None:
        self.size = 0
        self._budget = budget

    def take(self, size: int) -> None:
        """Wait until there is room. Whoever had some and asked for more would keep others waiting, so it is refused."""
        if self.size:
            raise RuntimeError("memory was taken already")
        self._budget.take(size)
        self.size = size
