"""Visitors of the page, who close it in the middle of something: what was going on for them ends."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections import defaultdict
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Result = TypeVar("Result")
RESULTS = "/gradio_api/queue/data"
"""Where a page waits for what its buttons do, for as long as they do it."""
UPLOADS = "/gradio_api/upload"
PRESENCE = "/gradio_api/heartbeat/"
"""What a page that is open asks for all the time; nothing else ever comes of it."""


class Sessions:
    """What is being done for each visitor, by the name that Gradio gives to one."""

    def __init__(self) -> None:
        self._tasks: defaultdict[str | None, set[asyncio.Task[Any]]] = defaultdict(set)

    async def run(self, session: str | None, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of work. Raises CancelledError when the visitor leaves."""
        task = self._begin(session, work)
        try:
            return await task
        finally:
            task.cancel()

    async def stream(self, session: str | None, work: AsyncGenerator[Result, None]) -> AsyncGenerator[Result, None]:
        """What work yields. Raises CancelledError when the visitor leaves, whether somebody asks for more or not."""
        results: asyncio.Queue[Result] = asyncio.Queue(1)
        wanted = asyncio.Semaphore(0)

        async def go() -> None:
            async with aclosing(work):
                async for one in work:
                    await results.put(one)
                    await wanted.acquire()  # what it yields may last only until it goes on, such as a file

        task = self._begin(session, go())
        try:
            while True:
                more = asyncio.ensure_future(results.get())
                try:
                    await asyncio.wait([more, task], return_when=asyncio.FIRST_COMPLETED)
                    if not more.done() and results.empty():
                        break
                    yield await more
                    wanted.release()
                finally:
                    more.cancel()
            await task
        finally:
            task.cancel()

    def leave(self, session: str) -> None:
        """End all that is done for a visitor."""
        for task in list(self._tasks.get(session, ())):
            task.cancel()

    def _begin(self, session: str | None, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        task = asyncio.create_task(work)
        self._tasks[session].add(task)
        task.add_done_callback(lambda done: self._end(session, done))
        return task

    def _end(self, session: str | None, task: asyncio.Task[Any]) -> None:
        own = self._tasks[session]
        own.discard(task)
        if not own:
            del self._tasks[session]
        with suppress(asyncio.CancelledError):
            task.exception()  # it was raised where it is waited for, if anybody still waits


class Visited:
    """Gradio's application: it is seen when a visitor leaves, and its failures are answered as those of other paths.

    Gradio itself lets work go on whose page was closed, and leaves beginnings of files on a disk without room.

    Args:
        folder: where uploads go.
        drained: set when open pages are all that the end of the server waits for.
    """

    def __init__(self, app: ASGIApp, sessions: Sessions, folder: str, drained: asyncio.Event) -> None:
        self.app = app
        self.sessions = sessions
        self.folder = folder
        self.drained = drained

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == UPLOADS:
            self._check_room(int(dict(scope["headers"]).get(b"content-length", b"0")))
        if scope["type"] == "http" and scope["path"].startswith(PRESENCE):
            receive = self._until_drained(receive)
        ended, left = False, False
        kept: list[Message] = []

        async def receive_seen() -> Message:
            nonlocal left
            message = await receive()
            left |= message["type"] == "http.disconnect" and not ended
            return message

        async def send_seen(message: Message) -> None:
            nonlocal ended
            if kept or message.get("status") == 500:
                kept.append(message)  # the error comes after it, and is the server's to tell
                return
            ended |= message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            await self.app(scope, receive_seen, send_seen)
        finally:
            if left and scope["type"] == "http" and scope["path"] == RESULTS:
                for session in parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", []):
                    self.sessions.leave(session)
        for message in kept:
            await send(message)

    def _until_drained(self, receive: Receive) -> Receive:
        async def next_message() -> Message:
            message, drained = asyncio.ensure_future(receive()), asyncio.ensure_future(self.drained.wait())
            try:
                await asyncio.wait([message, drained], return_when=asyncio.FIRST_COMPLETED)
                return message.result() if message.done() else {"type": "http.disconnect"}
            finally:
                message.cancel()
                drained.cancel()

        return next_message

    def _check_room(self, size: int) -> None:
        if shutil.disk_usage(self.folder).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.folder)
