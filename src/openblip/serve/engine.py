"""The thread that owns the model: it writes all texts that are wanted together, and takes the rest in batches."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, Protocol

from openblip.serve.batch_size import BatchSizes
from openblip.serve.decoding import Decoding
from openblip.serve.model_jobs import Call, Job, Write, prepare_thread

if TYPE_CHECKING:
    from openblip.models.model import Model
    from openblip.serve.limits import Limits

TEXTS_SHARE = 0.1
"""Seconds that texts get between two batches of other things."""
JOINING = "joining"
"""What batches of images are timed as that are encoded for texts to be written about them."""


class Watcher(Protocol):
    """Who is told what the engine does, in its thread."""

    def batch(self, model: Model, job: Job, items: list[Any]) -> None:
        """A batch begins."""

    def computed(self, job: Job, items: int, seconds: float) -> None:
        """A batch is done."""

    def waited(self, seconds: float) -> None:
        """Something waited for so long before it began."""

    def gave_up(self) -> None:
        """Whoever wanted something left before it was done."""

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
        self._decoding: Decoding[Waiting] = Decoding(model, limits.batch * limits.beams)
        self._writing_seconds = 0.0
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
            return not (self._busy or self._queue or len(self._decoding))

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
                self._changed.wait_for(lambda: self._queue or len(self._decoding) or self._ended)
                if self._ended:
                    break
                self._busy = True
                joining, batch = self._take()
            if joining:
                self._join(joining)
            if batch:
                self._run(batch)
            self._write(TEXTS_SHARE if batch else 0.0)
        for waiting in [*self._queue, *self._decoding.give_up()]:
            waiting.leave()
            if not waiting.future.done():
                waiting.future.set_exception(CancelledError())

    def _take(self) -> tuple[list[Waiting], list[Waiting]]:
        """The texts that join those that are being written, and the oldest of what else waits with all like it."""
        joining: list[Waiting] = []
        batch: list[Waiting] = []
        rest: deque[Waiting] = deque()
        room = min(self._sizes.size(JOINING), self.limits.batch - len(self._decoding))
        streams, most = self.limits.streams - self._decoding.streams, 0
        for waiting in self._queue:
            if waiting.left.is_set() or waiting.future.cancelled():
                self.watcher.gave_up()
                continue
            target: Any = rest
            if isinstance(waiting.job, Write):
                if len(joining) < room and (waiting.put is None or streams > 0):
                    streams -= waiting.put is not None
                    target = joining
            elif not batch:
                most = self._sizes.size(waiting.job.kind)
                target = batch
            elif waiting.job == batch[0].job and len(batch) < most:
                target = batch
            target.append(waiting)
        self._queue = rest
        return [one for one in joining if self._starts(one)], [one for one in batch if self._starts(one)]

    def _starts(self, waiting: Waiting) -> bool:
        """Whether somebody still wants it; from now on it cannot be cancelled any more."""
        if not waiting.future.set_running_or_notify_cancel():
            self.watcher.gave_up()
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
        seconds = time.monotonic() - begun
        self._sizes.took(job.kind, len(batch), seconds)
        self._did(len(batch), seconds)
        self.watcher.computed(job, len(batch), seconds)
        for waiting, result in zip(batch, results, strict=True):
            waiting.future.set_result(result)

    def _did(self, items: int, seconds: float) -> None:
        self.seconds_an_item += 0.1 * (seconds / items - self.seconds_an_item)

    def _failed(self, waiting: Waiting, error: Exception) -> None:
        self.watcher.failed(error)
        waiting.future.set_exception(error)

    def _join(self, joining: list[Waiting]) -> None:
        """Encode images, for texts about them to be written together with those that are being written."""
        job = joining[0].job
        self.watcher.batch(self.model, job, [waiting.item for waiting in joining])
        begun = time.monotonic()
        try:
            wrong = self._decoding.join(joining)
        except Exception as error:
            if len(joining) > 1:
                for waiting in joining:
                    self._join([waiting])
                return
            wrong = [(joining[0], error)]
        for waiting, problem in wrong:
            self._failed(waiting, problem)
        seconds = time.monotonic() - begun
        self._sizes.took(JOINING, len(joining), seconds)
        self._writing_seconds += seconds
        self.watcher.computed(job, len(joining), seconds)

    def _write(self, seconds: float) -> None:
        """Each text a token further, and again while there is time."""
        until = time.monotonic() + seconds
        while len(self._decoding):
            for waiting in self._decoding.leave():
                self.watcher.gave_up()
                waiting.future.set_exception(CancelledError())
            if not len(self._decoding):
                return
            begun = time.monotonic()
            try:
                done = self._decoding.step()
            except Exception as error:
                self._write_alone(self._decoding.give_up(), error)
                return
            self._writing_seconds += time.monotonic() - begun
            if done:
                self._did(len(done), self._writing_seconds)
                self._writing_seconds = 0.0
            for waiting, result in done:
                waiting.future.set_result(result)
            if time.monotonic() >= until:
                return

    def _write_alone(self, owners: list[Waiting], error: Exception) -> None:
        """There is no memory for all, say: each by itself, apart from streams, of which pieces are gone already."""
        for waiting in owners:
            if waiting.put is None:
                self._run([waiting])
            else:
                self._failed(waiting, error)
