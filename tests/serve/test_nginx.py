"""recipes/deploy/nginx.conf in a real nginx, in front of real servers."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import httpx2
import pytest

from openblip.models.model import Model
from openblip.serve.limits import Limits

from .conftest import WAIT, Served, served_by
from .processes import ended, free_port, photo, start, until
from .test_faults import held
from .test_openai import image_part, text_part, user

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NGINX is None, reason="there is no nginx: apt install nginx-light"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make a certificate with"),
]
RECIPE = Path(__file__).parents[2] / "recipes" / "deploy" / "nginx.conf"


@contextmanager
def nginx(folder: Path, *ports: int) -> Iterator[httpx2.Client]:
    """A client of an nginx with the recipe in front of two servers, over TLS."""
    certificate = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "9"]
    certificate += ["-subj", "/CN=openblip", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = [*certificate, "-keyout", str(folder / "key"), "-out", str(folder / "crt")]
    subprocess.run(["openssl", *made], check=True, capture_output=True, timeout=WAIT)
    front, text = free_port(), RECIPE.read_text(encoding="utf-8")
    for old, new in (
        ("listen 443 ssl", f"listen 127.0.0.1:{front} ssl"),
        ("server 127.0.0.1:8000", f"server 127.0.0.1:{ports[0]}"),
        ("server 127.0.0.1:8001", f"server 127.0.0.1:{ports[1]}"),
        ("/etc/nginx/openblip.crt", str(folder / "crt")),
        ("/etc/nginx/openblip.key", str(folder / "key")),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    (folder / "openblip.conf").write_text(text, encoding="utf-8")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    paths = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    user = "user root;" if os.geteuid() == 0 else ""
    main = f"{user} daemon off; worker_processes 1; pid {folder}/pid; events {{}}"
    main += f" http {{ access_log off; {paths} include {folder}/openblip.conf; }}"
    (folder / "nginx.conf").write_text(main, encoding="utf-8")
    assert NGINX is not None
    log = (folder / "log").open("wb")
    process = subprocess.Popen([NGINX, "-e", "stderr", "-c", str(folder / "nginx.conf")], stderr=log)

    def listens() -> bool:
        assert process.poll() is None, (folder / "log").read_text(encoding="utf-8")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", front)) == 0

    try:
        until(listens)
        trusted = ssl.create_default_context(cafile=folder / "crt")
        with httpx2.Client(base_url=f"https://127.0.0.1:{front}", verify=trusted, timeout=WAIT) as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(WAIT)
        log.close()


def port_of(served: Served) -> int:
    return int(served.url.rpartition(":")[2])


def test_large_forms_pass_and_larger_ones_are_told(tiny_model: Model, tmp_path: Path) -> None:
    with served_by(tiny_model) as served, nginx(tmp_path, port_of(served), port_of(served)) as client:
        # What stands behind the end of a PNG does not count.
        files = [("files", (f"{n}.png", photo(n) + bytes(19_900_000))) for n in range(3)]
        answer = client.post("/batch_caption", files=files, headers={"X-Request-Id": "mine"})
        assert (answer.status_code, answer.headers["x-request-id"]) == (200, "mine")
        assert len(answer.json()["captions"]) == 3 and answer.json()["errors"] == [None] * 3
        told = client.post("/caption", files={"file": photo(1) + bytes(21_000_000)})
        assert (told.status_code, told.json()["error"]["code"]) == (413, "picture_mb")
        refused = client.post("/batch_caption", content=bytes(68_000_000), headers={"X-Request-Id": "a b"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "client_max_body_size")
        assert re.fullmatch("[0-9a-f]{32}", refused.json()["request_id"])
        assert client.get("/metrics").status_code == 200  # this machine's own


def test_a_full_queue_is_told_with_its_time(tiny_model: Model, image_paths: list[Path], tmp_path: Path) -> None:
    with (
        served_by(tiny_model, Limits(queue=1)) as served,
        nginx(tmp_path, port_of(served), port_of(served)) as client,
        ThreadPoolExecutor(1) as other,
    ):
        with held(served):
            waiting = other.submit(served.post, "/caption", image_paths[0])
            until(lambda: served.service.admission.waiting == 1)
            answer = client.post("/caption", files={"file": photo(1)})
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue")
            assert 1 <= int(answer.headers["retry-after"]) <= 30
        assert waiting.result(WAIT).status_code == 200


def test_a_streamed_answer_is_the_servers(tiny_model: Model, image_paths: list[Path], tmp_path: Path) -> None:
    asked = {"stream": True, "messages": [user(image_part(image_paths[0]), text_part("what?"))], "max_tokens": 12}

    def text_for(client: httpx2.Client) -> str:
        with client.stream("POST", "/v1/chat/completions", json=asked) as answer:
            events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
        assert events.pop() == "[DONE]"
        return "".join(json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events)

    with served_by(tiny_model) as served, nginx(tmp_path, port_of(served), port_of(served)) as client:
        assert text_for(client) == text_for(served.http) != ""


def test_words_go_out_as_they_come(tmp_path: Path) -> None:
    """A server that writes its second event only when the client has the first one."""
    read = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                while not connection.recv(65536).endswith(b"}"):
                    pass
                head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
                connection.sendall(head + b"data: one\n\n")
                assert read.wait(WAIT)
                connection.sendall(b"data: two\n\n")

        with nginx(tmp_path, port, port) as client, ThreadPoolExecutor(1) as server:
            done = server.submit(answer)
            with client.stream("POST", "/v1/chat/completions", json={"stream": True}) as streamed:
                lines = (line for line in streamed.iter_lines() if line)
                assert next(lines) == "data: one"
                read.set()
                assert list(lines) == ["data: two"]
            done.result(WAIT)


def test_nobody_behind_it_is_told(tmp_path: Path) -> None:
    with nginx(tmp_path, free_port(), free_port()) as client:
        answer = client.get("/ready")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unreachable")
        assert answer.headers["retry-after"] == "5"


def test_a_drain_and_a_death_behind_it_cost_no_client_anything(tiny_model_folder: Path, tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    numbers, stop = count(), threading.Event()
    statuses: list[int] = []

    def work(client: httpx2.Client) -> None:
        while not stop.is_set():
            statuses.append(client.post("/caption", files={"file": photo(next(numbers))}).status_code)

    servers: list[subprocess.Popen[str]] = []
    with ended(servers), nginx(tmp_path, *ports) as client, ThreadPoolExecutor(6) as clients:
        servers += [start(tiny_model_folder, port) for port in ports]
        working = [clients.submit(work, client) for _ in range(6)]

        def answered(more: int) -> None:
            had = len(statuses)
            until(lambda: len(statuses) >= had + more or any(one.done() for one in working))

        try:
            answered(40)
            servers[0].send_signal(signal.SIGTERM)
            assert servers[0].wait(WAIT) == 0
            answered(40)
            servers.append(start(tiny_model_folder, ports[0]))
            answered(40)
            servers[1].kill()
            answered(40)
        finally:
            stop.set()
        for one in working:
            one.result(WAIT)
    assert set(statuses) == {200}
