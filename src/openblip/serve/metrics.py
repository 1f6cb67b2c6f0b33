"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from openblip import __version__
from openblip.errors import OpenBlipError
from openblip.serve.model_jobs import Classify, EmbedImages, Job, MatchTexts, Write, count_known

if TYPE_CHECKING:
    from openblip.models.model import Model

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Numbers of one server, in a registry of its own; any thread may add to them.

    Attributes:
        on_failure: told of errors that are no fault of a client.
    """

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, model_name: str) -> None:
        self.on_failure: Callable[[BaseException], None] = lambda error: None
        own = self.registry = CollectorRegistry()
        Info("openblip", "The server.", registry=own).info({"version": __version__, "model": model_name})
        self.requests = Counter("openblip_requests", "Requests, answered.", ["path", "status"], registry=own)
        self.request_seconds = Histogram(
            "openblip_request_seconds", "Time from the first byte to the last.", ["path"], buckets=SECONDS, registry=own
        )
        self.stage_seconds = Histogram(
            "openblip_stage_seconds",
            "Time of a request's stages: its body arrives, its images are decoded, it waits; and of batches.",
            ["stage"],
            buckets=SECONDS,
            registry=own,
        )
        self.refused = Counter("openblip_refused", "Requests that were refused.", ["code"], registry=own)
        self.left = Counter("openblip_clients_left", "Requests whose client left before the answer.", registry=own)
        self.given_up = Counter(
            "openblip_given_up",
            "Images and texts whose client left before the model was done with them.",
            registry=own,
        )
        self.queued = Gauge("openblip_queue_images", "Images that wait for the model.", registry=own)
        self.batch_images = Histogram(
            "openblip_batch_items", "Items of a batch.", buckets=(1, 2, 4, 8, 16, 24, 32, 64), registry=own
        )
        self.images = Counter("openblip_images", "Images that the model was asked about.", registry=own)
        self.cache = Counter(
            "openblip_image_cache", "Images that were encoded already, or not.", ["result"], registry=own
        )
        self.answers = Counter(
            "openblip_kept_texts", "Texts that were written already, or not.", ["result"], registry=own
        )
        self.uploads = Counter(
            "openblip_kept_uploads", "Image files that were decoded already, or not.", ["result"], registry=own
        )
        self.tokens = Counter("openblip_tokens", "Tokens that were read, and written.", ["direction"], registry=own)
        self.failures = Counter("openblip_failures", "Errors of the server's own.", registry=own)

    def page(self) -> bytes:
        return generate_latest(self.registry)

    def count_tokens(self, read: int, written: int) -> None:
        self.tokens.labels("read").inc(read)
        self.tokens.labels("written").inc(written)

    # What the engine tells.

    def batch(self, model: Model, job: Job, items: list[Any]) -> None:
        self.batch_images.observe(len(items))
        images = []
        if isinstance(job, Write):
            images = [item.image for item in items]
        elif isinstance(job, MatchTexts | Classify | EmbedImages):
            images = items
        if images:
            known = count_known(model, images)
            self.images.inc(len(images))
            self.cache.labels("hit").inc(known)
            self.cache.labels("miss").inc(len(images) - known)

    def computed(self, job: Job, items: int, seconds: float) -> None:
        self.stage_seconds.labels("batch").observe(seconds)

    def waited(self, seconds: float) -> None:
        self.stage_seconds.labels("wait").observe(seconds)

    def gave_up(self) -> None:
        self.given_up.inc()

    def failed(self, error: BaseException) -> None:
        if not isinstance(error, OpenBlipError):
            self.failures.inc()
            self.on_failure(error)
