"""A web server that behaves as badly as it is told to, and a Hugging Face hub on top of it."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Page:
    """What the server has under one address, and its moods.

    Attributes:
        cuts: after how many bytes the next answers end the connection.
        statuses: what the next requests are refused with.
        lies: bodies that the next answers have instead of the right one.
        takes_ranges: whether parts can be asked for.
        names_length: whether answers say how long they are.
        wait_s: before every tenth of a body.
        moved: another address, which requests for the body are sent to.
    """

    body: bytes
    etag: str = '"v1"'
    headers: dict[str, str] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    lies: list[bytes] = field(default_factory=list)
    takes_ranges: bool = True
    names_length: bool = True
    wait_s: float = 0.0
    moved: str = ""

    def with_google_hash(self) -> Page:
        digest = base64.b64encode(hashlib.md5(self.body, usedforsecurity=False).digest()).decode()
        self.headers["x-goog-hash"] = f"crc32c=AAAAAA==,md5={digest}"
        return self


@dataclass
class Web:
    """A running server.

    Attributes:
        asked: every request as (method, path, range); tokens: what each says who it is.
    """

    url: str
    pages: dict[str, Page] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)

    def gets(self, path: str) -> list[str]:
        """The ranges that were asked for of a page, "" for all of it."""
        return [wanted for method, asked, wanted in self.asked if method == "GET" and asked == path]


@contextmanager
def serve() -> Iterator[Web]:
    """A server on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            path, wanted = urlsplit(self.path).path, self.headers.get("Range", "")
            web.asked.append((self.command, path, wanted))
            web.tokens.append(self.headers.get("Authorization", ""))
            page = web.pages.get(path)
            if page is None or page.statuses:
                self.refuse(404 if page is None else page.statuses.pop(0), page)
                return
            if with_body and page.moved:
                self.send_response(302)
                self.send_header("Location", page.moved)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = page.lies.pop(0) if with_body and page.lies else page.body
            start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted and page.takes_ranges else 0
            if start >= len(body) > 0:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.finish_headers(page, 0)
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.finish_headers(page, len(body) - start)
            if with_body:
                self.send(body[start:], page)

        def refuse(self, status: int, page: Page | None) -> None:
            self.send_response(status)
            for name, value in (page.headers if page else {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def finish_headers(self, page: Page, length: int) -> None:
            self.send_header("ETag", page.etag)
            for name, value in page.headers.items():
                self.send_header(name, value)
            if page.names_length:
                self.send_header("Content-Length", str(length))
            else:
                self.close_connection = True
            self.end_headers()

        def send(self, body: bytes, page: Page) -> None:
            cut = page.cuts.pop(0) if page.cuts else len(body)
            step = max(1, -(-len(body) // 10))
            for begin in range(0, min(cut, len(body)), step):
                time.sleep(page.wait_s)
                try:
                    self.wfile.write(body[begin : min(begin + step, cut)])
                except OSError:  # the other side is gone
                    break
            self.close_connection = self.close_connection or cut < len(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    web = Web(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def add_repository(web: Web, name: str, files: dict[str, bytes], revision: str = "main") -> None:
    """Let the server be a hub that has one more repository; files named *.safetensors and *.bin are large ones."""
    siblings: list[dict[str, Any]] = []
    for file, body in files.items():
        digest = hashlib.sha256(body).hexdigest()
        large = file.endswith((".safetensors", ".bin"))
        entry: dict[str, Any] = {"rfilename": file, "size": len(body), "blobId": digest[:40]}
        if large:
            entry["lfs"] = {"size": len(body), "sha256": digest, "pointerSize": 130}
        siblings.append(entry)
        headers = {"X-Repo-Commit": COMMIT}
        web.pages[f"/{name}/resolve/{revision}/{file}"] = Page(
            body, etag=f'"{digest if large else digest[:40]}"', headers=headers
        )
    info = {"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0, "likes": 0}
    page = Page(json.dumps(info).encode(), headers={"Content-Type": "application/json"})
    web.pages[f"/api/models/{name}"] = web.pages[f"/api/models/{name}/revision/{revision}"] = page
