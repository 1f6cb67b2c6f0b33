"""Clients that leave, by the thousand: the model does nothing more for them, and nothing of them stays behind."""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from openblip.generation.continuous import ContinuousBatch
from openblip.models.model import Model
from openblip.serve.limits import Limits

from .conftest import Served, served_by
from .test_faults import connect, form_of, held, is_quiet, request_of, until
from .test_openai import image_part, text_part, user

TOGETHER = 16
"""Clients at a time: as many streams as there may be."""
THOUSAND = pytest.mark.parametrize("clients", [16, pytest.param(1008, marks=pytest.mark.slow)])
SPARE_MB = 24
"""Memory that allocators keep, whatever the server does."""


class Steps:
    """The model's steps of writing, each of which waits until it is let go."""

    def __init__(self) -> None:
        self.done = 0
        self.may = threading.Semaphore(0)
        self.waits = threading.Event()


@contextmanager
def stepped() -> Iterator[Steps]:
    held = Steps()
    step = ContinuousBatch.step

    def wait(batch: ContinuousBatch) -> Any:
        held.waits.set()
        held.may.acquire()
        held.done += 1
        return step(batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ContinuousBatch, "step", wait)
        try:
            yield held
        finally:
            held.may.release(10_000)


def memory_mb() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6


def threads() -> int:
    """Those that decode are as many as were needed by now, up to a fixed number."""
    return sum(not one.name.startswith("openblip decoder") for one in threading.enumerate())


@contextmanager
def nothing_left(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """Files, threads, spooled uploads and memory are as they were, and nobody complained."""
    spool = tmp_path / "spool"
    spool.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(spool))
    until(lambda: is_quiet(served))
    linux = Path("/proc/self/fd").is_dir()
    files, others = len(os.listdir("/proc/self/fd")) if linux else 0, threads()
    memory = memory_mb() if linux else 0.0
    yield
    until(lambda: is_quiet(served))
    assert served.service.admission.waiting == 0 and served.metric("openblip_queue_images") == 0
    until(lambda: threads() <= others)
    assert list(spool.iterdir()) == []
    gc.collect()  # and with them, futures that nobody has looked at
    assert caplog.records == []
    if linux:
        until(lambda: len(os.listdir("/proc/self/fd")) <= files)
        assert memory_mb() < memory + SPARE_MB


def stream_of(image: Path, question: str) -> bytes:
    asked = {"stream": True, "max_tokens": 70, "messages": [user(image_part(image), text_part(question))]}
    body = json.dumps(asked).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def begun(served: Served, asked: list[bytes], steps: Steps) -> list[socket.socket]:
    """Connections whose answers have begun, and go no further."""
    connections = []
    for one in asked:
        connections.append(connect(served))
        connections[-1].sendall(one)
    until(lambda: len(served.service.engine._queue) + len(served.service.engine._decoding) == len(asked))
    waiting = list(connections)
    while waiting:
        until(steps.waits.is_set)
        steps.waits.clear()
        steps.may.release()
        for connection in list(waiting):
            connection.settimeout(0.01)
            try:
                assert connection.recv(65536).startswith(b"HTTP/1.1 200")
                waiting.remove(connection)
            except TimeoutError:
                continue
    return connections


@THOUSAND
def test_readers_of_streams_leave(
    tiny_model: Model,
    image_paths: list[Path],
    clients: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each round: as many as may stream begin, all leave, and the model has one step in flight."""
    with served_by(tiny_model, Limits(answers=0, streams=TOGETHER)) as served, stepped() as steps:

        def leave(start: int) -> None:
            asked = [stream_of(image_paths[n % 3], f"who left as {start + n}?") for n in range(TOGETHER)]
            connections = begun(served, asked, steps)
            until(steps.waits.is_set)
            for connection in connections:
                connection.close()
            until(lambda: served.service.visits == 0)
            done = steps.done
            steps.waits.clear()
            steps.may.release()
            until(lambda: served.service.engine.is_idle)
            assert steps.done == done + 1  # the one in flight

        leave(10**6)  # and everything is loaded
        left, given_up = served.metric("openblip_clients_left_total"), served.metric("openblip_given_up_total")
        with nothing_left(served, tmp_path, monkeypatch, caplog):
            for start in range(0, clients, TOGETHER):
                leave(start)
        assert served.metric("openblip_given_up_total") == given_up + clients
        assert served.metric("openblip_clients_left_total") == left + clients
        assert served.metric("openblip_failures_total") == 0
        steps.may.release(10_000)
        assert served.post("/caption", image_paths[0]).json()["caption"] == tiny_model.caption(image_paths[0])


@THOUSAND
def test_clients_leave_while_they_send_and_while_they_wait(
    served: Served,
    image_paths: list[Path],
    clients: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A half of them in the middle of the body, the others in the queue: the model begins with none."""
    body = form_of(image_paths[0].read_bytes())
    whole = request_of(body, f"Content-Length: {len(body)}", path="/ask?question=who+leaves%3F")
    with nothing_left(served, tmp_path, monkeypatch, caplog), held(served):
        batches = served.metric("openblip_batch_items_count")
        left, given_up = served.metric("openblip_clients_left_total"), served.metric("openblip_given_up_total")
        for start in range(0, clients, TOGETHER):
            connections = [connect(served) for _ in range(TOGETHER)]
            for number, connection in enumerate(connections):
                connection.sendall(whole if number % 2 else whole[: len(whole) // 2])
            waiting = (start + TOGETHER) // 2
            until(lambda waiting=waiting: len(served.service.engine._queue) == waiting)  # whoever left among them
            for connection in connections:
                connection.close()
            until(lambda: served.service.visits == 0)
        until(lambda: served.metric("openblip_clients_left_total") == left + clients)
        assert served.metric("openblip_batch_items_count") == batches
    assert served.metric("openblip_given_up_total") == given_up + clients // 2


def test_a_reader_that_is_killed_ends_its_stream(tiny_model: Model, image_paths: list[Path]) -> None:
    """A program that dies of SIGKILL in the middle of an answer says nothing: its system closes the connection."""
    reader = (
        "import socket, sys, time; c = socket.create_connection(('127.0.0.1', int(sys.argv[1])));"
        "c.sendall(sys.stdin.buffer.read()); c.recv(1); print('begun', flush=True); time.sleep(3600)"
    )
    with served_by(tiny_model, Limits(answers=0)) as served, stepped() as steps:
        with subprocess.Popen(
            [sys.executable, "-S", "-c", reader, served.url.rpartition(":")[2]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(stream_of(image_paths[0], "what?"))
            process.stdin.close()
            while not select.select([process.stdout], [], [], 0.01)[0]:
                if steps.waits.is_set():
                    steps.waits.clear()
                    steps.may.release()
            assert process.stdout.readline().strip() == b"begun"
            until(steps.waits.is_set)
            process.send_signal(signal.SIGKILL)
        until(lambda: served.service.visits == 0)
        done = steps.done
        steps.may.release()
        until(lambda: is_quiet(served))
        assert steps.done == done + 1
        assert served.metric("openblip_clients_left_total") == 1
