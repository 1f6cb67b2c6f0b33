"""One request to a web server, within limits on time, bytes and addresses, over all the servers it is redirected to.

Everything a server sends passes `_Wire`: status lines, headers, "100 Continue" answers, chunk sizes, trailers, bodies.
So no part of an answer can outlast the deadline or outgrow the limits, however it is dripped.
"""

from __future__ import annotations

import base64
import http.client
import io
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, cast
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from openblip.web import addresses
from openblip.web.addresses import ALLOW_PRIVATE
from openblip.web.policy import ALLOW_URLS, ANY, Found, Resolver, allows

MAX_HEAD_BYTES = 256 * 2**10
"""Of status lines and headers, over all redirects."""
MAX_REDIRECTS = 10
REDIRECTS = (301, 302, 303, 307, 308)
LEADS_NOWHERE = "redirects in a circle or to something that is not http or https"
PORTS = {"http": 80, "https": 443}
AGENT = {"User-Agent": "openblip", "Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close"}


class AddressError(Exception):
    """An address that is not asked: of another scheme or host, private, or without end."""


class TooLargeError(Exception):
    """The answer is larger than its limit."""


class TooSlowError(TimeoutError):
    """The deadline of the whole request has passed."""


@dataclass(frozen=True)
class Limits:
    """What one request may take, redirects included.

    Attributes:
        silence_s: seconds a server may take between two pieces of its answer.
        head_s: seconds from the first look-up of a name until the headers of the last answer are there; likewise for
            each piece of the body.
        total_s: seconds until the end of the body; None for no limit on the body.
        max_bytes: that arrive, headers and framing included; None for no limit but on headers and framing.
        allow_private: whether servers may have addresses of this machine, of private networks or of a cloud's own
            services. None: only when the first one has.
        hosts: that may be asked, as in `UrlPolicy`.
        use_proxies: whether those of the environment are.
        resolve: looks up names instead of `socket.getaddrinfo`.
        clock: tells the seconds for `head_s` and `total_s`.
    """

    silence_s: float
    head_s: float
    total_s: float | None = None
    max_bytes: int | None = None
    allow_private: bool | None = False
    hosts: Iterable[str] = (ANY,)
    use_proxies: bool = True
    resolve: Resolver | None = None
    clock: Callable[[], float] = time.monotonic


@contextmanager
def open_url(
    url: str,
    limits: Limits,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    first_headers: Mapping[str, str] | None = None,
) -> Iterator[Answer]:
    """Ask for an http or https address; the body is read from what is given, and the connection closed at the end.

    Redirects are followed, their bodies not read. Proxies named by the environment are used; they look up names
    themselves, so that only addresses that this machine can look up are checked then.

    Args:
        headers: sent to every server.
        first_headers: sent to the first one alone, such as a token.

    Yields:
        The last answer, whatever its status.

    Raises:
        AddressError, TooLargeError, TooSlowError: see there.
        OSError, http.client.HTTPException: the connection or the answer is broken.
        ValueError: the address is no address.
    """
    budget = _Budget(limits)
    sent = {**AGENT, **(headers or {}), **(first_headers or {})}
    for _ in range(MAX_REDIRECTS + 1):
        connection = _connect(url, budget)
        try:
            response = _ask(connection, method, url, sent, budget)
            target = response.getheader("Location") if response.status in REDIRECTS else None
            if target is None:
                yield Answer(response, budget)
                return
        finally:
            connection.close()
        url = urljoin(url, escaped(target.encode("latin-1", "replace").decode("utf-8", "replace").strip()))
        sent = {**AGENT, **(headers or {})}
    raise AddressError(LEADS_NOWHERE)


def escaped(url: str) -> str:
    """The address with spaces and accents escaped, as browsers do, and without what is behind "#"."""
    parts = urlsplit(url)
    path = quote(parts.path, safe="/%:@!$&'()*+,;=~")
    query = quote(parts.query, safe="/?%:@!$&'()*+,;=~")
    return parts._replace(path=path, query=query, fragment="").geturl()


class Answer:
    """What a server answers.

    Attributes:
        status, reason: such as 200 and "OK".
        headers: by names in any case.
    """

    def __init__(self, response: http.client.HTTPResponse, budget: _Budget) -> None:
        self.status = response.status
        self.reason = response.reason
        self.headers = response.headers
        self._response = response
        self._budget = budget

    @property
    def left(self) -> int | None:
        """Bytes of the body that are still to come; None when the server does not say."""
        return self._response.length

    def read(self, size: int) -> bytes:
        """The next piece of the body, as soon as there is one; empty at the end. Raises as `open_url`."""
        self._budget.begin_piece(size)
        return self._response.read1(size)


class _Budget:
    """What is left of the limits of one request."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.allow_private = limits.allow_private
        self._started = self._step_started = limits.clock()
        self._received = 0
        self._step_end = MAX_HEAD_BYTES

    def begin_piece(self, size: int) -> None:
        """What follows is so much of the body, with what is around it."""
        self._step_started = self.limits.clock()
        self._step_end = self._received + size + MAX_HEAD_BYTES

    def timeout(self) -> float:
        """Seconds that the next read or write may take. Raises TooSlowError when none are left."""
        now, left = self.limits.clock(), self.limits.silence_s
        for start, seconds in ((self._started, self.limits.total_s), (self._step_started, self.limits.head_s)):
            if seconds is not None:
                left = min(left, start + seconds - now)
                if left <= 0:
                    raise TooSlowError(f"took longer than {seconds:g} s")
        return left

    def late(self, error: TimeoutError, waited: float) -> TimeoutError:
        """What a read or write that took so long has met: the deadline, or the longest silence."""
        if isinstance(error, TooSlowError):
            return error
        if waited < self.limits.silence_s:
            return TooSlowError(f"took longer than {self.limits.total_s or self.limits.head_s:g} s")
        return TimeoutError(f"timed out: the server was silent for {self.limits.silence_s:g} s")

    def count(self, size: int) -> None:
        self._received += size
        if self.limits.max_bytes is not None and self._received > self.limits.max_bytes:
            raise TooLargeError(f"is larger than {self.limits.max_bytes} bytes")
        if self._received > self._step_end:
            raise TooLargeError(f"sends headers of more than {MAX_HEAD_BYTES} bytes")


class _Wire(io.RawIOBase):
    """What arrives at a socket, counted."""

    def __init__(self, connection: socket.socket, budget: _Budget) -> None:
        self._connection = connection
        self._budget = budget

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        waits = self._budget.timeout()
        self._connection.settimeout(waits)
        try:
            size = self._connection.recv_into(buffer)
        except TimeoutError as error:
            raise self._budget.late(error, waits) from error
        self._budget.count(size)
        return size


class _Incoming:
    """As much of a socket as `http.client.HTTPResponse` asks for."""

    def __init__(self, connection: socket.socket, budget: _Budget) -> None:
        self._wire = _Wire(connection, budget)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self._wire, 2**16)


def _ask(
    connection: socket.socket, method: str, url: str, headers: Mapping[str, str], budget: _Budget
) -> http.client.HTTPResponse:
    parts = urlsplit(url)
    host, port = _server(parts)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    proxy = _proxy(parts, budget)
    if proxy is not None and parts.scheme == "http":
        target, headers = f"http://{_named(host, port, parts.scheme)}{target}", {**headers, **_authorization(proxy)}
    lines = [f"{method} {target} HTTP/1.1", f"Host: {_named(host, port, parts.scheme)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    _send(connection, lines, budget)
    response = http.client.HTTPResponse(cast(socket.socket, _Incoming(connection, budget)), method=method)
    response.begin()
    return response


def _send(connection: socket.socket, lines: list[str], budget: _Budget) -> None:
    if any(character in line for line in lines for character in "\r\n\0"):
        raise ValueError("an address or a header holds a line break")
    waits = budget.timeout()
    connection.settimeout(waits)
    try:
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
    except TimeoutError as error:
        raise budget.late(error, waits) from error


def _server(parts: SplitResult) -> tuple[str, int]:
    """Host in ASCII and port. Raises AddressError or ValueError for what names none that is asked."""
    if parts.scheme not in PORTS:
        raise AddressError(LEADS_NOWHERE)
    if "@" in parts.netloc:
        raise AddressError("leads to an address with a user name, which is not sent")
    if not parts.hostname:
        raise ValueError("the address names no server")
    host = parts.hostname if parts.hostname.isascii() else parts.hostname.encode("idna").decode("ascii")
    return host, parts.port or PORTS[parts.scheme]


def _named(host: str, port: int, scheme: str) -> str:
    shown = f"[{host}]" if ":" in host else host
    return shown if port == PORTS[scheme] else f"{shown}:{port}"


def _proxy(parts: SplitResult, budget: _Budget) -> SplitResult | None:
    """The proxy that the environment names for an address."""
    from urllib.request import getproxies, proxy_bypass

    if not budget.limits.use_proxies:
        return None
    address = getproxies().get(parts.scheme)
    if not address or (parts.hostname and proxy_bypass(parts.hostname)):
        return None
    return urlsplit(address if "://" in address else f"http://{address}")


def _authorization(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    user = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"}


def _connect(url: str, budget: _Budget) -> socket.socket:
    """A connection to the server of an address, or to the proxy before it; ready to be asked."""
    parts = urlsplit(url)
    host, port = _server(parts)
    if not allows(budget.limits.hosts, host, port, PORTS[parts.scheme]):
        raise AddressError(
            f"{_named(host, port, parts.scheme)} is not among the hosts that images may come from ({ALLOW_URLS}); "
            "download it yourself and pass the file"
        )
    proxy = _proxy(parts, budget)
    if proxy is None:
        found = _resolve(host, port, budget)
        _check(found, budget)
    else:
        with suppress(socket.gaierror):  # behind a proxy, often nobody but it can look up names
            _check(_resolve(host, port, budget), budget)
        if not proxy.hostname:
            raise ValueError("the proxy's address names no server")
        found = _resolve(proxy.hostname, proxy.port or 80, budget)
    connection = _reach(found, budget)
    try:
        if parts.scheme == "https":
            if proxy is not None:
                _tunnel(connection, host, port, proxy, budget)
            connection = _encrypted(connection, host, budget)
    except BaseException:
        connection.close()
        raise
    return connection


def _resolve(host: str, port: int, budget: _Budget) -> list[Found]:
    """Addresses of a host. The system's look-up knows no limit of time, so a thread that may be left does it."""
    answers: SimpleQueue[list[Found] | Exception] = SimpleQueue()

    resolve = budget.limits.resolve or socket.getaddrinfo

    def look_up() -> None:
        try:
            answers.put(cast("list[Found]", resolve(host, port, type=socket.SOCK_STREAM)))
        except Exception as error:
            answers.put(error)

    waits = budget.timeout()
    threading.Thread(target=look_up, name="openblip name look-up", daemon=True).start()
    try:
        answer = answers.get(timeout=waits)
    except Empty:
        raise budget.late(TimeoutError(), waits) from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _check(found: list[Found], budget: _Budget) -> None:
    """Raises AddressError when one of a host's addresses is private, or a cloud's own, and may not be asked."""
    texts = [str(address[4][0]) for address in found]
    if any(map(addresses.is_metadata, texts)):
        raise AddressError("is where a cloud keeps its machines' keys, which nothing is fetched from")
    private = any(map(addresses.is_private, texts))
    if budget.allow_private is None:
        budget.allow_private = private
    elif private and not budget.allow_private:
        raise AddressError(
            f"is on this machine or in a private network, where images are not fetched from; set {ALLOW_PRIVATE}=1 "
            "if you trust the address"
        )


def _reach(found: list[Found], budget: _Budget) -> socket.socket:
    """A connection to the first of the addresses that answers: to these, whatever the name means by now."""
    failure: OSError = OSError("the name has no address")
    for family, kind, protocol, _, address in found:
        waits = budget.timeout()
        connection = socket.socket(family, kind, protocol)
        connection.settimeout(waits)
        try:
            connection.connect(address)
            return connection
        except OSError as error:
            connection.close()
            failure = budget.late(error, waits) if isinstance(error, TimeoutError) else error
    raise failure


def _tunnel(connection: socket.socket, host: str, port: int, proxy: SplitResult, budget: _Budget) -> None:
    where = f"{f'[{host}]' if ':' in host else host}:{port}"
    lines = [f"CONNECT {where} HTTP/1.1", f"Host: {where}"]
    _send(connection, lines + [f"{name}: {value}" for name, value in _authorization(proxy).items()], budget)
    # One byte at a time: what comes behind the headers is the server's, and encrypted.
    wire, head, piece = _Wire(connection, budget), bytearray(), bytearray(1)
    while not head.endswith(b"\r\n\r\n"):
        if not wire.readinto(piece):
            raise OSError("the proxy hung up")
        head += piece
    status = bytes(head.partition(b"\r\n")[0]).split(b" ", 2)
    if len(status) < 2 or not status[1].startswith(b"2"):
        raise OSError(f"the proxy answered {status[1].decode('ascii', 'replace') if len(status) > 1 else 'nonsense'}")


def _encrypted(connection: socket.socket, host: str, budget: _Budget) -> socket.socket:
    import ssl

    waits = budget.timeout()
    connection.settimeout(waits)
    try:
        return ssl.create_default_context().wrap_socket(connection, server_hostname=host)
    except TimeoutError as error:
        raise budget.late(error, waits) from error
