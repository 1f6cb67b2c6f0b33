#!/usr/bin/env bash
# mcp==2.3.0, uvicorn==0.54.0 (streamable HTTP)
# Whether a tool call that its client gave up is still run depends on two options that are not about cancelling. Protocol
# 2025-11-25 cancels it unless stateless_http=True; protocol 2026-07-28 cancels it unless json_response=True, because the
# server notices nothing of a client that closes the connection before its one JSON answer. The client sees no
# difference. A server whose calls wait for one model then works for people who left.
#
# Seen: of three calls that a lock runs one by one, the second given up while it waits, these were run:
#   2025-11-25  in process: 1 3   sessions: 1 3   sessions, JSON: 1 3     stateless: 1 2 3   stateless, JSON: 1 2 3
#   2026-07-28  in process: 1 3   sessions: 1 3   sessions, JSON: 1 2 3   stateless: 1 3     stateless, JSON: 1 2 3
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv venv
venv/bin/pip --disable-pip-version-check install --quiet mcp==2.3.0 uvicorn==0.54.0

venv/bin/python - <<'PYTHON'
import asyncio
import logging
import socket
import sys
import threading
import time

import anyio
import uvicorn
from mcp import Client
from mcp.server.mcpserver import MCPServer

logging.disable(logging.CRITICAL)
ran: list[str] = []


def build() -> tuple[MCPServer, threading.Event, threading.Event]:
    server = MCPServer("queue")
    lock, begun, release = anyio.Lock(), threading.Event(), threading.Event()

    @server.tool()
    async def work(name: str) -> str:
        async with lock:  # one call at a time; the others wait
            ran.append(name)
            begun.set()
            await anyio.to_thread.run_sync(release.wait)
        return name

    return server, begun, release


async def session(target, mode: str, begun, release) -> list[str]:
    ran.clear()
    async with Client(target, mode=mode) as client, anyio.create_task_group() as group:
        group.start_soon(client.call_tool, "work", {"name": "1"})
        await anyio.to_thread.run_sync(begun.wait)
        with anyio.move_on_after(1):  # given up while it waits for the lock
            await client.call_tool("work", {"name": "2"})
        await anyio.sleep(1)
        release.set()
        await client.call_tool("work", {"name": "3"})
    return list(ran)


def over_http(mode: str, **options: bool) -> list[str]:
    server, begun, release = build()
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(server.streamable_http_app(**options), log_level="critical")
    web = uvicorn.Server(config)
    thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not web.started:
        time.sleep(0.05)
    try:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
        return asyncio.run(session(url, mode, begun, release))
    finally:
        web.should_exit = True
        thread.join()


def in_process(mode: str) -> list[str]:
    server, begun, release = build()
    return asyncio.run(session(server, mode, begun, release))


expected = {
    "legacy": {"in process": "1 3", "00": "1 3", "01": "1 3", "10": "1 2 3", "11": "1 2 3"},
    "2026-07-28": {"in process": "1 3", "00": "1 3", "01": "1 2 3", "10": "1 3", "11": "1 2 3"},
}
seen: dict[str, dict[str, str]] = {}
for mode in expected:
    seen[mode] = {"in process": " ".join(in_process(mode))}
    for stateless in (False, True):
        for as_json in (False, True):
            names = over_http(mode, stateless_http=stateless, json_response=as_json)
            seen[mode][f"{stateless:d}{as_json:d}"] = " ".join(names)
    print(mode, seen[mode])
if seen != expected:
    sys.exit("the behaviour has changed")
PYTHON
