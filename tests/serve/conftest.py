"""Real servers on sockets of this machine, in a thread of the tests' own process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from openblip.models.model import Model

collect_ignore_glob = [] if find_spec("fastapi") and find_spec("httpx2") else ["test_*.py"]
if not find_spec("mcp"):
    collect_ignore_glob = [*collect_ignore_glob, "test_tools.py"]

if TYPE_CHECKING:
    import httpx2

    from openblip import UrlPolicy
    from openblip.search import Index
    from openblip.serve.limits import Limits
    from openblip.serve.server import DrainedServer
    from openblip.serve.service import Service

WAIT = 600
"""Seconds that a test waits for anything, on a machine however busy."""


@dataclass(frozen=True)
class Served:
    """A server under way, and a client of it."""

    url: str
    http: httpx2.Client
    service: Service
    server: DrainedServer
    loop: asyncio.AbstractEventLoop

    def post(self, path: str, *images: Path | bytes, field: str = "file", **fields: Any) -> httpx2.Response:
        files = [
            (field, (image.name, image.read_bytes()) if isinstance(image, Path) else ("photo.png", image))
            for image in images
        ]
        return self.http.post(path, files=files, data=fields)

    def metric(self, name: str, **labels: str) -> float:
        return self.service.metrics.registry.get_sample_value(name, labels) or 0.0


@contextmanager
def served_by(
    model: Model,
    limits: Limits | None = None,
    keys: list[bytes] | None = None,
    page: bool = False,
    index: Index | None = None,
    urls: UrlPolicy | None = None,
    mcp: bool = False,
    logs: bool = False,
    threads: int = 1,
) -> Iterator[Served]:
    """A server of a model, perhaps with its page, which searches in an index, or tools; it is drained at the end."""
    import httpx2

    from openblip.cli.serve import page_of
    from openblip.serve.app import make_app
    from openblip.serve.listening import LOOPBACK_HOSTS, listen
    from openblip.serve.server import make_server
    from openblip.serve.service import Service

    service = Service(model, limits, threads=threads, urls=urls).start()
    ready = threading.Event()
    mount = page_of(service, index) if page else None
    tools = None
    if mcp:
        from openblip.serve.tools import mcp_app

        tools = mcp_app(service, allowed_hosts=LOOPBACK_HOSTS)
    server = make_server(make_app(service, keys=keys or [], logs=logs, page=mount, tools=tools), service, ready.set)
    loop = asyncio.new_event_loop()
    listener = listen("127.0.0.1", 0)

    def run() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(server.serve(sockets=[listener]))
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(WAIT)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        with httpx2.Client(base_url=url, timeout=WAIT) as client:
            yield Served(url, client, service, server, loop)
    finally:
        if thread.is_alive():
            loop.call_soon_threadsafe(server.stop)
        thread.join(WAIT)
        service.end(WAIT)
        listener.close()
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def served(tiny_model: Model) -> Iterator[Served]:
    """A server of the tiny model with the usual limits."""
    with served_by(tiny_model) as one:
        yield one


@pytest.fixture(scope="session")
def serving(tiny_model: Model) -> Callable[..., Any]:
    """`served_by` of the tiny model."""
    return lambda *settings, **more: served_by(tiny_model, *settings, **more)
