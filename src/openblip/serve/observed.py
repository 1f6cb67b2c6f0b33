"""The outermost layer of the server: every request has an id, is counted and logged, and never sees a traceback."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import traceback
from contextlib import suppress
from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openblip.errors import printable
from openblip.serve.errors import ClientLeftError, refusal_of, send_refusal
from openblip.serve.metrics import Metrics

GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
OTHER = "other"
"""What paths are counted as that are not ours."""


class Observed:
    """Names, times, counts and logs requests, and answers what nobody else has caught.

    Args:
        paths: those that are counted by their name.
        logs: whether a line of JSON is written for each request; errors of the server's own are always written.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str], *, logs: bool = True) -> None:
        self.app = app
        self.metrics = metrics
        self.paths = paths
        self.logs = logs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        notes: dict[str, Any] = {}
        scope.setdefault("state", {}).update(request_id=request_id, notes=notes)
        begun, status = time.monotonic(), 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
                message = {**message, "headers": headers}
            await send(message)

        # What answers GET answers HEAD as well, as load balancers ask; the server leaves out the body.
        served = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        try:
            await self.app(served, receive, send_named)
        except ClientLeftError:
            status = 499
            self.metrics.left.inc()
        except Exception as error:
            if status:  # the answer has begun, and can only be cut short
                self._trace(request_id, error)
            else:
                refusal = refusal_of(error)
                if refusal.status_code == 500:
                    self._trace(request_id, error)
                await send_refusal(send_named, refusal, request_id)
        finally:
            seconds = time.monotonic() - begun
            path = scope["path"] if scope["path"] in self.paths else OTHER
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.request_seconds.labels(path).observe(seconds)
            if status in (413, 415, 422, 429, 503, 504):
                self.metrics.refused.labels(notes.get("code", str(status))).inc()
            if self.logs:
                line = {"id": request_id, "method": scope["method"], "path": scope["path"], "status": status}
                write_log({**line, "ms": round(1000 * seconds, 1), **notes})

    def _trace(self, request_id: str, error: BaseException) -> None:
        self.metrics.failures.inc()
        log_failure(error, request_id)


def log_failure(error: BaseException, request_id: str | None = None) -> None:
    """An error of the server's own, with where it happened."""
    where = traceback.format_exception(type(error), error, error.__traceback__)
    write_log({"id": request_id, "failed": _told(error), "trace": "".join(where)[-8000:]})


class JsonHandler(logging.Handler):
    """Lines of libraries as JSON, too."""

    def emit(self, record: logging.LogRecord) -> None:
        write_log({"level": record.levelname, "logger": record.name, "message": record.getMessage()})


def write_log(line: dict[str, Any]) -> None:
    """One line of JSON on standard error, which may be closed."""
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    shown = {
        name: printable(value, 8000) if isinstance(value, str) and name != "trace" else value
        for name, value in line.items()
    }
    with suppress(OSError, ValueError):
        print(json.dumps({"time": now, **shown}), file=sys.stderr, flush=True)


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {printable(str(error), 500)}"


def _request_id(scope: Scope) -> str:
    """The client's own id, if it has a harmless one."""
    given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    return given if GIVEN_ID.fullmatch(given) else uuid4().hex
