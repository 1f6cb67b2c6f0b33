"""The thread that owns the model: it writes all texts that are wanted together, and takes the rest in batches.

On a CPU, images that texts are wanted about are encoded beside it; see `openblip.serve.encoding`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, Protocol

from openblip.serve.batch_size import BatchSizes
from openblip.serve.decoding import Decoding
from openblip.serve.encoding import Encoded, EncodingThreads
from openblip.serve.model_jobs import Call, Job, Write, count_known, prepare_thread

if TYPE_CHECKING:
    from openblip.images.encoded_image import EncodedImage
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
        self._encoding: EncodingThreads[Waiting] = EncodingThreads(model, self._decoding.encode, self._wake, threads)
        self._writing_seconds = 0.0
        self._busy = self._news = self._ended = False
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
            self._news = True
            self._changed.notify()
        return waiting

    def call(self, function: Callable[[Model], Any]) -> Future[Any]:
        """Whatever else is done with the model, in its thread."""
        return self.submit(Call(function), None).future

    @property
    def is_idle(self) -> bool:
        with self._changed:
            return not (self._busy or self._queue or len(self._decoding) or self._encoding.owners)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def end(self, timeout: float | None = None) -> None:
        """End the thread after the batch that it is at; what waits is cancelled."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join(timeout)

    def _wake(self) -> None:
        with self._changed:
            self._news = True
            self._changed.notify()

    def _work(self) -> None:
        prepare_thread(self.model, None if self._encoding.count else self._threads)
        while True:
            with self._changed:
                self._busy = False
                self._changed.wait_for(lambda: self._news or self._goes_on or self._ended)
                if self._ended:
                    break
                self._busy, self._news = True, False
            for encoded in self._encoding.finished():
                self._join(encoded)
            with self._changed:
                joining, apart, batch = self._take()
            for owners in apart:
                self._begins(owners)
            self._encoding.begin(apart, writing=len(self._decoding) + len(joining) > 0)
            self._encoding.share()
            if joining:
                self._begins(joining)
                self._join(self._encoding.encode(joining))
            if batch:
                self._run(batch)
            if self._goes_on:
                self._write(TEXTS_SHARE if batch else 0.0)
            with self._changed:
                # There is room again, or a thread has nothing to do: more can begin, perhaps.
                self._news = self._news or bool(joining or batch or (self._queue and not self._encoding.owners))
        for waiting in [*self._queue, *self._encoding.end(), *self._decoding.give_up()]:
            waiting.leave()
            if not waiting.future.done():
                waiting.future.set_exception(CancelledError())

    @property
    def _goes_on(self) -> bool:
        """Whether texts are written now, rather than together with more, whose images are being encoded.

        A step for a few texts takes nearly as long as one for many, and the processor from those images.
        """
        texts = len(self._decoding)
        return texts > 0 and (self._decoding.streams > 0 or texts >= len(self._encoding.owners))

    def _take(self) -> tuple[list[Waiting], list[list[Waiting]], list[Waiting]]:
        """What begins now: texts whose images are encoded here, or by each thread; and the oldest of what else waits.

        With the oldest go all like it.
        """
        texts: list[Waiting] = []
        batch: list[Waiting] = []
        encoding = self._encoding.owners
        room = self.limits.batch - len(self._decoding) - len(encoding)
        streams = self.limits.streams - self._decoding.streams - sum(one.put is not None for one in encoding)
        most = 0
        wanted = deque(one for one in self._queue if not (one.left.is_set() or one.future.cancelled()))
        for _ in range(len(self._queue) - len(wanted)):
            self.watcher.gave_up()
        self._queue = wanted
        for waiting in self._queue:
            if isinstance(waiting.job, Write):
                if len(texts) < room and (waiting.put is None or streams > 0):
                    streams -= waiting.put is not None
                    texts.append(waiting)
            elif not batch:
                most = self._sizes.size(waiting.job.kind)
                batch.append(waiting)
            elif waiting.job == batch[0].job and len(batch) < most:
                batch.append(waiting)
        joining, apart = self._planned(texts)
        taken = {id(one) for group in (joining, batch, *apart) for one in group}
        self._queue = deque(one for one in self._queue if id(one) not in taken)
        started = [[one for one in group if self._starts(one)] for group in apart]
        return (
            [one for one in joining if self._starts(one)],
            [group for group in started if group],
            [one for one in batch if self._starts(one)],
        )

    def _planned(self, texts: list[Waiting]) -> tuple[list[Waiting], list[list[Waiting]]]:
        """Whose images are encoded here, and by each thread."""
        known: list[Waiting] = []
        if self._encoding.count:
            known = [one for one in texts if count_known(self.model, [one.item.image])]
            texts = [one for one in texts if one not in known]
        own, apart = self._encoding.plan(texts, self._sizes.size(JOINING))
        return [*known, *own], apart

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

    def _begins(self, owners: list[Waiting]) -> None:
        self.watcher.batch(self.model, owners[0].job, [waiting.item for waiting in owners])

    def _join(self, encoded: Encoded[Waiting]) -> None:
        """Texts about encoded images are written together with those that are being written."""
        owners: list[Waiting] = []
        images: list[EncodedImage] = []
        wrong: list[tuple[Waiting, Exception]] = []
        for waiting, image in zip(encoded.owners, encoded.images, strict=True):
            if isinstance(image, Exception):
                wrong.append((waiting, image))
            else:
                owners.append(waiting)
                images.append(image)
        for waiting, error in [*wrong, *self._decoding.join(owners, images)]:
            self._failed(waiting, error)
        took = encoded.computed if self._encoding.count else encoded.seconds
        self._sizes.took(JOINING, len(encoded.owners), took)
        self._writing_seconds += encoded.seconds / max(1, self._encoding.count)
        self.watcher.computed(encoded.owners[0].job, len(encoded.owners), encoded.seconds)

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
