"""Requests that were damaged on the way, from the first byte to the last: each has an answer, and of one shape."""

from __future__ import annotations

import base64
import json
import random
import socket
from collections.abc import Iterator

import pytest

from openblip.models.model import Model
from openblip.serve.limits import Limits

from .conftest import served_by
from .test_faults import connect, is_quiet, small_photos, until

MAY_BE = {200, 400, 401, 404, 405, 408, 413, 415, 422, 503}
"""408 and 503 where a damaged length announces what does not come, or more than there is memory for."""
WORDS = [
    b"\r\n",
    b"\r\n\r\n",
    b"--b",
    b"--b--",
    b'"',
    b"\\",
    b"\0",
    b"\xff",
    b"{",
    b"[",
    b"]",
    b"null",
    b"NaN",
    b"1e999",
    b"-1",
]
WORDS += [
    b"9" * 20,
    b"\xf0\x9f\x98\x80",
    b"\\ud800",
    b"%00",
    b"base64,",
    b"data:",
    b"=",
    b"chunked",
    b"image",
    b"content",
    b";",
    b":",
]


def requests() -> list[bytes]:
    """Good ones, of every kind."""
    photos = small_photos()
    url = "data:image/png;base64," + base64.b64encode(photos[1]).decode()
    fields = {
        "/caption": {"num_captions": "2", "num_beams": "2", "max_new_tokens": "2"},
        "/batch_caption": {"question": "what is it?", "max_new_tokens": "2", "num_beams": "1"},
        "/ask": {"question": "what is it?", "max_new_tokens": "2", "temperature": "0.5", "seed": "3"},
        "/match": {"text": "a dog"},
        "/embed": {"text": "a dog"},
    }
    made = []
    for path, own in fields.items():
        parts = [
            f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in own.items()
        ]
        files = "files" if path in ("/batch_caption", "/embed") else "file"
        head = f'--b\r\nContent-Disposition: form-data; name="{files}"; filename="a.png"\r\n'
        head += "Content-Type: image/png\r\n\r\n"
        for photo in photos[:3]:
            body = "".join(parts).encode() + head.encode() + photo + b"\r\n--b--\r\n"
            made.append(_request(path, "multipart/form-data; boundary=b", body))
    content = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": url}}]
    chat = {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 2,
        "temperature": 0,
        "n": 1,
        "stop": ["x"],
    }
    for asked in (chat, {**chat, "stream": True, "stream_options": {"include_usage": True}}):
        made.append(_request("/v1/chat/completions", "application/json", json.dumps(asked).encode()))
    embed = {"input": ["a dog", {"image": url}], "encoding_format": "base64"}
    made.append(_request("/v1/embeddings", "application/json", json.dumps(embed).encode()))
    made.append(_request("/caption", "application/x-www-form-urlencoded", b"url=https%3A%2F%2Fexample.org%2Fa.jpg"))
    return made


def _request(path: str, kind: str, body: bytes) -> bytes:
    head = f"POST {path}?question=what HTTP/1.1\r\nHost: here\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def damaged(count: int) -> Iterator[bytes]:
    """Requests with bytes changed, doubled, left out or replaced by what parsers trip over; most tell their length."""
    chance, good = random.Random(11), requests()
    for _ in range(count):
        head, _, body = chance.choice(good).partition(b"\r\n\r\n")
        where = chance.choice(("head", "body", "start of body", "both"))
        if where != "head":
            body = _mutated(body, chance, 300 if where == "start of body" else len(body))
        if chance.random() < 0.9:
            first, _, _ = head.rpartition(b"Content-Length: ")
            head = first + b"Content-Length: %d" % len(body)
        if where in ("head", "both"):
            head = _mutated(head, chance, len(head))
        yield head + b"\r\n\r\n" + body


def _mutated(given: bytes, chance: random.Random, until: int) -> bytes:
    data = bytearray(given)
    for _ in range(chance.randint(1, 4)):
        place, size = chance.randrange(max(1, min(until, len(data)))), chance.randint(1, 12)
        how = chance.randrange(5)
        if how == 0:
            data[place : place + size] = chance.randbytes(size)
        elif how == 1:
            del data[place : place + size]
        elif how == 2:
            data[place:place] = data[place : place + size]
        else:
            data[place : place + (size if how == 3 else 0)] = chance.choice(WORDS)
    return bytes(data)


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """All that comes until the server closes the connection, or one answer is whole. Status 0: nothing came."""
    got = b""
    while True:
        head, end, body = got.partition(b"\r\n\r\n")
        if end:
            names = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            size = int(names.get(b"content-length", 10**9))
            if len(body) >= size or body.endswith(b"0\r\n\r\n"):
                return int(head.split()[1]), body[:size]  # what is left of the request may be answered as another
        part = connection.recv(65536)
        if not part:
            return (int(head.split()[1]) if end else 0), body
        got += part


@pytest.mark.parametrize("count", [150, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_requests_are_never_a_fault_of_the_server(
    tiny_model: Model, count: int, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    statuses: dict[int, int] = {}
    with served_by(tiny_model, Limits(body_seconds=0.2, header_seconds=0.2), logs=True) as served:
        for number, sent in enumerate(damaged(count)):
            with connect(served) as connection:
                try:
                    connection.sendall(sent)
                    status, body = answer(connection)
                except ConnectionResetError:
                    status, body = 0, b""
            statuses[status] = statuses.get(status, 0) + 1
            assert status in MAY_BE or status == 0, (number, sent, body)
            assert b"Traceback" not in body
            if status not in (0, 200):
                told = json.loads(body)
                assert told.keys() == {"error", "request_id"}, (number, sent, body)
                assert told["error"].keys() == {"message", "type", "code", "param"}
        until(lambda: is_quiet(served))
        assert served.metric("openblip_failures_total") == 0
    assert statuses[200] > count / 60 and statuses[422] > count / 20 and statuses[400] > count / 50, statuses
    # Without an answer are those alone whose headers never end: nothing can be told of them, or to them.
    assert statuses.get(0, 0) < count / 20, statuses
    log = capfd.readouterr().err
    assert log.count("\n") > count / 2 and "Traceback" not in log
    assert [one for one in caplog.records if one.levelname not in ("INFO", "WARNING") or one.exc_info] == []
