"""The thread that owns the model: it takes what waits as one batch, as soon as the last one is done."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, Protocol

from openblip.serve.batch_size import BatchSizes
from openblip.serve.model_jobs import Call, Job, Prompted, Streamed, Write, prepare_thread

if TYPE_CHECKING:
    from openblip.models.model import Model
    from openblip.serve.limits import Limits

STREAMS_SHARE = 0.1
"""Seconds that streams get between two batches, all together."""


class Watcher(Protocol):
    """Who is told what the engine does, in its thread."""

    def batch(self, model: Model, job: Job, items: list[Any]) -> None:
        """A batch begins."""

    def computed(self, job: Job, items: int, seconds: float) -> None:
        """A batch is done."""

    def waited(self, seconds: float) -> None:
        """Something waited for so long before it began."""

    def failed(self, error: BaseException) -> None:
        """The model failed, which is no fault of the client."""


class Waiting:
    """One thing that somebody wants of the model.

    Attributes:
        future: of the result, or the error; of a stream, what was written when it has ended.
        put: of a stream: called in the engine's thread with every piece.
        begun: called there, too, as the model begins with it.
    """

    def __init__(
        self, job: Job, item: Any, put: Callable[[str], None] | None = None, begun: Callable[[], None] | None = None
    ) -> None:
        self.job = job
        self.item = item
        self.put = put
        self.begun = begun
        self.future: Future[Any] = Future()
        self.since = time.monotonic()
        self.left = threading.Event()

    def leave(self) -> None:
        """Nobody wants it any more: it is passed over, or a stream ended before its next token."""
        self.left.set()
        self.future.cancel()


class Engine:
    """A model in a thread of its own.

    Args:
        limits: of batches and streams.
        threads: that share PyTorch's work on a CPU; None for PyTorch's own choice.
    """

    def __init__(self, model: Model, limits: Limits, watcher: Watcher, threads: int | None = None) -> None:
        self.model = model
        self.limits = limits
        self.watcher = watcher
        self.seconds_an_item = 0.1
        self._threads = threads
        self._sizes = BatchSizes(limits.batch, limits.batch_seconds)
        self._changed = threading.Condition()
        self._queue: deque[Waiting] = deque()
        self._streams: deque[tuple[Waiting, Streamed]] = deque()
        self._busy = False
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="openblip engine", daemon=True)

    def start(self) -> Engine:
        self._thread.start()
        return self

    def submit(
        self,
        job: Job,
        item: Any,
        *,
        put: Callable[[str], None] | None = None,
        begun: Callable[[], None] | None = None,
    ) -> Waiting:
        """Something for the model to do. Any thread may call this.

        Args:
            put: called, in the engine's thread, with the pieces of a text as they are written.
            begun: called there, too, as the model begins with it.

        Raises:
            RuntimeError: the engine was ended.
        """
        waiting = Waiting(job, item, put, begun)
        with self._changed:
            if self._ended:
                raise RuntimeError("the engine has ended")
            self._queue.append(waiting)
            self._changed.notify()
        return waiting

    def call(self, function: Callable[[Model], Any]) -> Future[Any]:
        """Whatever else is done with the model, in its thread."""
        return self.submit(Call(function), None).future

    @property
    def is_idle(self) -> bool:
        with self._changed:
            return not (self._busy or self._queue or self._streams)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def end(self, timeout: float | None = None) -> None:
        """End the thread after the batch that it is at; what waits is cancelled."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join(timeout)

    def _work(self) -> None:
        prepare_thread(self.model, self._threads)
        while True:
            with self._changed:
                self._busy = False
                self._changed.wait_for(lambda: self._queue or self._streams or self._ended)
                if self._ended:
                    break
                self._busy = True
                beginning, batch = self._take()
            for waiting in beginning:
                self._begin(waiting)
            if batch:
                self._run(batch)
            self._go_on(STREAMS_SHARE if batch else 0.0)
        for waiting in [*self._queue, *(waiting for waiting, _ in self._streams)]:
            waiting.leave()
            if not waiting.future.done():
                waiting.future.set_exception(CancelledError())

    def _take(self) -> tuple[list[Waiting], list[Waiting]]:
        """The streams that begin now, and the oldest of what else waits with all that goes together with it."""
        beginning: list[Waiting] = []
        batch: list[Waiting] = []
        rest: deque[Waiting] = deque()
        most = 0
        for waiting in self._queue:
            if waiting.left.is_set() or waiting.future.cancelled():
                continue
            if waiting.put is not None:
                taken = len(beginning) + len(self._streams) < self.limits.streams
                target: Any = beginning if taken else rest
            elif not batch:
                most = self._sizes.size(waiting.job.kind)
                target = batch
            else:
                target = batch if waiting.job == batch[0].job and len(batch) < most else rest
            target.append(waiting)
        self._queue = rest
        return [one for one in beginning if self._starts(one)], [one for one in batch if self._starts(one)]

    def _starts(self, waiting: Waiting) -> bool:
        """Whether somebody still wants it; from now on it cannot be cancelled any more."""
        if not waiting.future.set_running_or_notify_cancel():
            return False
        self.watcher.waited(time.monotonic() - waiting.since)
        if waiting.begun is not None:
            waiting.begun()
        return True

    def _run(self, batch: list[Waiting]) -> None:
        job, items = batch[0].job, [waiting.item for waiting in batch]
        self.watcher.batch(self.model, job, items)
        begun = time.monotonic()
        try:
            results = job.run(self.model, items)
        except Exception as error:
            if len(batch) > 1:
                # One of them is at fault, or there is no memory for all: each by itself.
                for waiting in batch:
                    self._run([waiting])
                return
            self._failed(batch[0], error)
            return
        self._took(job, len(batch), time.monotonic() - begun)
        for waiting, result in zip(batch, results, strict=True):
            waiting.future.set_result(result)

    def _took(self, job: Job, items: int, seconds: float) -> None:
        self._sizes.took(job.kind, items, seconds)
        self.seconds_an_item += 0.1 * (seconds / items - self.seconds_an_item)
        self.watcher.computed(job, items, seconds)

    def _failed(self, waiting: Waiting, error: Exception) -> None:
        self.watcher.failed(error)
        waiting.future.set_exception(error)

    def _begin(self, waiting: Waiting) -> None:
        job, item = waiting.job, waiting.item
        assert isinstance(job, Write) and isinstance(item, Prompted)
        self.watcher.batch(self.model, job, [item])
        try:
            streamed = job.stream(self.model, item)
        except Exception as error:
            self._failed(waiting, error)
            return
        self._streams.append((waiting, streamed))

    def _go_on(self, seconds: float) -> None:
        """Streams in turn, each a piece further, and again while there is time."""
        until = time.monotonic() + seconds
        for _ in range(len(self._streams)):
            self._next_piece()
        while self._streams and time.monotonic() < until:
            self._next_piece()

    def _next_piece(self) -> None:
        waiting, streamed = self._streams.popleft()
        if waiting.left.is_set():
            # Let go of, the generator frees what it had read.
            waiting.future.set_exception(CancelledError())
            return
        try:
            piece = next(streamed.pieces, None)
        except Exception as error:
            self._failed(waiting, error)
            return
        if piece is None:
            waiting.future.set_result(streamed)
            return
        assert waiting.put is not None
        waiting.put(piece)
        self._streams.append((waiting, streamed))
