"""Images that requests name by web addresses: from nowhere, or from the servers that are named."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from openblip import UrlPolicy
from openblip.serve.limits import Limits
from openblip.web import addresses
from tests.test_web import GOOD, OK, PNG
from tests.test_web import serving as web_serving
from tests.test_web_policy import MOVED, OUTSIDE, pytestmark, resolver  # noqa: F401

from .conftest import Served

SHOP = resolver(shop_example=OUTSIDE, evil_example="127.0.0.1")


@pytest.fixture(autouse=True)
def _strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(addresses.ALLOW_PRIVATE)
    is_private = addresses.is_private
    monkeypatch.setattr(addresses, "is_private", lambda address: address != OUTSIDE and is_private(address))


def chat(served: Served, url: str) -> Any:
    part = {"type": "image_url", "image_url": {"url": url}}
    return served.http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": [part]}]})


def error(answer: Any, status: int = 422) -> tuple[str, str]:
    assert answer.status_code == status, answer.text
    told = answer.json()["error"]
    return told["code"], told["message"]


def test_nothing_is_fetched_unless_it_is_allowed(served: Served) -> None:
    with web_serving((GOOD, b"")) as web:
        for answer in (
            chat(served, web.url),
            served.http.post("/caption", data={"url": web.url}),
            served.http.post("/batch_caption", data={"url": [web.url, web.url]}),
            served.http.post("/v1/embeddings", json={"input": [{"image": web.url}]}),
        ):
            code, told = error(answer)
            assert code == "urls_not_allowed" and "allows servers with --allow-url HOST" in told
        assert web.requests == []
    schema = served.http.get("/openapi.json").json()
    form = schema["paths"]["/caption"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert "url" not in form["properties"]
    assert error(chat(served, "ftp://shop.example/a.png"))[0] == "no_data_url"


def test_named_servers_are_asked(serving: Callable[..., Any]) -> None:
    with web_serving(*[(GOOD, b"")] * 7, address=OUTSIDE) as web:
        policy = UrlPolicy(f"shop.example:{web.port}", resolve=SHOP)
        with serving(urls=policy) as served:
            url = f"http://shop.example:{web.port}/photo.png"
            text = served.post("/caption", PNG).json()["caption"]
            assert served.http.post("/caption", data={"url": url}).json()["caption"] == text
            assert served.http.post(f"/caption?url={url}", data={"num_captions": "1"}).json()["caption"] == text
            assert chat(served, url).json()["choices"][0]["message"]["content"] == text
            both = served.post("/batch_caption", PNG, field="files", url=[url, f"http://evil.example:{web.port}/"])
            assert both.json()["captions"] == [text, text, None]
            assert "not among the hosts" in both.json()["errors"][2]
            assert (
                len(served.http.post("/v1/embeddings", json={"input": [{"image": url}, "a dog"]}).json()["data"]) == 2
            )
            assert error(served.post("/caption", PNG, url=url))[0] == "files_missing"
            assert len(served.http.post("/embed", data={"url": [url, url]}).json()["images"]) == 2
            assert served.metric("openblip_stage_seconds_count", stage="fetch") == 6
            schema = served.http.get("/openapi.json").json()
            form = schema["paths"]["/caption"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
            assert "url" in form["properties"] and form["required"] == []
        assert len(web.requests) == 7


def test_what_is_wrong_with_an_address_is_told(serving: Callable[..., Any]) -> None:
    """Redirects inside, files that are no images or too large, and answers that are none."""
    with web_serving((GOOD, b"")) as inside:
        answers = [
            (MOVED % b"http://evil.example:%d/" % inside.port, b""),
            (OK + b"Content-Length: 5\r\n\r\nhello", b""),
            (OK + b"Content-Length: 3000000\r\n\r\n", b""),
            (b"HTTP/1.1 404 Not Found\r\n\r\n", b""),
        ]
        limits = Limits(picture_mb=1, fetch_seconds=600)
        with (
            web_serving(*answers, address=OUTSIDE) as web,
            serving(limits, urls=UrlPolicy("*", resolve=SHOP)) as served,
        ):
            url = f"http://shop.example:{web.port}/photo.png"
            code, told = error(chat(served, url))
            assert (
                code == "not_fetched"
                and "in a private network, where images are not fetched from: send the image itself" in told
            )
            assert error(chat(served, url), 415)[0] == "formats"
            code, told = error(chat(served, url), 413)
            assert code == "picture_mb" and "--limit picture_mb=VALUE" in told
            code, told = error(chat(served, url))
            assert code == "not_fetched" and "the server answered 404 Not Found" in told
        assert inside.requests == []


def test_a_server_that_does_not_answer(serving: Callable[..., Any]) -> None:
    silent = socket.create_server((OUTSIDE, 0))
    with silent, serving(Limits(fetch_seconds=0.2), urls=UrlPolicy("*", resolve=SHOP)) as served:
        code, told = error(chat(served, f"http://shop.example:{silent.getsockname()[1]}/photo.png"))
        assert code == "fetch_seconds" and "--limit fetch_seconds=VALUE" in told
