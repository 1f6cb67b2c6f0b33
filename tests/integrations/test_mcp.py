"""The MCP server, spoken to by the SDK's own client: in this process, over HTTP and over standard input."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import numpy as np
import pytest
import uvicorn
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from PIL import Image
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import openblip
from openblip.errors import OptionError
from openblip.images.references import ImageReferences
from openblip.integrations.mcp import build_server, http_app, in_turn
from openblip.models.model import Model
from openblip.models.shared import SharedModel
from openblip.serve.auth import Keys, read_keys

EXAMPLES = Path(__file__).parents[2] / "examples"
DOG = EXAMPLES / "000000377575.jpg"
MODES = ["legacy", "2026-07-28"]
"""2025-11-25 with its handshake, and the version that has none."""


def talk(server: Any, conversation: Callable[[Client], Any], mode: str = "2026-07-28") -> Any:
    """What a conversation of a client with a server gives."""

    async def run() -> Any:
        async with Client(server, mode=mode) as client:
            return await conversation(client)

    return asyncio.run(run())


def call(server: Any, tool: str, mode: str = "2026-07-28", **arguments: Any) -> Any:
    async def conversation(client: Client) -> Any:
        return await client.call_tool(tool, arguments)

    return talk(server, conversation, mode)


def good(result: Any) -> Any:
    """What a call answers with."""
    assert not result.is_error, result.content
    return result.structured_content


def told(result: Any) -> str:
    """The error of a call."""
    assert result.is_error, result
    text: str = result.content[0].text
    assert "\n" not in text and len(text) < 700
    return text


@pytest.fixture(name="server")
def _server(tiny_model: Model, image_paths: list[Path]) -> Any:
    return build_server(in_turn(SharedModel(tiny_model)), ImageReferences(image_paths[0].parent))


@pytest.mark.parametrize("mode", MODES)
def test_tools_and_typed_results(server: Any, tiny_model: Model, image_paths: list[Path], mode: str) -> None:
    path = image_paths[0]

    async def conversation(client: Client) -> list[Any]:
        tools = (await client.list_tools()).tools
        assert [tool.name for tool in tools] == ["caption", "ask", "match", "analyze"]
        assert all(tool.output_schema and tool.annotations and tool.annotations.read_only_hint for tool in tools)
        return [
            good(await client.call_tool(name, arguments))
            for name, arguments in [
                ("caption", {"image": path.name}),
                ("caption", {"image": path.name, "count": 2}),
                ("ask", {"image": path.name, "questions": ["what is it?", "is it a dog?"]}),
                ("match", {"image": path.name, "texts": ["the dog", "the ball"]}),
                ("analyze", {"document": path.name, "questions": ["what is it?"]}),
            ]
        ]

    caption, two, answers, matches, analysis = talk(server, conversation, mode)
    best = tiny_model.caption(path, num_captions=1, details=True)[0]
    assert caption["image"] == path.name and caption["captions"][0]["text"] == best.text
    assert caption["captions"][0]["score"] == pytest.approx(best.score, abs=1e-5)
    assert len(two["captions"]) == 2
    assert [one["answer"] for one in answers["answers"]] == tiny_model.ask(path, ["what is it?", "is it a dog?"])
    probabilities = [one["probability"] for one in matches["matches"]]
    assert probabilities == sorted(probabilities, reverse=True) and len(probabilities) == 2
    assert analysis["pages"][0]["answers"][0]["answer"] == tiny_model.ask(path, "what is it?")
    assert analysis["warning"] is None


def test_search_in_an_index(tiny_model: Model, image_paths: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    from openblip.search import Index

    folder = tmp_path / "photos.index"
    engine = in_turn(SharedModel(tiny_model))
    with pytest.raises(OptionError, match="there is no index in"):
        build_server(engine, index=folder)
    Index.open(folder, model=tiny_model).add(image_paths[0].parent)
    server = build_server(engine, ImageReferences(image_paths[0].parent), index=folder)
    photos = call(server, "search", image="photo3.png", top=2).structured_content["photos"]
    assert photos[0]["path"] == "photo3.png" and len(photos) == 2
    assert len(call(server, "search", text="the dog", top=3).structured_content["photos"]) == 3
    assert "one of both" in told(call(server, "search"))
    assert "one of both" in told(call(server, "search", text="a", image="photo1.png"))
    assert "top" in told(call(server, "search", text="a", top=10**6))
    remote = build_server(engine, index=folder)
    encoded = base64.b64encode(image_paths[2].read_bytes()).decode()
    assert call(remote, "search", image=encoded, top=1).structured_content["photos"][0]["path"] == "photo3.png"


@pytest.mark.parametrize(
    ("tool", "arguments", "problem"),
    [
        ("caption", {"image": "gone.png"}, "gone.png: there is no such file in the folder"),
        ("caption", {"image": "../../../etc/passwd"}, "lies outside of the folder"),
        ("caption", {"image": "http://127.0.0.1/a.png"}, "those are not allowed here"),
        ("caption", {"image": "file:///etc/passwd"}, "lies outside of the folder"),
        ("caption", {"image": "data:image/png;base64,!!!"}, "is no valid base64"),
        ("caption", {}, "the arguments of caption are wrong (image: Field required)"),
        ("caption", {"image": 3}, "image: Input should be a valid string"),
        ("caption", {"image": ""}, "image: String should have at least 1 character"),
        ("caption", {"image": "photo1.png", "count": 99}, "count: Input should be less than or equal to 8"),
        ("caption", {"image": "photo1.png", "prompt": "x" * 2001}, "prompt: String should have at most 2000"),
        ("ask", {"image": "photo1.png", "questions": []}, "questions: List should have at least 1 item"),
        ("ask", {"image": "photo1.png", "questions": [" "]}, "question"),
        ("ask", {"image": "photo1.png", "questions": ["x"] * 21}, "questions: List should have at most 20"),
        ("match", {"image": "photo1.png", "texts": [["a"]]}, "texts.0: Input should be a valid string"),
        ("analyze", {"document": "photo1.png", "question_set": "/etc/passwd"}, "there is no set '/etc/passwd'"),
        ("analyze", {"document": "photo1.png", "pages": "7-"}, "page"),
        ("analyze", {"document": "photo1.png", "questions": []}, "questions: List should have at least 1 item"),
        ("analyze", {"document": base64.b64encode(b"%PDF-1.4" + b"x" * 90).decode()}, "characters of base64>"),
        ("nothing", {}, "Unknown tool: nothing"),
    ],
)
def test_errors_are_one_sentence(server: Any, tool: str, arguments: dict[str, Any], problem: str) -> None:
    assert problem in told(call(server, tool, **arguments))


def test_what_no_client_has_caused_is_not_told(server: Any, tiny_model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a secret of this machine")

    monkeypatch.setattr(Model, "caption", broken)
    assert told(call(server, "caption", image="photo1.png")) == "Error executing tool caption"


def test_nothing_is_read_unless_it_is_allowed(tiny_model: Model, image_paths: list[Path]) -> None:
    server = build_server(in_turn(SharedModel(tiny_model)))
    assert "files of this machine are not read here" in told(call(server, "caption", image=str(image_paths[0])))


def test_the_logging_of_the_program_stays_as_it_is(tiny_model: Model) -> None:
    root = logging.getLogger()
    before, root.handlers[:] = root.handlers[:], []
    level = root.level
    try:
        build_server(in_turn(SharedModel(tiny_model)))
        assert root.handlers == [] and root.level == level
    finally:
        root.handlers[:] = before


def test_a_call_that_is_cancelled_while_it_waits_is_not_begun(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()
    calls: list[str] = []

    def slow(self: Model, images: Any, prompt: str | None = None, **_: Any) -> Any:
        calls.append(prompt or "")
        begun.set()
        assert go_on.wait(600)
        return [openblip.GeneratedText("done", 0.0)]

    monkeypatch.setattr(Model, "caption", slow)

    async def run() -> None:
        async with Client(server, mode="2026-07-28") as client, anyio.create_task_group() as group:
            group.start_soon(client.call_tool, "caption", {"image": "photo1.png", "prompt": "first"})
            await anyio.to_thread.run_sync(begun.wait)
            with anyio.move_on_after(0.2):
                await client.call_tool("caption", {"image": "photo1.png", "prompt": "second"})
            go_on.set()
            done = await client.call_tool("caption", {"image": "photo1.png", "prompt": "third"})
            assert done.structured_content["captions"][0]["text"] == "done"

    asyncio.run(run())
    assert calls == ["first", "third"]


def test_pieces_of_a_call_take_turns_with_others(tiny_model: Model) -> None:
    engine = in_turn(SharedModel(tiny_model))
    begun, go_on = threading.Event(), threading.Event()
    done: list[Any] = []

    def pages(_: Model) -> Iterator[int]:
        for number in range(3):
            begun.set()
            assert go_on.wait(600)
            done.append(number)
            yield number

    async def other() -> None:
        await engine(lambda _: done.append("other"))

    async def run() -> list[int]:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.to_thread.run_sync, begun.wait)

            async def release() -> None:
                await anyio.to_thread.run_sync(begun.wait)
                group.start_soon(other)
                while not engine.turn.statistics().tasks_waiting:  # type: ignore[attr-defined]
                    await anyio.sleep(0.001)
                go_on.set()

            group.start_soon(release)
            return await engine.each(pages)

    assert asyncio.run(run()) == [0, 1, 2]
    assert done == [0, "other", 1, 2]


# ---- streamable HTTP


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """A server at a free port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(name="mini", scope="module")
def _mini() -> SharedModel:
    return SharedModel("mini", "cpu")


@pytest.mark.parametrize("version", ["2025-11-25", "2026-07-28"])
def test_a_client_whose_connection_ends_while_it_waits_is_not_served(
    tiny_model: Model, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    calls: list[str] = []

    def slow(self: Model, images: Any, prompt: str | None = None, **_: Any) -> Any:
        calls.append(prompt or "")
        begun.set()
        assert go_on.wait(600)
        return [openblip.GeneratedText("done", 0.0)]

    monkeypatch.setattr(Model, "caption", slow)

    def asked(prompt: str) -> dict[str, Any]:
        arguments = {"name": "caption", "arguments": {"image": "photo1.png", "prompt": prompt}}
        meta = {
            "io.modelcontextprotocol/protocolVersion": version,
            "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {**arguments, "_meta": meta}}

    head = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": version}
    head |= {"Mcp-Method": "tools/call", "Mcp-Name": "caption"}
    engine: Any = in_turn(SharedModel(tiny_model))
    app = http_app(build_server(engine, ImageReferences(image_paths[0].parent)))

    def waiting(calls: int) -> None:
        until = time.monotonic() + 600
        while engine.turn.statistics().tasks_waiting != calls:
            assert time.monotonic() < until
            time.sleep(0.005)

    with (
        serving(app) as url,
        httpx2.Client(base_url=url, headers=head, timeout=600) as web,
        ThreadPoolExecutor() as pool,
    ):
        first = pool.submit(web.post, "/mcp", json=asked("first"))
        assert begun.wait(600)
        host, _, port = url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as leaving:
            request = web.build_request("POST", "/mcp", json=asked("second"))
            lines = [f"{name}: {value}" for name, value in request.headers.items()]
            leaving.sendall("\r\n".join(["POST /mcp HTTP/1.1", *lines, "", ""]).encode() + request.read())
            waiting(1)
        waiting(0)
        third = pool.submit(web.post, "/mcp", json=asked("third"))
        waiting(1)
        go_on.set()
        for one in (first, third):
            assert "done" in one.result(600).text
    assert calls == ["first", "third"]


@pytest.mark.parametrize("mode", MODES)
def test_a_photo_of_20_megabytes_over_http(mini: SharedModel, mode: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2582, 2582, 3), dtype=np.uint8)
    with Image.open(DOG) as dog:
        noise[:2000, :2000] = np.asarray(dog.convert("RGB").resize((2000, 2000)))
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "BMP")
    assert 19.9e6 < len(file.getvalue()) < 20.1e6
    encoded = base64.b64encode(file.getvalue()).decode()
    small_photo = base64.b64encode(DOG.read_bytes()).decode()
    app = http_app(build_server(in_turn(mini)), allowed_hosts=["127.0.0.1:*"])
    with serving(app) as url:
        result = call(f"{url}/mcp", "caption", mode, image=f"data:image/bmp;base64,{encoded}")
        small = call(
            f"{url}/mcp",
            "ask",
            mode,
            image=small_photo,
            questions=["what animal is this?"],
        )
        medical = call(f"{url}/mcp", "analyze", mode, document=small_photo, question_set="ct")
    assert "no diagnosis" in good(medical)["warning"]
    with mini.use() as model:
        assert result.structured_content["captions"][0]["text"] == model.caption(file.getvalue())
    assert small.structured_content["answers"][0]["answer"] == "dog"
    assert json.loads(small.content[0].text) == small.structured_content


def test_larger_requests_and_other_names_are_refused(server: Any) -> None:
    app = http_app(server, allowed_hosts=["127.0.0.1:*"], max_body_bytes=5000)
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    accepted = {"Accept": "application/json, text/event-stream"}
    with serving(app) as url, httpx2.Client(headers=accepted) as web:
        assert web.post(f"{url}/mcp", json=body | {"params": {"x": "y" * 5000}}).status_code == 413
        assert web.post(f"{url}/mcp", json=body, headers={"Host": "evil.example"}).status_code == 421
        assert web.post(f"{url}/mcp", json=body, headers={"Origin": "http://evil.example"}).status_code == 403
        assert (
            web.post(f"{url}/mcp", content=b"{" * 4000, headers={"Content-Type": "application/json"}).status_code == 400
        )


@pytest.mark.parametrize("mode", MODES)
def test_a_key_opens_the_door(server: Any, mode: str, tmp_path: Path) -> None:
    keys = ["the-first-key-of-two", "another-key-of-two"]
    (tmp_path / "keys.txt").write_text("\n".join(keys))
    with serving(Keys(http_app(server), read_keys(tmp_path / "keys.txt"))) as url:
        for header in (
            "",
            "Bearer",
            "Bearer wrong",
            f"Basic {keys[0]}",
            f"Bearer {keys[0]}x",
            f"Bearer {keys[0]} {keys[1]}",
        ):
            answer = httpx2.post(f"{url}/mcp", json={}, headers={"Authorization": header})
            assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert "send the header" in answer.json()["error"]["message"]
        for key in keys:

            @asynccontextmanager
            async def transport(key: str = key) -> Any:
                async with (
                    httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=600) as web,
                    streamable_http_client(f"{url}/mcp", http_client=web) as streams,
                ):
                    yield streams

            assert call(transport(), "caption", mode, image="photo1.png").structured_content["captions"]


def test_another_application_takes_its_route(server: Any) -> None:
    inner = http_app(server, path="/tools")

    @asynccontextmanager
    async def lifespan(app: Any) -> Any:
        async with inner.router.lifespan_context(inner):
            yield

    async def hello(_: Any) -> PlainTextResponse:
        return PlainTextResponse("hello")

    app = Starlette(routes=[Route("/", hello)], lifespan=lifespan)
    app.router.routes.extend(inner.routes)
    with serving(app) as url:
        assert httpx2.get(url).text == "hello"
        assert call(f"{url}/tools", "caption", image="photo1.png").structured_content["captions"]


# ---- standard input, and the command


@pytest.mark.parametrize("mode", [MODES[1], pytest.param(MODES[0], marks=pytest.mark.slow)])
def test_standard_input(mode: str, tmp_path: Path) -> None:
    command = ["-m", "openblip", "mcp", "--root", str(EXAMPLES), "--device", "cpu"]

    async def conversation(client: Client) -> list[Any]:
        good = await client.call_tool("caption", {"image": DOG.name})
        return [good, await client.call_tool("caption", {"image": "../README.md"})]

    good, outside = talk(StdioServerParameters(command=sys.executable, args=command), conversation, mode)
    assert good.structured_content["captions"][0]["text"] == "a white dog is running on the beach"
    assert "lies outside of the folder" in told(outside)
