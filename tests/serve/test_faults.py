"""What clients do that no client should: each has its answer, and nothing of it stays behind."""

from __future__ import annotations

import hmac
import io
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from openblip.models.model import Model
from openblip.serve.auth import read_keys
from openblip.serve.limits import Limits
from openblip.serve.model_jobs import MatchTexts

from .conftest import WAIT, Served, served_by
from .test_native import refused
from .test_openai import image_part, text_part, user


def until(condition: Any) -> None:
    """Wait for something that another thread brings about."""
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@contextmanager
def held(served: Served) -> Iterator[threading.Event]:
    """The model at work on something else, until the event is set, or the end."""
    begun, go = threading.Event(), threading.Event()

    def wait(_: Model) -> None:
        begun.set()
        go.wait(WAIT)

    served.service.engine.call(wait)
    assert begun.wait(WAIT)
    try:
        yield go
    finally:
        go.set()


def is_quiet(served: Served) -> bool:
    """Whether nothing of any request is left."""
    service = served.service
    return service.visits == 0 and service.admission.waiting == 0 and service.engine.is_idle


def form_of(photo: bytes, boundary: str = "b") -> bytes:
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    return head.encode() + photo + f"\r\n--{boundary}--\r\n".encode()


def request_of(body: bytes, *headers: str, path: str = "/caption") -> bytes:
    kind = "Content-Type: multipart/form-data; boundary=b"
    lines = [f"POST {path} HTTP/1.1", "Host: here", kind, *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def connect(served: Served) -> socket.socket:
    host, _, port = served.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=WAIT)


def answer_of(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """Status and JSON of one answer with a length."""
    file = connection.makefile("rb")
    status = int(file.readline().split()[1])
    size = 0
    while (line := file.readline().strip()) != b"":
        name, _, value = line.partition(b":")
        size = int(value) if name.lower() == b"content-length" else size
    return status, json.loads(file.read(size))


def test_whoever_comes_when_the_queue_is_full_is_told_when_to_come_again(
    tiny_model: Model, image_paths: list[Path]
) -> None:
    with served_by(tiny_model, Limits(queue=2, answers=0)) as served, ThreadPoolExecutor(2) as clients:
        with held(served):
            waiting: list[Future[Any]] = [clients.submit(served.post, "/caption", path) for path in image_paths[:2]]
            until(lambda: served.service.admission.waiting == 2)
            answer = served.post("/caption", image_paths[2])
            assert "2 images are waiting" in refused(answer, 429, "queue")
            assert 1 <= int(answer.headers["retry-after"]) <= 30
            # Before a byte of the body has come.
            with connect(served) as early:
                early.sendall(request_of(b"", "Content-Length: 1000000"))
                assert answer_of(early)[0] == 429
            assert served.http.get("/ready").status_code == 200
            assert served.metric("openblip_queue_images") == 2
        assert [one.result(WAIT).status_code for one in waiting] == [200, 200]
        until(lambda: is_quiet(served))
        assert served.metric("openblip_queue_images") == 0
        assert served.metric("openblip_refused_total", code="queue") == 2
        assert served.post("/caption", image_paths[2]).status_code == 200


def test_whoever_waits_too_long_is_told(tiny_model: Model, image_paths: list[Path]) -> None:
    with served_by(tiny_model, Limits(queue_seconds=0.02)) as served:
        with held(served):
            answer = served.post("/caption", image_paths[0])
            assert "--limit queue_seconds=N" in refused(answer, 503, "queue_seconds")
            assert answer.headers["retry-after"]
            assert served.service.admission.waiting == 0
        until(lambda: is_quiet(served))
        assert served.metric("openblip_batch_items_count") == 1  # what held the model


def test_a_request_that_takes_too_long_is_told(
    tiny_model: Model, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    run = MatchTexts.run
    monkeypatch.setattr(MatchTexts, "run", lambda *given: (go.wait(WAIT), run(*given))[1])
    with served_by(tiny_model, Limits(request_seconds=0.2)) as served:
        try:
            refused(served.post("/match", image_paths[0], text="a dog"), 504, "request_seconds")
        finally:
            go.set()
        until(lambda: is_quiet(served))


def test_a_client_that_leaves_costs_the_model_nothing(served: Served, image_paths: list[Path]) -> None:
    left = served.metric("openblip_clients_left_total")
    body = form_of(image_paths[0].read_bytes())
    with held(served):
        begun = served.metric("openblip_batch_items_count")
        for _ in range(5):
            connection = connect(served)
            connection.sendall(request_of(body, f"Content-Length: {len(body)}", path="/ask?question=who+left%3F"))
            until(lambda: served.service.admission.waiting == 1)
            connection.close()
            until(lambda: served.service.admission.waiting == 0)
    until(lambda: is_quiet(served))
    assert served.metric("openblip_batch_items_count") == begun
    assert served.metric("openblip_clients_left_total") == left + 5


def test_a_reader_of_a_stream_that_leaves_ends_it(served: Served, image_paths: list[Path]) -> None:
    asked = {"stream": True, "max_tokens": 70, "messages": [user(image_part(image_paths[0]), text_part("what?"))]}
    for _ in range(3):
        with served.http.stream("POST", "/v1/chat/completions", json=asked) as answer:
            next(answer.iter_bytes(1))
    until(lambda: is_quiet(served))


def test_half_closed_and_broken_connections_leave_nothing_behind(served: Served, image_paths: list[Path]) -> None:
    body = form_of(image_paths[0].read_bytes())
    whole = request_of(body, f"Content-Length: {len(body)}")
    for cut in (1, 30, len(whole) // 2, len(whole) - 1, len(whole)):
        with connect(served) as connection:
            connection.sendall(whole[:cut])
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
    for cut in (30, len(whole) // 2):
        connect(served).close()
        with connect(served) as connection:
            connection.sendall(whole[:cut])
    until(lambda: is_quiet(served))
    assert served.post("/caption", image_paths[0]).status_code == 200


def test_what_is_no_http_has_the_same_shape(served: Served) -> None:
    for sent in (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nno header\r\n\r\n"):
        with connect(served) as connection:
            connection.sendall(sent)
            status, body = answer_of(connection)
            assert (status, body["error"]["code"]) == (400, "bad_http")
            assert connection.recv(1) == b""


def test_headers_that_do_not_come_end_the_connection(tiny_model: Model, image_paths: list[Path]) -> None:
    with served_by(tiny_model, Limits(header_seconds=0.1)) as served:
        for sent in (b"", b"POST /caption HT", b"POST /caption HTTP/1.1\r\nHost: here\r\n"):
            with connect(served) as connection:
                connection.sendall(sent)
                assert connection.recv(1) == b""
        # Between two requests, too; what is answered meanwhile is not cut off.
        with connect(served) as connection:
            body = form_of(image_paths[0].read_bytes())
            connection.sendall(request_of(body, f"Content-Length: {len(body)}"))
            assert answer_of(connection)[0] == 200
            connection.sendall(b"GET /hea")
            assert connection.recv(1) == b""


def test_a_body_that_does_not_come_is_told(tiny_model: Model) -> None:
    with served_by(tiny_model, Limits(body_seconds=0.1)) as served, connect(served) as connection:
        connection.sendall(request_of(b"--b\r\n", "Content-Length: 1000"))
        status, body = answer_of(connection)
        assert (status, body["error"]["code"]) == (408, "body_seconds")
        connection.close()
        until(lambda: is_quiet(served))


@pytest.mark.parametrize("path", ["/caption", "/batch_caption", "/v1/chat/completions", "/nothing"])
def test_a_body_beyond_its_limit_is_refused_in_the_one_shape(tiny_model: Model, path: str) -> None:
    limits = Limits(picture_mb=0.05, batch_mb=0.05, json_mb=0.05)
    with served_by(tiny_model, limits) as served:
        with connect(served) as declared:
            declared.sendall(request_of(b"", "Content-Length: 99999999999", path=path))
            status, body = answer_of(declared)
        assert status == 413
        assert f"--limit {body['error']['code']}=VALUE" in body["error"]["message"]
        with connect(served) as chunked:
            chunked.sendall(request_of(b"", "Transfer-Encoding: chunked", path=path))
            for _ in range(20):
                chunked.sendall(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
            status, again = answer_of(chunked)
        assert (status, again["error"]) == (413, body["error"])
        # A client that sends all before it reads has its answer as well.
        large = served.http.post(path, content=b"x" * 2_000_000)
        refused(large, 413, body["error"]["code"])
        until(lambda: is_quiet(served))


def test_no_more_is_received_than_there_is_memory_for(tiny_model: Model, image_paths: list[Path]) -> None:
    with served_by(tiny_model, Limits(bodies_mb=1)) as served:
        with connect(served) as first:
            first.sendall(request_of(b"--b\r\n", "Content-Length: 900000"))
            until(lambda: served.http.post("/caption", content=b"x" * 200_000).status_code == 503)
        until(lambda: served.post("/caption", image_paths[0]).status_code == 200)


def test_only_who_has_a_key_may_ask(tiny_model: Model, image_paths: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    first, second = "first-key-of-this-server", "second-key-of-this-server"
    file.write_text(f"# two\n{first}\n\n{second}\n", encoding="utf-8")
    with served_by(tiny_model, keys=read_keys(file)) as served:
        for path in ("/health", "/ready"):
            assert served.http.get(path).status_code == 200
        for method, path in [("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/v1/models"), ("GET", "/nothing")]:
            answer = served.http.request(method, path)
            refused(answer, 401, "no_key")
            assert answer.headers["www-authenticate"] == "Bearer"
        # Before the body is read, and to its end for clients that send all first.
        refused(served.http.post("/caption", content=b"x" * 3_000_000), 401, "no_key")
        for wrong in (
            "",
            "Bearer",
            f"Bearer {first}x",
            f"Bearer {first[:-1]}",
            f"Basic {first}",
            f"bearer {first} {first}",
        ):
            refused(served.http.get("/metrics", headers={"Authorization": wrong}), 401, "unknown_key")
        refused(served.http.get("/metrics", headers={"X-API-Key": "no"}), 401, "unknown_key")
        for right in (
            {"Authorization": f"Bearer {first}"},
            {"Authorization": f"bearer {second}"},
            {"X-API-Key": second},
        ):
            assert served.http.get("/metrics", headers=right).status_code == 200


def test_keys_are_compared_whole_and_written_nowhere(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    keys = [f"secret-key-number-{number}-of-this-server" for number in range(3)]
    (tmp_path / "keys.txt").write_text("\n".join(keys), encoding="utf-8")
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def seen(first: bytes, second: bytes) -> bool:
        compared.append((len(first), len(second)))
        return compare(first, second)

    monkeypatch.setattr(hmac, "compare_digest", seen)
    wrong = "wrong-secret-key-of-somebody"
    with served_by(tiny_model, keys=read_keys(tmp_path / "keys.txt"), logs=True) as served:
        for key in (*keys, wrong, wrong[:1], wrong * 100, keys[0][:-1]):
            for headers in ({"Authorization": f"Bearer {key}"}, {"X-API-Key": key}):
                compared.clear()
                answer = served.http.get(f"/metrics?api_key={key}", headers=headers)
                # Of one length, whatever was sent, and with all, whichever is right.
                assert compared == [(32, 32)] * 3
                if key not in keys:
                    refused(answer, 401, "unknown_key")
                assert "secret-key" not in answer.text and "secret-key" not in str(answer.headers)
    log = capfd.readouterr().err
    assert log.count('"status": 401') == 8 and "secret-key" not in log


def test_a_server_that_is_stopped_finishes_what_it_took(tiny_model: Model, image_paths: list[Path]) -> None:
    with served_by(tiny_model) as served, ThreadPoolExecutor(1) as clients:
        with held(served):
            taken = clients.submit(served.post, "/caption", image_paths[0])
            until(lambda: served.service.admission.waiting == 1)
            served.loop.call_soon_threadsafe(served.server.stop)
            until(lambda: served.http.get("/ready").status_code == 503)
            assert served.http.get("/health").status_code == 200
            answer = served.post("/caption", image_paths[1])
            refused(answer, 503, "draining")
            assert answer.headers["retry-after"] == "1"
        assert taken.result(WAIT).json()["caption"] == tiny_model.caption(image_paths[0])
        until(lambda: not served.loop.is_running())


def mutated(photos: list[bytes], count: int) -> Iterator[bytes]:
    """Image files with what goes wrong on the way: bytes changed, cut, doubled, left out, or of another file."""
    chance = random.Random(5)
    for _ in range(count):
        data = bytearray(chance.choice(photos))
        for _ in range(chance.randint(1, 4)):
            place, size = chance.randrange(len(data)), chance.randint(1, 40)
            how = chance.randrange(5)
            if how == 0:
                data[place : place + size] = chance.randbytes(size)
            elif how == 1:
                del data[place:]
            elif how == 2:
                data[place:place] = data[place : place + size]
            elif how == 3:
                del data[place : place + size]
            else:
                data[place : place + size] = chance.choice(photos)[place : place + size]
            data = data or bytearray(b"\0")
        yield bytes(data)


def small_photos() -> list[bytes]:
    found = []
    for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        file = io.BytesIO()
        Image.effect_noise((24, 20), 60).convert("RGB").save(file, form)
        found.append(file.getvalue())
    return found


@pytest.mark.parametrize("count", [500, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_uploads_are_never_a_fault_of_the_server(served: Served, count: int) -> None:
    failures = served.metric("openblip_failures_total")
    statuses = set()
    photos = list(mutated(small_photos(), count))
    for start in range(0, count, 10):
        answer = served.post(
            "/batch_caption", *photos[start : start + 10], field="files", num_beams="1", max_new_tokens="1"
        )
        statuses.add(answer.status_code)
        assert "Traceback" not in answer.text
    assert statuses <= {200, 413, 415, 422}
    assert 200 in statuses
    for photo in photos[:: count // 20]:
        assert served.post("/embed", photo, field="files").status_code in (200, 413, 415, 422)
    assert served.metric("openblip_failures_total") == failures
    until(lambda: is_quiet(served))


def test_damaged_forms_are_never_a_fault_of_the_server(served: Served, image_paths: list[Path]) -> None:
    chance = random.Random(7)
    whole = form_of(small_photos()[0])
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            place = chance.randrange(150)
            data[place : place + chance.randrange(6)] = chance.randbytes(chance.randrange(6))
        assert served.http.post("/embed", content=bytes(data), headers=kind).status_code in (200, 413, 415, 422)
    for kind_text in (
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=\xe9",
        "x" * 500,
    ):
        answer = served.http.post("/embed", content=whole, headers={"Content-Type": kind_text.encode("latin-1")})
        assert answer.status_code in (415, 422)
    for text in (b"", b"{", b"[]", b"null", b'{"messages": 3}', b"\xff\xfe", b"[" * 100_000, b'{"messages": [{}]}'):
        for path in ("/v1/chat/completions", "/v1/embeddings"):
            answer = served.http.post(path, content=text, headers={"Content-Type": "application/json"})
            assert answer.status_code == 422, answer.text


def test_a_failure_of_the_servers_own_shows_no_traceback(
    served: Served, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr(MatchTexts, "run", fail)
    answer = served.post("/match", image_paths[0], text="does it fail?")
    said = refused(answer, 500, "failed")
    assert "secret" not in answer.text and "its log has the reason" in said
    logged = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert any("a secret of the server" in one.get("failed", "") and "Traceback" in one["trace"] for one in logged)
    until(lambda: is_quiet(served))
