"""What demanding clients and operators try: each has the right answer, or is told what to do."""

from __future__ import annotations

import base64
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from openblip.models.model import Model

from .conftest import Served
from .test_faults import connect, form_of, is_quiet, request_of, until
from .test_native import refused
from .test_openai import image_part, text_part, user


def exchange(served: Served, sent: bytes) -> bytes:
    """All that comes until the server closes the connection."""
    with connect(served) as connection:
        connection.sendall(sent)
        connection.settimeout(None)
        got = b""
        while part := connection.recv(65536):
            got += part
    return got


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/openapi.json", "/v1/models"])
def test_what_answers_get_answers_head(served: Served, path: str) -> None:
    answer, whole = served.http.head(path), served.http.get(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == whole.headers["content-type"]
    assert served.http.head("/caption").status_code == 405


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS"])
def test_other_methods_are_told(served: Served, method: str) -> None:
    answer = served.http.request(method, "/caption")
    assert "takes" in refused(answer, 405, "method_not_allowed") or answer.headers["allow"] == "POST"


def test_http_as_old_and_other_clients_speak_it(served: Served, image_paths: list[Path]) -> None:
    old = exchange(served, b"GET /health HTTP/1.0\r\n\r\n")
    assert old.startswith(b"HTTP/1.1 200 ") and old.endswith(b'{"status":"ok"}')
    two = b"GET /health HTTP/1.1\r\nHost: h\r\n\r\nGET /ready HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    got = exchange(served, two)
    assert got.count(b"HTTP/1.1 200 ") == 2 and got.index(b'"status"') < got.index(b'"ready"')
    body = form_of(image_paths[0].read_bytes())
    length = f"Content-Length: {len(body)}"
    expects = exchange(served, request_of(body, "Connection: close", "Expect: 100-continue", length))
    assert b"HTTP/1.1 200 OK" in expects
    pieces = b"".join(b"%x\r\n%s\r\n" % (len(body[at : at + 7]), body[at : at + 7]) for at in range(0, len(body), 7))
    chunked = exchange(served, request_of(pieces + b"0\r\n\r\n", "Connection: close", "Transfer-Encoding: chunked"))
    assert chunked.startswith(b"HTTP/1.1 200 ")
    assert chunked.partition(b"\r\n\r\n")[2] == expects.rpartition(b"\r\n\r\n")[2]
    for sent in (b"GET /health HTTP/1.1\r\n\r\n", request_of(b"", "Content-Length: -1")):
        assert b'"bad_http"' in exchange(served, sent)


def test_compressed_bodies_are_told(served: Served, image_paths: list[Path]) -> None:
    for path, kind, body in [
        ("/caption", "multipart/form-data; boundary=b", form_of(image_paths[0].read_bytes())),
        ("/v1/embeddings", "application/json", b'{"input": "a dog"}'),
    ]:
        headers = {"Content-Type": kind, "Content-Encoding": "gzip"}
        answer = served.http.post(path, content=gzip.compress(body), headers=headers)
        assert "encoded as gzip" in refused(answer, 415, "encoded_body")
        headers["Content-Encoding"] = "identity"
        assert served.http.post(path, content=body, headers=headers).status_code == 200


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/octet-stream"])
def test_json_that_is_not_called_so_is_told(served: Served, kind: str) -> None:
    answer = served.http.post("/v1/embeddings", content=b'{"input": "a dog"}', headers={"Content-Type": kind})
    assert "'Content-Type: application/json'" in refused(answer, 415, "no_json")


def test_a_form_whose_end_is_missing_is_told(served: Served, image_paths: list[Path]) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    whole = form_of(image_paths[0].read_bytes())
    for body in (b"", b"--b\r\n", whole[: len(whole) // 2], whole[:-10]):
        answer = served.http.post("/caption", content=body, headers=headers)
        assert "its end is missing" in refused(answer, 422, "bad_form")


def test_images_of_every_kind(served: Served, tiny_model: Model) -> None:
    noise = Image.effect_noise((48, 32), 60)
    turned = Image.Exif()
    turned[274] = 6
    frames = [Image.effect_noise((40, 40), 60).convert("RGB") for _ in range(3)]
    photos = [
        encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        encoded(Image.new("I;16", (40, 30), 30_000), "PNG"),
        encoded(noise.convert("RGB"), "JPEG", exif=turned),
        encoded(noise.resize((1, 1)), "PNG"),
        encoded(noise.resize((1, 900)), "PNG"),
        *(
            encoded(noise.convert(mode), "JPEG" if mode == "CMYK" else "PNG")
            for mode in ("CMYK", "LA", "P", "1", "RGBA")
        ),
    ]
    for number, photo in enumerate(photos):
        answer = served.post("/caption", photo, max_new_tokens="4")
        assert answer.json()["caption"] == tiny_model.caption(photo, max_new_tokens=4, num_captions=1)[0], number


def test_what_is_no_image_is_told_by_its_name(served: Served) -> None:
    drawing = b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>'
    for name, data, status, said in [
        ("фото 📷.svg", drawing, 415, "фото 📷.svg is not an image but an SVG drawing"),
        ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500), 415, "is a HEIC photo"),
        ("a.pdf", b"%PDF-1.4\n" + bytes(99), 415, "is not an image but a PDF document"),
        ("../../etc/passwd", b"no", 422, "../../etc/passwd: is damaged, or no image"),
        ("a\x1b[31m.png", b"", 422, "a\\x1b[31m.png: is empty (0 bytes)"),
    ]:
        answer = served.http.post("/caption", files={"file": (name, data)})
        assert answer.status_code == status and said in answer.json()["error"]["message"], answer.text


def test_data_urls_as_clients_write_them(served: Served, image_paths: list[Path], tiny_model: Model) -> None:
    packed = base64.b64encode(image_paths[0].read_bytes()).decode()
    expected = tiny_model.caption(image_paths[0], max_new_tokens=4)
    for url in [
        f" data:image/png;base64,{packed}\n",
        f"data:image/png;base64,\r\n{packed[:40]}\r\n {packed[40:]}",
        f"DATA:image/png;BASE64,{packed.rstrip('=')}",
        f"data:image/png;charset=utf-8;base64,{packed}",
        f"data:;base64,{packed}",
        "data:image/png;base64," + packed.replace("+", "-").replace("/", "_"),
        "data:image/png;base64," + packed.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
    ]:
        asked = {"max_tokens": 4, "messages": [user({"type": "image_url", "image_url": url})]}
        answer = served.http.post("/v1/chat/completions", json=asked)
        assert answer.json()["choices"][0]["message"]["content"] == expected, url[:60]


@pytest.mark.parametrize(
    ("field", "value", "status", "param"),
    [
        ("temperature", float("nan"), 422, "temperature"),
        ("temperature", float("inf"), 422, "temperature"),
        ("temperature", 2.1, 422, "temperature"),
        ("temperature", 1e-12, 200, None),
        ("top_p", 0, 422, "top_p"),
        ("n", 10**9, 422, "n"),
        ("n", 0, 422, "n"),
        ("max_tokens", 0, 422, "max_tokens"),
        ("max_tokens", 10**12, 200, None),
        ("max_tokens", 5.5, 422, "max_tokens"),
        ("stop", ["x"] * 17, 422, "stop"),
        ("stop", "x" * 2001, 422, "stop"),
        ("stop", ["", "x"], 200, None),
        ("model", "gpt-4", 404, "model"),
        ("tools", [{"type": "function", "function": {"name": "f", "parameters": {}}}], 200, None),
        ("response_format", {"type": "json_object"}, 200, None),
        ("stream_options", {"include_usage": True}, 200, None),
        ("seed", 2**64, 422, "seed"),
        ("messages", [0] * 50_000, 422, "messages.0"),
        ("messages", [{"role": "user", "content": [0] * 50_000}], 422, "messages.0.content"),
        ("messages", [{"role": "user", "content": [{"type": "text", "text": ["what?"]}]}], 422, "messages.0.content"),
    ],
)
def test_fields_of_chat_completions(
    served: Served, image_paths: list[Path], field: str, value: Any, status: int, param: str | None
) -> None:
    asked = {"max_tokens": 4, "messages": [user(image_part(image_paths[0]), text_part("what?"))], field: value}
    answer = served.http.post(
        "/v1/chat/completions", content=json.dumps(asked), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == status, answer.text
    assert len(answer.text) < 1500
    if param is not None:
        assert answer.json()["error"]["param"] == param, answer.text


def test_a_conversation_of_thousands_of_turns_keeps_nobody_waiting(served: Served, image_paths: list[Path]) -> None:
    """What no model has room for is not even looked at: the last turns alone are."""
    turns = [{"role": role, "content": "x"} for _ in range(500) for role in ("user", "assistant")]
    messages = [user(image_part(image_paths[0])), *turns, {"role": "user", "content": "and now?"}]
    counted: list[int] = []
    chat = served.service.model.parts.prompts.chat

    def count(turns: Any, question: str) -> str:
        counted.append(len(turns))
        return chat(turns, question)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(served.service.model.parts.prompts), "chat", lambda _, turns, asked: count(turns, asked))
        answer = served.http.post("/v1/chat/completions", json={"max_tokens": 4, "messages": messages})
    assert answer.status_code == 200 and max(counted) == 32 and len(counted) == 33
    assert served.http.post("/v1/chat/completions", json={"messages": messages + messages}).status_code == 422


def test_json_of_many_values_is_not_read(served: Served) -> None:
    for body in (b'{"input": [' + b"{}," * 200_000 + b"{}]}", b'{"input": "a", "x": [' + b"0," * 200_000 + b"0]}"):
        answer = served.http.post("/v1/embeddings", content=body, headers={"Content-Type": "application/json"})
        assert "more than 100000 values" in refused(answer, 413, "json_values")


def test_forms_take_fields_from_both_places(served: Served, image_paths: list[Path]) -> None:
    answer = served.post("/ask?question=one&question=two", image_paths[0], question=["three"], max_new_tokens="2")
    assert [one["question"] for one in answer.json()["answers"]] == ["one", "two", "three"]
    for path, field, value in [
        ("/caption", "temperature", "nan"),
        ("/caption", "num_beams", "1e3"),
        ("/caption", "num_captions", "100"),
        ("/caption", "max_new_tokens", "9" * 21),
        ("/caption", "question", ""),
        ("/ask", "question", "x" * 2001),
    ]:
        assert served.post(path, image_paths[0], **{field: value}).status_code == 422
    assert served.post("/ask", image_paths[0], question="x" * 2_000_000).status_code == 413
    until(lambda: is_quiet(served))
    assert served.metric("openblip_failures_total") == 0
