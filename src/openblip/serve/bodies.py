"""The body of a request: whole and within its limits before anyone looks at it, or refused.

A middleware: what is behind it reads a body that is there. What is refused is answered at once; what the client still
sends is then read and forgotten, as most clients look for an answer only when they have sent all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openblip.serve.errors import ClientLeftError, Refusal, busy, over_limit, send_refusal
from openblip.serve.limits import MEGABYTE, Limits

SWALLOWED, SWALLOW_SECONDS = 128 * MEGABYTE, 30.0
"""Of a body that was refused; who sends more, or sends it more slowly, is cut off."""
MOST_VALUES = 100_000
"""Of a body of JSON: while millions of them are read, nobody else is answered."""
SPARE = 64_000
"""Bytes of a form beside its files."""


class Bodies:
    """Reads bodies whole.

    Args:
        may_come: raises a Refusal when there is no room for another request; asked before its body is read.
        limit_of: the name of the limit, in megabytes, of a path's bodies.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        may_come: Callable[[], None],
        limit_of: Mapping[str, str],
        measured: Callable[[float], None],
    ) -> None:
        self.app = app
        self.limits = limits
        self.may_come = may_come
        self.limit_of = limit_of
        self.measured = measured
        self.taken = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            if self.taken + size > self.limits.bodies_mb * MEGABYTE:
                raise busy(1, "the server is receiving as much as it has memory for: try again", "bodies_mb", 503)
            self.taken += size
            held += size

        reader = BodyReader(receive)
        try:
            try:
                if scope["path"] in self.limit_of:
                    self.may_come()
                begun = time.monotonic()
                body = await self._read(scope, reader, hold)
                self.measured(time.monotonic() - begun)
            except Refusal as refusal:
                await refuse(scope, reader, send, refusal)
                return
            await self.app(scope, _replay(body, receive), send)
        finally:
            self.taken -= held

    async def _read(self, scope: Scope, reader: BodyReader, hold: Callable[[int], None]) -> bytes:
        name = self.limit_of.get(scope["path"], "json_mb")
        most = int(getattr(self.limits, name) * MEGABYTE) + (0 if name == "json_mb" else SPARE)
        declared = int(dict(scope["headers"]).get(b"content-length", b"0"))
        coding = dict(scope["headers"]).get(b"content-encoding", b"identity").decode("latin-1").strip().lower()
        if coding not in ("", "identity"):
            raise Refusal(415, f"the body of the request is encoded as {coding[:50]}: send it as it is", "encoded_body")
        large = over_limit(413, "the body of the request is too large", name, getattr(self.limits, name))
        if declared > most:
            raise large
        hold(declared)
        parts: list[bytes] = []
        size = 0
        until = time.monotonic() + self.limits.body_seconds
        while not reader.ended:
            try:
                part = await asyncio.wait_for(reader.next(), max(0.001, until - time.monotonic()))
            except asyncio.TimeoutError:
                raise over_limit(
                    408, "the body of the request came too slowly", "body_seconds", self.limits.body_seconds
                ) from None
            size += len(part)
            if size > most:
                raise large
            if size > declared:
                hold(size - declared)
                declared = size
            parts.append(part)
        body = b"".join(parts)
        if name == "json_mb" and body.count(b",") > MOST_VALUES:
            raise Refusal(
                413, f"the JSON of the request has more than {MOST_VALUES} values: send less at once", "json_values"
            )
        return body


class BodyReader:
    """The parts of a body as they come."""

    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        self.ended = False

    async def next(self) -> bytes:
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        self.ended = not message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body


async def refuse(scope: Scope, reader: BodyReader, send: Send, refusal: Refusal) -> None:
    """Answer a request whose body was not read to its end."""
    state = scope.setdefault("state", {})
    state.setdefault("notes", {})["code"] = refusal.code
    await send_refusal(send, refusal, state.setdefault("request_id", uuid4().hex), more=True)
    until = time.monotonic() + SWALLOW_SECONDS
    size = 0
    with suppress(asyncio.TimeoutError, ClientLeftError):
        while not reader.ended and size < SWALLOWED:
            size += len(await asyncio.wait_for(reader.next(), max(0.001, until - time.monotonic())))
    await send({"type": "http.response.body", "body": b""})


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body as one message; then what the client does."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message
