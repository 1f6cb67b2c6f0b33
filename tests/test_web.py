"""Servers that never come to an end, wherever in their answer, and addresses that are nobody else's business."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openblip.errors import DownloadError, ImageError, OpenBlipError
from openblip.fetch import fetch
from openblip.images.decode import load_image
from openblip.images.sources import download
from openblip.web import addresses
from openblip.web.policy import url_policy

_file = BytesIO()
Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(_file, "PNG")
PNG = _file.getvalue()
OK = b"HTTP/1.1 200 OK\r\n"
GOOD = OK + b"Content-Length: %d\r\n\r\n" % len(PNG) + PNG
BUFFERS = 64 * 2**20
"""More than the two ends of a connection hold between them."""


class Server:
    """Sends each visitor the next of its answers, a beginning and what is then repeated until the visitor hangs up.

    Attributes:
        sent: bytes of all answers.
    """

    def __init__(self, *answers: tuple[bytes, bytes], address: str = "127.0.0.1", port: int = 0) -> None:
        self.sent = 0
        self.requests: list[bytes] = []
        self._answers = answers
        self._listening = socket.create_server((address, port))
        self.port = self._listening.getsockname()[1]
        self.url = f"http://{address}:{self.port}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        for start, again in self._answers:
            with suppress(OSError):
                visitor, _ = self._listening.accept()
                with visitor, suppress(OSError):
                    head = b""
                    while b"\r\n\r\n" not in head and (piece := visitor.recv(4096)):
                        head += piece
                    self.requests.append(head)
                    visitor.sendall(start)
                    self.sent += len(start)
                    while again:
                        visitor.sendall(again)
                        self.sent += len(again)

    def close(self) -> None:
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)  # wakes who waits for a visitor
        self._listening.close()
        self._thread.join()


@contextmanager
def serving(*answers: tuple[bytes, bytes], address: str = "127.0.0.1", port: int = 0) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "*")
        server = Server(*answers, address=address, port=port)
        try:
            yield server
        finally:
            server.close()


def get(address: str, *, clock: Callable[[], float] = time.monotonic, **changed: Any) -> bytes:
    """A file from the web, by the environment's rules but for what is changed."""
    return download(address, replace(url_policy(), **changed), clock=clock)


def ticking(seconds: float) -> Callable[[], float]:
    """A clock by which every look takes so long."""
    ticks = count()
    return lambda: next(ticks) * seconds


ENDLESS = {
    "status line": (b"HTTP/1.1 200 ", b"O"),
    "header": (OK + b"X-Long: ", b"x"),
    "headers": (OK, b"X-One-More: 1\r\n"),
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "headers of continue": (b"HTTP/1.1 100 Continue\r\n", b"X-One-More: 1\r\n"),
    "body": (OK + b"\r\n", b"x"),
    "chunk size": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0"),
    "chunk extension": (OK + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x"),
    "chunks": (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "trailers": (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X-One-More: 1\r\n"),
    "slow body": (OK + b"Content-Length: 1000000\r\n\r\n", b"x"),
}
TOO_MUCH = (
    r"larger than \d+ bytes|headers of more than|header line|got more than 100 headers|chunk|LineTooLong|"
    r"status line|IncompleteRead|unreasonably"
)


@pytest.mark.parametrize("part", ENDLESS)
def test_no_part_of_an_answer_outlasts_the_deadline(part: str) -> None:
    with serving(ENDLESS[part]) as server, pytest.raises(ImageError, match=f"took longer than 120 s|{TOO_MUCH}"):
        get(server.url, clock=ticking(25.0))


@pytest.mark.parametrize("part", [part for part in ENDLESS if part != "slow body"])
def test_no_part_of_an_answer_outgrows_its_limit(part: str) -> None:
    start, again = ENDLESS[part]
    with serving((start, again * (8192 // len(again)))) as server:
        with pytest.raises(ImageError, match=TOO_MUCH):
            get(server.url, max_bytes=100_000, clock=lambda: 0.0)
        assert server.sent < BUFFERS


def test_the_bodies_of_redirects_are_not_read() -> None:
    moved = b"HTTP/1.1 302 Found\r\nLocation: /photo.png\r\n\r\n"
    with serving((moved, b"x" * 65536), (moved, b"x" * 65536), (GOOD, b"")) as server:
        assert load_image(server.url).size == (8, 8)
        assert server.sent < BUFFERS


def test_the_deadline_and_the_limits_are_those_of_all_redirects_together() -> None:
    moved = b"HTTP/1.1 302 Found\r\nLocation: /again\r\nX-Long: " + b"x" * 60_000 + b"\r\n\r\n"
    with serving(*[(moved, b"")] * 8) as server:
        with pytest.raises(ImageError, match="headers of more than"):
            get(server.url, clock=lambda: 0.0)
        assert len(server.requests) < 8
    moved = b"HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n"
    with serving(*[(moved, b"")] * 8) as server, pytest.raises(ImageError, match="took longer than 120 s"):
        get(server.url, clock=ticking(10.0))
    with serving(*[(moved, b"")] * 11) as server, pytest.raises(ImageError, match="redirects in a circle"):
        get(server.url)


def test_what_is_sent_compressed_is_not_unpacked() -> None:
    packed = OK + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"
    with serving((packed, b"")) as server, pytest.raises(ImageError, match=r"sent it compressed \(gzip\)"):
        get(server.url)


def test_a_name_that_nobody_looks_up_and_a_handshake_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    with listening, pytest.raises(ImageError, match=r"took longer than 0\.2 s"):
        get(f"https://127.0.0.1:{listening.getsockname()[1]}", total_s=0.2)
    woken = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: woken.wait())
    with pytest.raises(ImageError, match=r"took longer than 0\.2 s"):
        get("http://example.org", total_s=0.2)
    woken.set()


def test_a_file_of_weights_has_to_begin_and_to_go_on(tmp_path: Path) -> None:
    for part in ENDLESS.keys() - {"body", "slow body", "chunks"}:
        with serving(*[ENDLESS[part]] * 9) as server, pytest.raises(DownloadError, match="cannot be downloaded"):
            fetch(server.url, tmp_path / "file", first_wait_s=0.0, clock=ticking(20.0))
    told: list[object] = []
    with serving(ENDLESS["body"]) as server, pytest.raises(DownloadError, match="arrives at less than 131072 bytes"):
        fetch(
            server.url,
            tmp_path / "slow",
            first_wait_s=0.0,
            progress=lambda *_: told.append(None),
            clock=lambda: 700.0 * len(told),
        )


# ---- addresses


PRIVATE = [
    *("127.0.0.1", "127.8.9.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
    *("100.64.0.1", "100.100.100.200", "192.0.0.192", "168.63.129.16", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "fe80::1", "fe80::1%1", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "::ffff:0:127.0.0.1"),
    *("64:ff9b::10.0.0.1", "64:ff9b:1::1.1.1.1", "2002:7f00:1::", "2002:a00:1::1", "2001:db8::1"),
]
PUBLIC = ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "64:ff9b::1.1.1.1", "2002:101:101::", "::ffff:1.1.1.1"]


def test_private_addresses_are_told_from_public_ones() -> None:
    assert [address for address in PRIVATE if not addresses.is_private(address)] == []
    assert [address for address in PUBLIC if addresses.is_private(address)] == []
    keys = ["169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "100.100.100.200", "fd00:ec2::254"]
    assert [address for address in [*PRIVATE, *PUBLIC, *keys] if addresses.is_metadata(address)] == [
        *("169.254.169.254", "100.100.100.200", "192.0.0.192", "168.63.129.16", "fd00:ec2::254", *keys)
    ]


@pytest.fixture
def shut(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is outside of these tests: private addresses are not asked."""
    monkeypatch.delenv(addresses.ALLOW_PRIVATE)
    monkeypatch.setenv("no_proxy", "*")


@pytest.mark.usefixtures("shut")
@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "0x7f000001", "2130706433", "[::1]", "[::ffff:127.0.0.1]", "0"]
)
def test_private_addresses_are_not_asked(host: str) -> None:
    with serving((GOOD, b"")) as server:
        # What this system does not take for an address at all is fine, too.
        with pytest.raises(ImageError, match=r"in a private network|cannot be downloaded"):
            load_image(f"http://{host}:{server.port}/photo.png")
        assert server.requests == []
        if host == "127.0.0.1":
            get(server.url, allow_private=True)


@pytest.mark.usefixtures("shut")
def test_every_address_of_a_name_is_checked_and_the_checked_ones_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up: list[str] = []
    found = {"mixed.example": ["93.184.216.34", "10.0.0.1"], "good.example": ["93.184.216.34"]}
    connected: list[Any] = []

    def getaddrinfo(host: str, port: int, **_: object) -> list[Any]:
        looked_up.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found[host]]

    def connect(_: socket.socket, address: Any) -> None:
        connected.append(address)
        found["good.example"] = ["127.0.0.1"]  # the name means another machine at the next look-up
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(ImageError, match="in a private network"):
        get("http://mixed.example/photo.png")
    with pytest.raises(ImageError, match="refused"):
        get("http://good.example/photo.png")
    assert connected == [("93.184.216.34", 80)]
    assert looked_up == ["mixed.example", "good.example"]


@pytest.mark.usefixtures("shut")
def test_redirects_into_a_private_network_are_not_followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with serving((GOOD, b"")) as inside:
        moved = b"HTTP/1.1 302 Found\r\nLocation: http://localhost:%d/\r\n\r\n" % inside.port
        # For this test the first server counts as a public one.
        is_private = addresses.is_private
        first = iter([False])
        monkeypatch.setattr(addresses, "is_private", lambda address: next(first, True) and is_private(address))
        with serving((moved, b"")) as outside, pytest.raises(ImageError, match="in a private network"):
            get(outside.url)
        first = iter([False])
        with serving((moved, b"")) as outside, pytest.raises(DownloadError, match="in a private network"):
            fetch(outside.url, tmp_path / "file")
        assert inside.requests == []


@pytest.mark.usefixtures("shut")
def test_files_may_come_from_a_mirror_in_a_private_network(tmp_path: Path) -> None:
    moved = b"HTTP/1.1 302 Found\r\nLocation: /there\r\n\r\n"
    with serving((moved, b""), (GOOD, b"")) as mirror:
        headers = {"Authorization": "Bearer secret"}
        assert fetch(mirror.url, tmp_path / "file", headers=headers).read_bytes() == PNG
        assert [b"secret" in request for request in mirror.requests] == [True, False]


def test_a_line_break_in_an_address_or_header_makes_no_second_request(tmp_path: Path) -> None:
    with serving((GOOD, b"")) as server:
        assert get(f"{server.url}/a\r\nX-Evil: 1").startswith(b"\x89PNG")
        assert b"\r\nX-Evil" not in server.requests[0]
    with serving((GOOD, b"")) as server, pytest.raises(OpenBlipError, match="line break"):
        fetch(server.url, tmp_path / "file", headers={"X-Token": "1\r\nX-Evil: 1"})


def test_proxies_are_used_and_told_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving((GOOD, b""), (b"HTTP/1.1 407 Who are you\r\n\r\n", b"")) as proxy:
        monkeypatch.delenv("no_proxy")
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://me:pass%20word@127.0.0.1:{proxy.port}")
        assert get("http://93.184.216.34/a.png") == PNG
        with pytest.raises(ImageError, match="the proxy answered 407"):
            get("https://93.184.216.34/a.png")
    assert proxy.requests[0].startswith(b"GET http://93.184.216.34/a.png HTTP/1.1\r\nHost: 93.184.216.34\r\n")
    assert proxy.requests[1].startswith(b"CONNECT 93.184.216.34:443 HTTP/1.1\r\n")
    assert all(b"Proxy-Authorization: Basic bWU6cGFzcyB3b3Jk\r\n" in request for request in proxy.requests)


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_web_addresses_can_be_forbidden_altogether(by: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if by == "environment":
        monkeypatch.setenv("OPENBLIP_ALLOW_URLS", "0")
    allowed = {"allow_urls": False} if by == "argument" else {}
    with serving((GOOD, b"")) as server:
        with pytest.raises(ImageError, match="is a web address, and those are not allowed here"):
            load_image(server.url, **allowed)
        assert server.requests == []
        assert load_image(PNG, **allowed).size == (8, 8)
        (tmp_path / "a.png").write_bytes(PNG)
        assert load_image(tmp_path / "a.png", **allowed).size == (8, 8)
        if by == "environment":
            assert load_image(server.url, allow_urls=True).size == (8, 8)
