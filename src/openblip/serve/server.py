"""The process: uvicorn around the application, and how it starts and ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from uuid import uuid4

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from openblip.serve.errors import Refusal, body_of
from openblip.serve.limits import Limits
from openblip.serve.observed import JsonHandler, write_log
from openblip.serve.service import Service

BACKLOG = 2048
DRAIN_STEP = 0.05


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that waits only for so long: for the headers of a request, and for a client that takes nothing of its
    answer; uvicorn waits for ever.
    """

    header_seconds = 10.0
    taking_seconds = 30.0
    _late: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # whatever the system does not take is waited for
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not None and self.cycle is not before and self._late is not None:
            self._late.cancel()
            self._late = None
        elif self._late is None and (self.cycle is None or self.cycle.response_complete):
            self._wait_for_headers()

    def send_400_response(self, msg: str) -> None:
        """What cannot be read as HTTP has its answer in the same shape as everything else."""
        refusal = Refusal(400, "this is no HTTP/1.1 that can be read: send it again", "bad_http")
        content = json.dumps(body_of(refusal, uuid4().hex)).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(content))),
            ("connection", "close"),
        ]
        with contextlib.suppress(h11.LocalProtocolError):  # an answer has begun
            for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=content), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._late, self._stuck):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_taking()

    def resume_writing(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
        super().resume_writing()

    def _wait_for_taking(self, before: int | None = None) -> None:
        left = self.transport.get_write_buffer_size()
        if left == before:
            self.transport.abort()
            return
        self._stuck = self.loop.call_later(self.taking_seconds, self._wait_for_taking, left)

    def _wait_for_headers(self) -> None:
        self._late = self.loop.call_later(self.header_seconds, self._too_late)

    def _too_late(self) -> None:
        self._late = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class DrainedServer(uvicorn.Server):
    """A server that ends in order: it finishes what it took, and refuses what comes meanwhile."""

    def __init__(self, config: uvicorn.Config, service: Service, told: Callable[[], None]) -> None:
        super().__init__(config)
        self.service = service
        self.told = told

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C drain; the second one ends at once."""
        loop = asyncio.get_running_loop()
        # Loops on Windows, and those of other threads, take no signals: there, they have their usual effect.
        takes_signals = os.name == "posix" and threading.current_thread() is threading.main_thread()
        with contextlib.ExitStack() as stack:
            for number in (signal.SIGTERM, signal.SIGINT) if takes_signals else ():
                loop.add_signal_handler(number, self._stop, loop)
                stack.callback(loop.remove_signal_handler, number)
            yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.told()

    def stop(self) -> None:
        """Begin to end. From another thread, call it through the loop."""
        self._stop(asyncio.get_running_loop())

    def _stop(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.service.admission.draining:
            self.should_exit = self.force_exit = True
            return
        self.service.admission.draining = True
        self._draining = loop.create_task(self._drain())

    async def _drain(self) -> None:
        while self.service.visits:
            await asyncio.sleep(DRAIN_STEP)
        self.service.drained.set()
        self.should_exit = True


def make_server(app: FastAPI, service: Service, told: Callable[[], None] = lambda: None) -> DrainedServer:
    """A server of an application, to be run on a listening socket.

    Args:
        told: called once it answers.
    """
    limits = service.limits
    config = uvicorn.Config(
        app,
        http=_protocol(limits),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=max(1, round(limits.idle_seconds)),
        timeout_graceful_shutdown=max(1, round(limits.request_seconds)),
    )
    return DrainedServer(config, service, told)


def serve(app: FastAPI, service: Service, listener: socket.socket, told: Callable[[], None] = lambda: None) -> None:
    """Answer until a signal comes, and then until what was taken is done."""
    server = make_server(app, service, told)
    # What clients send wrong is in their answers, and no line each.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    handler = JsonHandler(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        server.run(sockets=[listener])
    finally:
        service.end(timeout=5)
        logging.getLogger().removeHandler(handler)
    write_log({"stopped": True})


def _protocol(limits: Limits) -> type[PatientProtocol]:
    own = {"header_seconds": limits.header_seconds, "taking_seconds": limits.body_seconds}
    return type("LimitedProtocol", (PatientProtocol,), own)
