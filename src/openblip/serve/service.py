"""One model for many clients: what every endpoint does between a request and its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from openblip.images.prefetch import count_threads
from openblip.serve.admission import Admission
from openblip.serve.engine import Engine, Waiting
from openblip.serve.errors import ClientLeftError, busy, over_limit
from openblip.serve.kept import KeptTexts, KeptUploads
from openblip.serve.limits import Limits
from openblip.serve.metrics import Metrics
from openblip.serve.model_jobs import Job, Prompted, Streamed, Write, Written
from openblip.serve.observed import log_failure
from openblip.serve.uploads import Remote, Source, Upload, fetch, read_upload
from openblip.web.policy import UrlPolicy

if TYPE_CHECKING:
    from openblip.images.encoded_image import ReadImage
    from openblip.models.model import Model


FETCHERS = 16
"""Images that are fetched at the same time, each of up to the size of one image, and held until it is decoded."""


class Service:
    """A model in its engine, the queue before it, and the threads that fetch and decode images for it.

    Args:
        name: what clients call the model.
        urls: which web addresses images are fetched from, within the limits; none unless it names hosts.
        threads: of PyTorch in the engine; None for its own choice.
    """

    def __init__(
        self,
        model: Model,
        limits: Limits | None = None,
        *,
        name: str | None = None,
        threads: int | None = None,
        urls: UrlPolicy | None = None,
    ) -> None:
        self.model = model
        self.limits = limits or Limits()
        urls = urls or UrlPolicy()
        seconds = min(urls.total_s, self.limits.fetch_seconds)
        self.urls = replace(urls, max_bytes=min(urls.max_bytes, self.limits.file_bytes), total_s=seconds)
        self.name = name or model.name
        self.metrics = Metrics(self.name)
        self.metrics.on_failure = log_failure
        self.engine = Engine(model, self.limits, self.metrics, threads)
        self.admission = Admission(self.limits.queue, lambda: self.engine.seconds_an_item, self.metrics.queued.set)
        self.decoders = ThreadPoolExecutor(count_threads(), "openblip decoder")
        self.fetchers = ThreadPoolExecutor(FETCHERS, "openblip fetcher")
        self.fetching = asyncio.Semaphore(FETCHERS)
        self.written = KeptTexts(self.limits)
        self.uploads = KeptUploads(self.limits)
        self.visits = 0
        self.drained = asyncio.Event()
        """Set when the server is being stopped and all that it took is done."""

    def start(self) -> Service:
        self.engine.start()
        return self

    def end(self, timeout: float | None = None) -> None:
        self.engine.end(timeout)
        self.decoders.shutdown(wait=False, cancel_futures=True)
        self.fetchers.shutdown(wait=False, cancel_futures=True)

    @property
    def is_ready(self) -> bool:
        return self.engine.is_alive and not self.admission.draining

    def visit(self, request: Request | None, images: int) -> Visit:
        """A request that wants something of the model. Raises a Refusal where no more images may wait.

        Args:
            request: of the client who may leave; None where somebody else looks after that.
        """
        if images > self.limits.images:
            raise over_limit(413, f"the request has {images} images", "images", self.limits.images)
        return Visit(self, request, max(1, images))


class Visit:
    """What one request does with the model; a context manager, at whose end nothing of it waits any more."""

    def __init__(self, service: Service, request: Request | None, images: int) -> None:
        self.service = service
        self.limits = service.limits
        self.request = request
        self.until = time.monotonic() + self.limits.request_seconds
        self.place = service.admission.take(images)
        scope = {} if request is None else request.scope
        self.notes: dict[str, Any] = scope.get("state", {}).get("notes", {})
        self.notes["images"] = images
        self.waiting: list[Waiting] = []
        self.ended = False
        service.visits += 1

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Give back what the request still holds; what waits of it is passed over. More than once does no harm."""
        if not self.ended:
            self.ended = True
            self.service.visits -= 1
        self.place.free()
        for one in self.waiting:
            one.leave()

    async def read(self, uploads: Sequence[Source]) -> list[ReadImage | Exception]:
        """Images, fetched if need be, and decoded; in place of one that cannot be used its error."""
        begun = time.monotonic()
        fetched = [begun]
        reading = asyncio.gather(*(self._read(upload, fetched) for upload in uploads), return_exceptions=True)
        found = await self._patiently(reading, self._time_left())
        for one in found:
            if isinstance(one, BaseException):
                self.place.begin()
        if len(fetched) > 1:
            self._took("fetch", begun, max(fetched))
        self._took("decode", max(fetched))
        return list(found)

    async def _read(self, upload: Source, fetched: list[float]) -> ReadImage:
        """Args: fetched: when what came from the web had come."""
        loop, service = asyncio.get_running_loop(), self.service
        if not isinstance(upload, Remote):
            return await self._decoded(upload)
        async with service.fetching:
            try:
                upload = await loop.run_in_executor(service.fetchers, fetch, upload, service.urls, self.limits)
            finally:
                fetched.append(time.monotonic())
            return await self._decoded(upload)

    async def _decoded(self, upload: Upload) -> ReadImage:
        """An image, decoded now or when somebody sent the same file before."""
        service = self.service
        key = await service.uploads.key(upload)
        found = service.uploads.find(key, upload)
        if key is not None:
            service.metrics.uploads.labels("miss" if found is None else "hit").inc()
        if found is None:
            read = partial(read_upload, service.model.components.encoder, upload, self.limits)
            found = await asyncio.get_running_loop().run_in_executor(service.decoders, read)
            service.uploads.keep(key, found)
        return found

    async def read_one(self, upload: Source) -> ReadImage:
        """An image, decoded. Raises what is wrong with it."""
        (found,) = await self.read([upload])
        if isinstance(found, Exception):
            raise found
        return found

    async def run(self, job: Job, items: Sequence[Any]) -> list[Any]:
        """What the model makes of each item. Each but the first of an image follows behind it.

        Raises:
            Refusal: the items waited, or the request took, for too long.
        """
        begun = time.monotonic()
        kept = [self.service.written.find(job, item) for item in items]
        asked = [item for item, one in zip(items, kept, strict=True) if one is None]
        if isinstance(job, Write):
            self.service.metrics.answers.labels("hit").inc(len(items) - len(asked))
            self.service.metrics.answers.labels("miss").inc(len(asked))
        waiting = [self.service.engine.submit(job, item, begun=self.place.begin) for item in asked]
        self.waiting += waiting
        if waiting:
            work = asyncio.gather(*(asyncio.wrap_future(one.future) for one in waiting))
            found = iter(await self._in_turn(work, waiting))
        else:
            found = iter(())
        results = [next(found) if one is None else one for one in kept]
        for item, result in zip(items, results, strict=True):
            self.service.written.keep(job, item, result)
            if isinstance(result, Written):
                self._count(result.read, result.written)
        self._took("model", begun)
        return results

    async def stream(self, job: Write, item: Prompted) -> AsyncGenerator[str | Streamed, None]:
        """The pieces of a text as they are written, and at last all that is known of it.

        The first piece is waited for in here: until then, what is wrong is raised as by `run`.
        """
        kept = self.service.written.find_stream(job, item)
        self.service.metrics.answers.labels("miss" if kept is None else "hit").inc()
        if kept is not None:
            return self._again(*kept)
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()

        def put(piece: str | None) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        waiting = self.service.engine.submit(job, item, put=put, begun=self.place.begin)
        self.waiting.append(waiting)
        waiting.future.add_done_callback(lambda _: None if loop.is_closed() else put(None))
        first = await self._in_turn(asyncio.ensure_future(pieces.get()), [waiting])
        return self._pieces(first, pieces, waiting)

    async def _pieces(
        self, piece: str | None, pieces: asyncio.Queue[str | None], waiting: Waiting
    ) -> AsyncGenerator[str | Streamed, None]:
        text = ""
        while piece is not None:
            text += piece
            yield piece
            piece = await asyncio.wait_for(pieces.get(), max(0.001, self._time_left()))
        streamed: Streamed = waiting.future.result()
        self.service.written.keep_stream(waiting.job, waiting.item, text, streamed)
        self._count(streamed.read, streamed.written)
        yield streamed

    async def _again(self, text: str, streamed: Streamed) -> AsyncGenerator[str | Streamed, None]:
        """A text that was written before, in one piece."""
        self._count(streamed.read, streamed.written)
        if text:
            yield text
        yield streamed

    async def _in_turn(self, work: asyncio.Future[Any], waiting: Sequence[Waiting]) -> Any:
        """Wait for work, of which something has to begin within the time that a request may wait in the queue."""
        try:
            return await self._patiently(work, min(self.limits.queue_seconds, self._time_left()), keep=True)
        except asyncio.TimeoutError:
            if not all(one.future.running() or one.future.done() for one in waiting):
                _drop(work)
                seconds = self.limits.queue_seconds
                raise busy(
                    self.service.admission.waiting * self.service.engine.seconds_an_item,
                    f"the model had no time for this request within {seconds:g} seconds (--limit queue_seconds=N): try "
                    "again",
                    "queue_seconds",
                    503,
                ) from None
        return await self._patiently(work, self._time_left())

    async def _patiently(self, work: asyncio.Future[Any], seconds: float, keep: bool = False) -> Any:
        """Wait for work, unless the client leaves, or it takes too long.

        Args:
            keep: raise TimeoutError then, and let the work go on.
        """
        gone: asyncio.Future[Any] = asyncio.ensure_future(_left(self.request))
        late = False
        try:
            done, _ = await asyncio.wait([work, gone], timeout=max(0.001, seconds), return_when=asyncio.FIRST_COMPLETED)
            if work in done:
                return work.result()
            if gone in done:
                raise ClientLeftError
            late = True
            if keep:
                raise asyncio.TimeoutError
            seconds = self.limits.request_seconds
            raise over_limit(504, f"the request took more than {seconds:g} seconds", "request_seconds", seconds)
        finally:
            gone.cancel()
            if not (keep and late) and not work.done():
                _drop(work)

    def _time_left(self) -> float:
        return self.until - time.monotonic()

    def _count(self, read: int, written: int) -> None:
        self.service.metrics.count_tokens(read, written)
        self.notes["tokens"] = self.notes.get("tokens", 0) + written

    def _took(self, stage: str, begun: float, ended: float | None = None) -> None:
        seconds = (time.monotonic() if ended is None else ended) - begun
        self.service.metrics.stage_seconds.labels(stage).observe(seconds)
        self.notes[f"{stage}_ms"] = round(1000 * seconds, 1)


def _drop(work: asyncio.Future[Any]) -> None:
    """Cancel work that nobody waits for; nor does anybody want to be told how it ended."""
    work.add_done_callback(lambda done: done.cancelled() or done.exception())
    work.cancel()


async def _left(request: Request | None) -> None:
    """Until the client leaves."""
    if request is None:
        await asyncio.Event().wait()
        return
    while (await request.receive())["type"] != "http.disconnect":
        pass
