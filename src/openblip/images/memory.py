"""Memory for images while they are decoded or drawn: threads wait for one another rather than fill it together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
    def lease(self) -> Iterator[Callable[[int], None]]:
        """What one thread calls, once, to wait for so many bytes, which are given back at the end."""
        own = 0

        def take(size: int) -> None:
            nonlocal own
            if own:  # whoever had some and waited for more would keep others waiting
                raise RuntimeError("memory was taken already")
            with self._changed:
                self._changed.wait_for(lambda: not self._taken or self._taken + size <= self.size)
                self._taken += size
            own = size

        try:
            yield take
        finally:
            with self._changed:
                self._taken -= own
                self._changed.notify_all()
