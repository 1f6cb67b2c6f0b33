"""One web address to one file, through broken connections: resumed, checked, and whole or not there at all.

What has arrived lies beside the file as `NAME.part`, with the server's mark of that version in `NAME.part.version`:
a later run goes on from there, unless the file has changed on the server since.
"""

from __future__ import annotations

import base64
import email.utils
import errno
import hashlib
import http.client
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

from openblip.errors import DownloadError, printable
from openblip.web import request
from openblip.web.addresses import private_allowed

PIECE = 2**20
SILENCE_SECONDS = 30.0
HEAD_SECONDS = 120.0
"""Until the headers of the last answer are there, over all redirects."""
SLOWEST_BYTES, SLOWEST_SECONDS = 128 * 2**10, 600.0
"""A body of which less arrives in this time is given up."""
ATTEMPTS = 6
"""How often in a row to ask without one new byte; waits double from one second on."""
HEADROOM = 100 * 2**20
"""Bytes of a disk that a download leaves free."""
GONE = (404, 410)
FORBIDDEN = (401, 403)
RANGE_BEYOND_END = 416
BUSY = 429
LONGEST_WAIT_S = 120.0
"""What a busy server may ask for; who is told to wait longer had better come back."""
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))

Progress: TypeAlias = Callable[[str, int, "int | None"], None]
"""Called with a file's name, bytes there, and bytes in all, None while the server does not say."""


class _LostError(Exception):
    """The connection broke or the server is busy: worth another attempt.

    Attributes:
        wait_s: what the server asks for; 0 when it does not say.
    """

    def __init__(self, problem: str, wait_s: float = 0.0) -> None:
        super().__init__(problem)
        self.wait_s = wait_s


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


@dataclass(frozen=True)
class _Answer:
    """What the headers of an answer say.

    Attributes:
        start: where in the file the body begins.
        total: bytes of the whole file; None when the server does not say.
        version: a mark that changes with the file; empty when the server gives none.
        md5: of the whole file, hexadecimal; empty when the server gives none.
    """

    start: int
    total: int | None
    version: str
    md5: str


def fetch(
    url: str,
    target: Path,
    *,
    sha256: str = "",
    headers: Mapping[str, str] | None = None,
    name: str | None = None,
    md5: str = "",
    progress: Progress | None = None,
    silence_s: float = SILENCE_SECONDS,
    first_wait_s: float = 1.0,
    clock: Callable[[], float] = time.monotonic,
) -> Path:
    """Download a file unless it is there; another process at the same file waits and takes over.

    Args:
        target: where the file appears once it is whole; its folder is made.
        sha256, md5: hexadecimal; checked beside what the server says about length and MD5.
        headers: of every request; not told to other servers that this one may send us on to.
        name: for messages and progress; by default the target's.
        silence_s: seconds the server may take between two pieces of its answer.
        first_wait_s: before the second attempt.
        clock: tells the seconds that an answer takes.

    Raises:
        DownloadError: nothing answers, the file is not there or not allowed, the disk is full, or what came is
            damaged twice. What has arrived is kept, but for a damaged file.
    """
    from filelock import FileLock

    if target.is_file():
        return target
    part, version = part_of(target), _beside(target, ".part.version")
    with _writing(part):
        target.parent.mkdir(parents=True, exist_ok=True)
    lock = _beside(target, ".lock")
    with FileLock(lock):
        if target.is_file():
            return target
        damaged = failures = 0

        def report(done: int, total: int | None) -> None:
            if progress is not None:
                progress(name or target.name, done, total)

        while True:
            before = _length(part)
            try:
                answer = _receive(url, headers or {}, part, version, report, silence_s, clock)
            except _LostError as trouble:
                failures = 1 if _length(part) > before else failures + 1
                if failures >= ATTEMPTS or trouble.wait_s > LONGEST_WAIT_S:
                    when = f"in {trouble.wait_s / 60:.0f} minutes" if trouble.wait_s > LONGEST_WAIT_S else "later"
                    raise DownloadError(f"{url} cannot be downloaded ({trouble}): try again {when}") from trouble
                time.sleep(max(first_wait_s * 2 ** (failures - 1), trouble.wait_s))
                continue
            fault = _fault(part, answer, sha256, md5)
            if not fault:
                os.replace(part, target)
                version.unlink(missing_ok=True)
                with suppress(OSError):
                    # Whoever waits for it finds the file next.
                    lock.unlink()
                return target
            part.unlink()
            version.unlink(missing_ok=True)
            damaged += 1
            if damaged == 2:
                raise DownloadError(f"{url} arrived damaged twice ({fault}): try again later or from elsewhere")


def part_of(target: Path) -> Path:
    """What has come of a file that is not whole yet."""
    return _beside(target, ".part")


def remote_size(url: str, silence_s: float = 10.0) -> int | None:
    """Bytes of the file at an address; None when the server does not say, or does not answer."""
    try:
        with request.open_url(url, _limits(silence_s, time.monotonic), method="HEAD") as response:
            length = response.headers.get("Content-Length", "") if response.status == http.HTTPStatus.OK else ""
    except (OSError, http.client.HTTPException, request.AddressError, request.TooLargeError, ValueError):
        return None
    return int(length) if length.isdecimal() else None


def _beside(target: Path, ending: str) -> Path:
    return target.with_name(target.name + ending)


def _length(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _limits(silence_s: float, clock: Callable[[], float]) -> request.Limits:
    """The addresses are the user's or ours; none leads from a public server into a private network."""
    return request.Limits(silence_s, HEAD_SECONDS, allow_private=True if private_allowed() else None, clock=clock)


def _receive(
    url: str,
    headers: Mapping[str, str],
    part: Path,
    version: Path,
    report: Callable[[int, int | None], None],
    silence_s: float,
    clock: Callable[[], float],
) -> _Answer:
    """Ask for what is missing and append it.

    Raises:
        _LostError, DownloadError: as `fetch`.
    """
    there = _length(part)
    mark = version.read_text(encoding="ascii") if there and version.is_file() else ""
    ranges = {"Range": f"bytes={there}-"} if mark else {}
    try:
        with request.open_url(url, _limits(silence_s, clock), headers=ranges, first_headers=headers) as response:
            if response.status == RANGE_BEYOND_END:
                answer = _read_headers(response.status, response.headers, None)
                if answer.total == there and answer.version in ("", mark):
                    return answer  # all had come, and only the check was missing
                part.unlink(missing_ok=True)
                raise _LostError("more had arrived than the file has")
            if response.status >= http.HTTPStatus.MULTIPLE_CHOICES:
                raise _refusal(url, response)
            if response.headers.get_content_type() == "text/html":
                raise DownloadError(
                    f"{url} gave a web page instead of a file: log in to the network, or check the proxy between"
                )
            answer = _read_headers(response.status, response.headers, response.left)
            if answer.start and (answer.start != there or (answer.version and answer.version != mark)):
                part.unlink()
                raise _LostError("the file has changed on the server")
            _check_room(part, answer, there)
            with _writing(part):
                if not answer.start:
                    part.unlink(missing_ok=True)
                _write_version(version, answer.version or mark)
            _append(response, part, answer, report, clock)
            return answer
    except (request.AddressError, request.TooLargeError, ValueError) as error:
        raise DownloadError(f"{url} cannot be downloaded ({error}): check the address") from error
    except (OSError, http.client.HTTPException) as error:
        raise _lost(url, error, there) from error


def _read_headers(status: int, headers: Message, length: int | None) -> _Answer:
    """What an answer with this status is about.

    Args:
        length: of its body.
    """
    start, total = 0, length
    if status in (http.HTTPStatus.PARTIAL_CONTENT, RANGE_BEYOND_END):
        # "bytes 100-199/200", "bytes 100-199/*" for an unknown length, "bytes */200" for a range beyond the end
        span, _, whole = headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        first = span.partition("-")[0]
        start = int(first) if first.isdecimal() else 0
        total = int(whole) if whole.isdecimal() else None
    if status == http.HTTPStatus.PARTIAL_CONTENT and not start:
        raise http.client.HTTPException("a part was asked for, another one came")
    etag = headers.get("ETag", "")
    # Weak marks (W/"...") allow for other bytes.
    version = etag if etag.startswith('"') and etag.isascii() else headers.get("Last-Modified", "")
    return _Answer(start, total, version, _md5_of_google(headers.get_all("x-goog-hash") or []))


def _md5_of_google(hashes: list[str]) -> str:
    """From `crc32c=...,md5=...` in base64, as Google's storage sends it."""
    for part in ",".join(hashes).split(","):
        name, _, value = part.strip().partition("=")
        if name == "md5":
            try:
                return base64.b64decode(value, validate=True).hex()
            except ValueError:
                return ""
    return ""


def _check_room(part: Path, answer: _Answer, there: int) -> None:
    if answer.total is not None:
        freed = 0 if answer.start else there
        check_room(part.parent, answer.total - answer.start - freed, f"the rest of {part.stem}")


def check_room(folder: Path, size: int, what: str) -> None:
    """Raises DownloadError when the disk that `folder` is or will be on has no room for `size` bytes."""
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if size + HEADROOM > free:
        raise DownloadError(
            f"{folder} has room for {size_text(max(0, free - HEADROOM))}, {what} takes {size_text(size)}: "
            "free some, or give another folder"
        )


def size_text(size: int) -> str:
    """A number of bytes for people: "0.3 MB", "1.5 GB"."""
    return f"{size / 1e6:.1f} MB" if size < 10**8 else f"{size / 1e9:.1f} GB"


def _write_version(version: Path, mark: str) -> None:
    if mark:
        version.write_text(mark, encoding="ascii")
    else:
        version.unlink(missing_ok=True)


def _append(
    response: request.Answer,
    part: Path,
    answer: _Answer,
    report: Callable[[int, int | None], None],
    clock: Callable[[], float],
) -> None:
    """Raises DownloadError when the body never ends: by its speed, or by the room on the disk."""
    length = checked = answer.start
    since = clock()
    with _writing(part):
        file = part.open("ab")
    try:
        # A piece is what has come, so that a slow connection shows progress and keeps what it got.
        while piece := response.read(PIECE):
            with _writing(part):
                file.write(piece)
                file.flush()
            length += len(piece)
            report(length, answer.total)
            if clock() - since >= SLOWEST_SECONDS or length - checked >= HEADROOM // 4:
                if length - checked < SLOWEST_BYTES:
                    raise DownloadError(
                        f"{part.stem} arrives at less than {SLOWEST_BYTES} bytes in {SLOWEST_SECONDS:g} s: "
                        "try again later or from elsewhere"
                    )
                if answer.total is None:
                    check_room(part.parent, 0, f"the rest of {part.stem}")
                since, checked = clock(), length
        with _writing(part):
            os.fsync(file.fileno())  # before it gets its name, which a power cut could keep without the content
    finally:
        with _writing(part):  # a file that has no room for what is left of a piece fails once more as it is closed
            file.close()
    if answer.total is not None and length < answer.total:
        raise _LostError(f"the connection ended {answer.total - length} bytes early")


@contextmanager
def _writing(part: Path) -> Iterator[None]:
    """Tells what is wrong with the disk apart from what is wrong with the network: both raise OSError."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            problem = f"the disk of {part.parent} is full: free some room, and what has come will not come again"
        else:
            problem = f"{part} cannot be written ({error.strerror}): give another folder"
        raise DownloadError(problem) from error


def _refusal(url: str, response: request.Answer) -> Exception:
    code = response.status
    if code in GONE:
        return DownloadError(f"{url} is not there (the server answered {code}): look for a newer openblip")
    if code in FORBIDDEN:
        return DownloadError(f"{url} may not be read (the server answered {code}): check proxy and permissions")
    if code == BUSY or code >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
        return _LostError(f"the server answered {code}", wait_asked(response.headers.get("Retry-After")))
    reason = f"{code} {printable(response.reason)}"
    return DownloadError(f"{url} cannot be downloaded (the server answered {reason}): try again later")


def wait_asked(header: str | None) -> float:
    """Seconds that a Retry-After asks for, as a number or a date; 0 when it says nothing."""
    if header is None:
        return 0.0
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0


def _lost(url: str, error: Exception, there: int) -> Exception:
    if isinstance(error, socket.gaierror) and not there:
        # Waiting helps a connection that broke, not one that there never was.
        return DownloadError(f"{urlsplit(url).hostname} cannot be found: check the network")
    return _LostError(printable(str(error)) or type(error).__name__)


def _fault(part: Path, answer: _Answer, sha256: str, md5: str) -> str:
    """What is wrong with a file that has arrived; empty when nothing is."""
    length = _length(part)
    if answer.total is not None and length != answer.total:
        return f"{length} bytes instead of {answer.total}"
    if sha256 and digest(part, "sha256") != sha256.lower():
        return "its SHA-256 differs"
    wanted = {digest.lower() for digest in (answer.md5, md5) if digest}
    if wanted and {digest(part, "md5")} != wanted:
        return "its MD5 differs"
    return ""


def digest(path: Path, algorithm: str) -> str:
    """Hexadecimal "md5" or "sha256" of a file, read in pieces."""
    hashed = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(4 * PIECE):
            hashed.update(piece)
    return hashed.hexdigest()
