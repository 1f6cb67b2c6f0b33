"""Clients that send, or take, next to nothing: they are waited for as long as the limits say, whatever they drip."""

from __future__ import annotations

import select
import socket
from pathlib import Path

import pytest
from starlette.responses import Response
from starlette.routing import Route

from openblip.models.model import Model
from openblip.serve.limits import Limits

from .conftest import Served, served_by
from .test_faults import answer_of, connect, form_of, is_quiet, request_of, until

PACE = 0.01


def drip(connection: socket.socket, data: bytes) -> int:
    """Bytes that were sent, one by one, until the server answered or closed."""
    for sent in range(len(data)):
        if select.select([connection], [], [], PACE)[0]:
            return sent
        try:
            connection.sendall(data[sent : sent + 1])
        except OSError:
            return sent
    return len(data)


def connections(served: Served) -> int:
    return len(served.server.server_state.connections)


@pytest.mark.parametrize(
    "start",
    [b"", b"POST /caption HT", b"POST /caption HTTP/1.1\r\nHost: here\r\nX-Long: "],
    ids=["first line", "method", "header"],
)
def test_dripped_headers(tiny_model: Model, start: bytes) -> None:
    with served_by(tiny_model, Limits(header_seconds=0.1)) as served, connect(served) as connection:
        connection.sendall(start)
        assert drip(connection, b"POST /" + b"x" * 60_000) < 60_000
        assert connection.recv(1) == b""
        until(lambda: connections(served) == 0)


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("place", ["in the form's head", "in the image"])
def test_dripped_bodies(tiny_model: Model, image_paths: list[Path], chunked: bool, place: str) -> None:
    body = form_of(image_paths[0].read_bytes() * 1000)
    begun = 3 if place == "in the form's head" else 1000
    with served_by(tiny_model, Limits(body_seconds=0.1)) as served, connect(served) as connection:
        if chunked:
            connection.sendall(request_of(b"", "Transfer-Encoding: chunked"))
            connection.sendall(b"%x\r\n%s\r\n" % (begun, body[:begun]))
            rest = b"".join(b"1\r\n%c\r\n" % byte for byte in body[begun:20_000])
        else:
            connection.sendall(request_of(body[:begun], f"Content-Length: {len(body)}"))
            rest = body[begun:]
        assert drip(connection, rest) < len(rest)
        status, told = answer_of(connection)
        assert (status, told["error"]["code"]) == (408, "body_seconds")
        connection.close()
        until(lambda: is_quiet(served) and connections(served) == 0)


def test_many_slow_clients_keep_nobody_waiting(served: Served, image_paths: list[Path]) -> None:
    slow = [connect(served) for _ in range(200)]
    for number, connection in enumerate(slow):
        connection.sendall(request_of(b"--b\r\n", "Content-Length: 100000")[: None if number % 2 else 40])
    assert served.http.get("/health").status_code == 200
    assert served.post("/caption", image_paths[0]).status_code == 200
    for connection in slow:
        connection.close()
    until(lambda: is_quiet(served))


def test_an_answer_that_nobody_takes_ends(tiny_model: Model) -> None:
    """More than the system keeps for a connection; the client reads nothing, or stops after a part of it."""
    size = 30_000_000
    with served_by(tiny_model, Limits(body_seconds=0.1)) as served:
        served.server.config.app.router.routes.append(Route("/large", lambda _: Response(bytes(size))))  # type: ignore[union-attr]
        for taken in (0, 100_000):
            with connect(served) as connection:
                connection.sendall(b"GET /large HTTP/1.1\r\nHost: here\r\n\r\n")
                while taken > 0:
                    taken -= len(connection.recv(taken))
                assert connection.fileno() >= 0
                until(lambda: connections(served) == 0)
        # Whoever takes it slowly has all of it, however long that lasts.
        with connect(served) as connection:
            connection.sendall(b"GET /large HTTP/1.1\r\nHost: here\r\n\r\n")
            got = 0
            while got < size:
                part = connection.recv(300_000)
                assert part
                got += len(part)
                select.select([], [], [], PACE / 2)


def test_a_client_that_closes_its_own_direction_has_left(served: Served, image_paths: list[Path]) -> None:
    body = form_of(image_paths[0].read_bytes())
    left = served.metric("openblip_clients_left_total")
    with connect(served) as connection:
        connection.sendall(request_of(body[:-5], f"Content-Length: {len(body)}"))
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    until(lambda: served.metric("openblip_clients_left_total") == left + 1)
    until(lambda: is_quiet(served))
