"""The tools of the Model Context Protocol in the server, called by the SDK's own client over its socket."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from openblip.models.model import Model
from openblip.serve.auth import read_keys
from openblip.serve.limits import Limits
from tests.cli.conftest import Run, run  # noqa: F401

from .conftest import WAIT, Served

KEY = "a-key-of-the-tests-alone"


def call(served: Served, tool: str, mode: str = "2026-07-28", key: str = "", **arguments: Any) -> Any:
    """The result of one call."""

    @asynccontextmanager
    async def transport() -> Any:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=WAIT) as web,
            streamable_http_client(f"{served.url}/mcp", http_client=web) as streams,
        ):
            yield streams

    async def talk() -> Any:
        async with Client(transport(), mode=mode) as client:
            return await client.call_tool(tool, arguments)

    return asyncio.run(talk())


def encoded(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


@pytest.fixture(scope="module", name="tooled")
def _tooled(serving: Callable[..., Any]) -> Iterator[Served]:
    with serving(mcp=True) as one:
        yield one


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
def test_tools_share_the_model_with_other_requests(
    tooled: Served, tiny_model: Model, image_paths: list[Path], mode: str
) -> None:
    path = image_paths[0]
    result = call(tooled, "caption", mode, image=encoded(path))
    assert result.structured_content["captions"][0]["text"] == tiny_model.caption(path)
    answers = call(tooled, "ask", mode, image=encoded(path), questions=["what is it?"]).structured_content["answers"]
    assert answers[0]["answer"] == tiny_model.ask(path, "what is it?")
    assert tooled.post("/caption", path).json()["caption"] == tiny_model.caption(path)
    assert tooled.service.visits == 0 and tooled.service.admission.waiting == 0
    assert tooled.metric("openblip_requests_total", path="/mcp", status="307") == 0
    assert tooled.metric("openblip_requests_total", path="/mcp", status="200") > 0


def test_what_tools_refuse(tooled: Served, image_paths: list[Path]) -> None:
    for arguments, said in [
        ({"image": str(image_paths[0])}, "files of this machine are not read here"),
        ({"image": "http://127.0.0.1/a.png"}, "those are not allowed here"),
        (
            {"image": "data:image/png;base64," + base64.b64encode(b"nothing").decode()},
            "is not an image in a known format",
        ),
    ]:
        result = call(tooled, "caption", **arguments)
        assert result.is_error and said in result.content[0].text, result.content
    for name in ("evil.example", "tools.example.org"):
        assert tooled.http.post("/mcp", json={}, headers={"Host": name}).status_code == 421
    assert tooled.http.post("/caption", headers={"Host": "evil.example"}).status_code == 415


def test_limits_and_keys_of_the_server_hold_for_tools(
    serving: Callable[..., Any], image_paths: list[Path], tmp_path: Path
) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text(KEY, encoding="utf-8")
    with serving(Limits(megapixels=0.001, json_mb=0.5), read_keys(keys), mcp=True) as served:
        assert served.http.post("/mcp", json={}).status_code == 401
        result = call(served, "caption", key=KEY, image=encoded(image_paths[0]))
        assert result.is_error and "--limit megapixels=VALUE" in result.content[0].text
        bearer = {"Authorization": f"Bearer {KEY}"}
        large = served.http.post("/mcp", content=b"x" * 600_000, headers=bearer)
        assert (large.status_code, large.json()["error"]["code"]) == (413, "json_mb")
        served.service.admission.draining = True
        assert served.http.post("/mcp", json={}, headers=bearer).status_code == 503
        served.service.admission.draining = False


def test_a_full_queue_is_told(tooled: Served, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    service = tooled.service
    real = service.admission.take

    def full(images: int) -> Any:
        monkeypatch.setattr(service.admission, "most", 0)
        return real(images)

    monkeypatch.setattr(service.admission, "take", full)
    result = call(tooled, "caption", image=encoded(image_paths[0]))
    assert result.is_error and "(--limit queue=N)" in result.content[0].text


def test_what_goes_with_tools(run: Run) -> None:  # noqa: F811
    for arguments, said in [
        (["--index", "photos.index"], "give --web or --mcp, too"),
        (["--allowed-host", "tools.example.org"], "give --mcp, too"),
    ]:
        refused = run("serve", *arguments)
        assert refused.code == 2 and said in refused.err
