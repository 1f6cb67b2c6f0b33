"""The page in a browser without a window: it asks nobody else, fits a phone, and shows what the model wrote."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from openblip.models.model import Model

from .conftest import WAIT, served_by

pytest.importorskip("gradio", reason='the page needs Gradio: make test-web, or pip install "openblip[web]"')
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
WIDTHS = {"desktop": 1280, "phone": 390}
BUTTON = "[...document.querySelectorAll('button.primary')].find(one => one.offsetParent)"
RESULT = "[...document.querySelectorAll('textarea')].find(one => one.offsetParent && one.disabled)"


class Tab:
    """A tab of Chromium, driven by its own protocol."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.calls = 0
        self.events: list[dict[str, Any]] = []

    async def call(self, method: str, **params: Any) -> Any:
        self.calls += 1
        await self.socket.send(json.dumps({"id": self.calls, "method": method, "params": params}))
        while True:
            message = json.loads(await asyncio.wait_for(self.socket.recv(), WAIT))
            if message.get("id") == self.calls:
                return message["result"]
            self.events.append(message)

    async def value(self, script: str) -> Any:
        found = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, script: str) -> None:
        """Wait, in the page, for something to be there."""
        wait = "new Promise(go => { const look = () => (%s) ? go(true) : setTimeout(look, 100); look(); })"
        await self.value(wait % script)

    def named(self, method: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event.get("method") == method]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Where a browser's tab is driven."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    places = [f"--user-data-dir={tmp_path / 'profile'}", "--remote-debugging-port=0", "about:blank"]
    process = subprocess.Popen([str(BROWSER), *options, *places], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    (port,) = next(found.groups() for line in process.stderr if (found := re.search(r"ws://127.0.0.1:(\d+)/", line)))
    threading.Thread(target=process.stderr.read, daemon=True).start()
    with urlopen(f"http://127.0.0.1:{port}/json", timeout=WAIT) as answer:
        tabs = json.load(answer)
    yield next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
    process.kill()
    process.wait()


@pytest.mark.parametrize("screen", WIDTHS)
def test_a_photo_is_captioned(screen: str, address: str, tiny_model: Model, image_paths: list[Path]) -> None:
    client = pytest.importorskip("websockets.asyncio.client")

    async def visit(url: str) -> None:
        async with client.connect(address, max_size=None) as socket:
            tab = Tab(socket)
            for domain in ("Page", "Runtime", "Network", "DOM"):
                await tab.call(f"{domain}.enable")
            size = {"width": WIDTHS[screen], "height": 844, "deviceScaleFactor": 1, "mobile": screen == "phone"}
            await tab.call("Emulation.setDeviceMetricsOverride", **size)
            await tab.call("Page.navigate", url=url)
            await tab.until(f"document.querySelector('input[type=file]') && {BUTTON}")
            root = (await tab.call("DOM.getDocument", depth=1))["root"]["nodeId"]
            chooser = (await tab.call("DOM.querySelector", nodeId=root, selector="input[type=file]"))["nodeId"]
            await tab.call("DOM.setFileInputFiles", files=[str(image_paths[0])], nodeId=chooser)
            await tab.until(f"document.querySelector('img[src*=\"{image_paths[0].stem}\"]')")
            await tab.value(f"{BUTTON}.focus()")
            for kind in ("keyDown", "keyUp"):
                key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
                await tab.call("Input.dispatchKeyEvent", type=kind, **key)
            await tab.until(f"{RESULT} && {RESULT}.value")
            assert await tab.value(f"{RESULT}.value") == tiny_model.caption(image_paths[0])
            assert await tab.value("document.documentElement.scrollWidth") <= WIDTHS[screen]
            asked = [one["request"]["url"] for one in tab.named("Network.requestWillBeSent")]
            assert asked and [one for one in asked if not one.startswith((url, "data:", "blob:"))] == []
            assert tab.named("Runtime.exceptionThrown") == []
            assert [one for one in tab.named("Runtime.consoleAPICalled") if one["type"] == "error"] == []

    with served_by(tiny_model, page=True) as one:
        asyncio.run(visit(one.url))
