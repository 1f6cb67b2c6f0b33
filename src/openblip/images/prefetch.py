"""Images read, decoded and squashed in threads ahead of the model, which computes meanwhile.

Pillow holds no lock of Python's while it decodes and resizes, so that threads are enough.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, cast

from openblip.errors import ImageError, whole_number
from openblip.images.sources import ImageSource, image_list
from openblip.images.transform import ImageTransform, load_square, normalize

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

MAX_THREADS = 8
"""As many keep a GPU busy with photos from a disk."""

Source = TypeVar("Source")
Result = TypeVar("Result")
Queue: TypeAlias = "SimpleQueue[_Task[Any, Any] | None]"


@dataclass(frozen=True, eq=False)
class PixelBatch:
    """Images side by side, as the model takes them.

    Attributes:
        sources: as they were given.
        errors: for each source what is wrong with it, or None.
        pixels: [G,3,S,S] float32 on the CPU, of the G sources without an error.
    """

    sources: list[ImageSource]
    errors: list[ImageError | None]
    pixels: Tensor

    def whole(self) -> Tensor:
        """The pixels of all sources; the first error, if there is one, is raised."""
        for error in self.errors:
            if error is not None:
                raise error
        return self.pixels

    def join(self, results: Iterable[Result]) -> Iterator[tuple[ImageSource, Result | ImageError]]:
        """Each source with its result, of which there is one a row of pixels, or with its error."""
        remaining = iter(results)
        for source, error in zip(self.sources, self.errors, strict=True):
            yield source, next(remaining) if error is None else error


def pixel_batches(
    sources: ImageSource | Iterable[ImageSource], transform: ImageTransform, batch_size: int
) -> Iterator[PixelBatch]:
    """Images in order, `batch_size` at a time, the next ones being read while the caller computes.

    Sources are taken, in the caller's thread, as far ahead as `read_ahead` says. A lone image is one.
    """

    def work(source: ImageSource) -> np.ndarray[Any, Any]:
        return load_square(source, transform)

    for batch in read_ahead(image_list(sources), work, batch_size):
        squashed = [found for _, found in batch if not isinstance(found, ImageError)]
        yield PixelBatch(
            [source for source, _ in batch],
            [found if isinstance(found, ImageError) else None for _, found in batch],
            normalize(squashed, transform),
        )


def is_settled(source: object) -> bool:
    """Paths, addresses and bytes; PIL images, arrays and open files may be closed or changed by their owner."""
    return isinstance(source, str | bytes | os.PathLike)


def anything(_: object) -> bool:
    """Sources that nobody closes or changes meanwhile."""
    return True


def read_ahead(
    sources: Iterable[Source],
    work: Callable[[Source], Result],
    batch_size: int,
    in_threads: Callable[[Source], bool] = is_settled,
) -> Iterator[list[tuple[Source, Result | ImageError]]]:
    """Sources in order, `batch_size` at a time, each with what `work` makes of it or with its ImageError.

    Beyond the batch that is given out, as many sources are taken as a batch holds, or two for each thread where
    that is more. Whatever `sources` raises comes after what it gave. The threads end with the iterator, each
    after the image it is at.

    Args:
        in_threads: what `work` may do to a source later, in a thread, rather than as it is taken.

    Raises:
        OptionError: `batch_size` is no whole number, or below 1.
    """
    batch_size = whole_number("batch_size", batch_size, 1)
    threads = count_threads()
    ahead = _Ahead(sources, work, threads, in_threads)
    try:
        while batch := ahead.take(batch_size, max(batch_size, 2 * threads)):
            yield batch
        if ahead.failure is not None:
            raise ahead.failure
    finally:
        ahead.stop()


def count_threads() -> int:
    """One less than the processors this process may use, for the caller's thread computes too; at least one."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_THREADS, max(1, usable - 1))


class _Task(Generic[Source, Result]):
    """One source, worked on by whoever comes first."""

    def __init__(self, source: Source, work: Callable[[Source], Result]) -> None:
        self.source = source
        self._work = work
        self._claim = threading.Lock()  # taken once and never given back
        self._done = threading.Event()
        self._result: Result | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        if not self._claim.acquire(blocking=False):
            return
        try:
            self._result = self._work(self.source)
        except BaseException as error:
            self._error = error
            if not isinstance(error, Exception):
                raise
        finally:
            self._done.set()

    def drop(self) -> None:
        self._claim.acquire(blocking=False)

    def result(self) -> Result | ImageError:
        self._done.wait()
        if self._error is None:
            return cast(Result, self._result)
        if isinstance(self._error, ImageError):
            return self._error
        raise self._error


class _Ahead(Generic[Source, Result]):
    """What was taken of the sources and not given out yet, and the threads that work on it.

    Attributes:
        failure: what the sources raised, which ends them.
    """

    def __init__(
        self,
        sources: Iterable[Source],
        work: Callable[[Source], Result],
        threads: int,
        in_threads: Callable[[Source], bool],
    ) -> None:
        self._in_threads = in_threads
        self.failure: Exception | None = None
        self._sources: Iterator[Source] = iter(sources)
        self._ended = False
        self._work = work
        self._threads = threads
        self._started = 0
        self._waiting: deque[_Task[Source, Result]] = deque()
        self._queue: Queue = SimpleQueue()

    def take(self, count: int, ahead: int) -> list[tuple[Source, Result | ImageError]]:
        """The next `count` sources, fewer at the end, when they are done; `ahead` more are under way then."""
        while len(self._waiting) < count + ahead and not self._ended:
            self._take_one()
        batch = [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]
        for task in batch:
            task.run()  # rather than wait for the threads; a lone image needs none
        return [(task.source, task.result()) for task in batch]

    def stop(self) -> None:
        for task in self._waiting:
            task.drop()
        for _ in range(self._started):
            self._queue.put(None)

    def _take_one(self) -> None:
        try:
            source = next(self._sources)
        except StopIteration:
            self._ended = True
            return
        except Exception as error:
            self.failure, self._ended = error, True
            return
        task = _Task(source, self._work)
        self._waiting.append(task)
        if not self._in_threads(source):
            task.run()
            return
        self._queue.put(task)
        if self._started < min(self._threads, len(self._waiting) - 1):
            self._started += 1
            # Daemons: a download under way must not keep a program from ending.
            threading.Thread(target=_serve, args=(self._queue,), name="openblip images", daemon=True).start()


def _serve(queue: Queue) -> None:
    while (task := queue.get()) is not None:
        task.run()
        del task  # and its pixels, while this thread waits
