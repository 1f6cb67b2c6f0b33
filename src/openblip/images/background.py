"""An iterator that runs in a thread of its own, some items ahead of whoever takes them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Generic, TypeVar

Item = TypeVar("Item")


@contextmanager
def in_background(items: Iterator[Item], ahead: int) -> Iterator[Iterator[Item]]:
    """The same items in the same order, up to so many of them made before they are asked for.

    Whatever `items` raises is raised behind what it gave. When the context is left, nothing runs any more, and `items`
    is closed: what it reads from can be closed, too.

    Args:
        ahead: at least 1.
    """
    running = _Running(items, ahead)
    try:
        yield running.taken()
    finally:
        running.stop()


class _Running(Generic[Item]):
    def __init__(self, items: Iterator[Item], ahead: int) -> None:
        self._items = items
        self._made: SimpleQueue[tuple[Item] | BaseException | None] = SimpleQueue()
        self._free = threading.Semaphore(ahead)
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="openblip ahead", daemon=True)
        self._thread.start()

    def taken(self) -> Iterator[Item]:
        while (made := self._made.get()) is not None:
            if isinstance(made, BaseException):
                raise made
            self._free.release()
            yield made[0]

    def stop(self) -> None:
        self._stopped = True
        self._free.release()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._free.acquire() and not self._stopped:
                try:
                    self._made.put((next(self._items),))
                except StopIteration:
                    self._made.put(None)
                    return
                except BaseException as error:
                    self._made.put(error)
                    return
        finally:
            close = getattr(self._items, "close", None)
            if close is not None:
                close()
