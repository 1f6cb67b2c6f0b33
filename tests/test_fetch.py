"""Downloads of single files from a server that misbehaves."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from openblip import fetch as fetching
from openblip.errors import DownloadError
from openblip.fetch import ATTEMPTS, fetch
from tests.checkpoints.web import Page, Web, serve

BODY = os.urandom(100_000)
PATH = "/weights.pth"


@pytest.fixture
def web() -> Iterator[Web]:
    with serve() as running:
        running.pages[PATH] = Page(BODY).with_google_hash()
        yield running


def get(web: Web, folder: Path, **options: Any) -> Path:
    return fetch(web.url + PATH, folder / "deep" / "weights.pth", first_wait_s=0.001, **options)


def left_over(folder: Path) -> set[str]:
    return {path.name for path in (folder / "deep").iterdir()} - {"weights.pth.lock"}


def test_a_file_arrives_whole_and_is_not_fetched_again(web: Web, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    path = get(web, tmp_path, progress=lambda *args: told.append(args))
    assert path.read_bytes() == BODY
    assert left_over(tmp_path) == {"weights.pth"}
    assert told[-1] == ("weights.pth", len(BODY), len(BODY))
    assert [done for _, done, _ in told] == sorted({done for _, done, _ in told})
    assert get(web, tmp_path) == path
    assert len(web.asked) == 1


def test_a_cut_connection_is_taken_up_where_it_ended(web: Web, tmp_path: Path) -> None:
    web.pages[PATH].cuts = [30_000, 0, 20_000]
    assert get(web, tmp_path).read_bytes() == BODY
    assert web.gets(PATH) == ["", "bytes=30000-", "bytes=30000-", "bytes=50000-"]


def test_a_later_run_goes_on(web: Web, tmp_path: Path) -> None:
    web.pages[PATH].cuts = [40_000] + [0] * ATTEMPTS
    with pytest.raises(DownloadError, match=r"the connection ended 60000 bytes early\): try again later"):
        get(web, tmp_path)
    assert left_over(tmp_path) == {"weights.pth.part", "weights.pth.part.version"}
    web.pages[PATH].cuts = []
    assert get(web, tmp_path).read_bytes() == BODY
    assert web.gets(PATH)[-1] == "bytes=40000-"


def test_a_server_without_ranges_sends_all_again(web: Web, tmp_path: Path) -> None:
    web.pages[PATH].takes_ranges = False
    web.pages[PATH].cuts = [60_000]
    assert get(web, tmp_path).read_bytes() == BODY
    assert web.gets(PATH) == ["", "bytes=60000-"]


def test_a_file_that_changes_between_two_attempts_is_fetched_anew(web: Web, tmp_path: Path) -> None:
    interrupt(web, tmp_path)
    web.pages[PATH] = Page(BODY[::-1], etag='"v2"').with_google_hash()
    assert get(web, tmp_path).read_bytes() == BODY[::-1]


def test_a_part_of_an_unmarked_file_is_not_trusted(web: Web, tmp_path: Path) -> None:
    web.pages[PATH] = Page(BODY, etag="", cuts=[50_000])
    assert get(web, tmp_path).read_bytes() == BODY
    assert web.gets(PATH) == ["", ""]


def test_what_came_whole_but_unchecked_is_checked_and_kept(web: Web, tmp_path: Path) -> None:
    interrupt(web, tmp_path)
    (tmp_path / "deep" / "weights.pth.part").write_bytes(BODY)
    web.asked.clear()
    assert get(web, tmp_path).read_bytes() == BODY
    assert web.gets(PATH) == [f"bytes={len(BODY)}-"]


def test_more_than_the_whole_is_thrown_away(web: Web, tmp_path: Path) -> None:
    interrupt(web, tmp_path)
    (tmp_path / "deep" / "weights.pth.part").write_bytes(BODY + b"!")
    assert get(web, tmp_path).read_bytes() == BODY


def interrupt(web: Web, folder: Path) -> None:
    web.pages[PATH].cuts = [40_000] + [0] * ATTEMPTS
    with pytest.raises(DownloadError):
        get(web, folder)
    web.pages[PATH].cuts = []


def test_wrong_bytes_are_noticed_and_fetched_again(web: Web, tmp_path: Path) -> None:
    web.pages[PATH].lies = [BODY[:-1] + b"!" if BODY[-1:] != b"!" else BODY[:-1] + b"?"]
    assert get(web, tmp_path).read_bytes() == BODY
    assert len(web.gets(PATH)) == 2


@pytest.mark.parametrize("hashed", ["md5", "sha256"])
def test_wrong_bytes_twice_are_an_error_and_leave_nothing(web: Web, tmp_path: Path, hashed: str) -> None:
    web.pages[PATH].lies = [BODY[::-1]] * 2
    options = {}
    if hashed == "sha256":
        web.pages[PATH].headers.clear()
        options = {"sha256": fetching.hashlib.sha256(BODY).hexdigest()}
    with pytest.raises(DownloadError, match=rf"arrived damaged twice \(its {'MD5' if hashed == 'md5' else 'SHA-256'}"):
        get(web, tmp_path, **options)
    assert left_over(tmp_path) == set()


def test_busy_servers_are_asked_again(web: Web, tmp_path: Path) -> None:
    web.pages[PATH].statuses = [503, 429, 500]
    assert get(web, tmp_path).read_bytes() == BODY


@pytest.mark.parametrize(("asked", "waited"), [("7", 7.0), ("0", 0.001), ("soon", 0.001)])
def test_a_busy_server_says_how_long_to_wait(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, waited: float
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(fetching.time, "sleep", waits.append)
    web.pages[PATH].statuses = [429]
    web.pages[PATH].headers["Retry-After"] = asked
    assert get(web, tmp_path).read_bytes() == BODY
    assert [wait for wait in waits if wait] == [waited]  # the server waits in the same way


def test_nobody_waits_for_hours(web: Web, tmp_path: Path) -> None:
    web.pages[PATH].statuses = [503]
    web.pages[PATH].headers["Retry-After"] = formatdate(time.time() + 3600, usegmt=True)
    with pytest.raises(DownloadError, match=r"the server answered 503\): try again in (59|60) minutes$"):
        get(web, tmp_path)
    assert len(web.asked) == 1


def test_a_web_page_is_no_file(web: Web, tmp_path: Path) -> None:
    web.pages[PATH] = Page(b"<html>please log in</html>", headers={"Content-Type": "text/html; charset=utf-8"})
    with pytest.raises(DownloadError, match="gave a web page instead of a file"):
        get(web, tmp_path)
    assert left_over(tmp_path) == set()


def test_a_range_that_nobody_asked_for_is_refused(web: Web, tmp_path: Path) -> None:
    web.pages[PATH].statuses = [416] * ATTEMPTS
    with pytest.raises(DownloadError, match="more had arrived than the file has"):
        get(web, tmp_path)


@pytest.mark.parametrize(
    ("status", "message"), [(404, "is not there"), (403, "may not be read"), (418, "the server answered 418")]
)
def test_refusals_are_final(web: Web, tmp_path: Path, status: int, message: str) -> None:
    web.pages[PATH].statuses = [status]
    with pytest.raises(DownloadError, match=message):
        get(web, tmp_path)
    assert len(web.asked) == 1


def test_a_silent_server_is_left_after_a_while(web: Web, tmp_path: Path) -> None:
    web.pages[PATH].wait_s = 0.2
    with pytest.raises(DownloadError, match="timed out"):
        get(web, tmp_path, silence_s=0.02)


def test_a_slow_server_is_not_a_silent_one(web: Web, tmp_path: Path) -> None:
    web.pages[PATH].wait_s = 0.05
    assert get(web, tmp_path, silence_s=5.0).read_bytes() == BODY


def test_a_body_of_unknown_length(web: Web, tmp_path: Path) -> None:
    web.pages[PATH].names_length = False
    assert get(web, tmp_path).read_bytes() == BODY
    web.pages[PATH].cuts = [50_000]
    # Nothing but the hash tells that this is not all.
    assert get(web, tmp_path / "again").read_bytes() == BODY


def test_nobody_answers(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but not listening
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/x"
        with pytest.raises(DownloadError, match=r"cannot be downloaded .*refused"):
            fetch(address, tmp_path / "x", first_wait_s=0.001)


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_such_host(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_such_host)
    with pytest.raises(DownloadError, match=r"^example\.org cannot be found: check the network$"):
        fetch("http://example.org/x", tmp_path / "x")


def test_room_is_checked_before_anything_is_written(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, fetching.HEADROOM + len(BODY) - 1))
    with pytest.raises(DownloadError, match=r"has room for 0\.1 MB, the rest of weights\.pth takes 0\.1 MB: free some"):
        get(web, tmp_path)
    assert left_over(tmp_path) == set()


def test_a_disk_that_fills_up_keeps_what_has_come(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(web, tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(fetching, "PIECE", 1000)
        broken.setattr(Path, "open", full_disk)
        with pytest.raises(DownloadError, match=r"the disk of .*deep is full: free some room"):
            get(web, tmp_path)
    assert get(web, tmp_path).read_bytes() == BODY
    assert web.gets(PATH)[-1] == "bytes=40000-"


def full_disk(path: Path, mode: str = "r", **options: Any) -> Any:
    if mode == "ab":
        raise OSError(errno.ENOSPC, "No space left on device")
    return open(path, mode, **options)


def test_a_folder_that_cannot_be_written(web: Web, tmp_path: Path) -> None:
    (tmp_path / "deep").write_text("a file where a folder belongs")
    with pytest.raises(DownloadError, match=r"cannot be written \(.*\): give another folder"):
        get(web, tmp_path)
    assert web.asked == []


def test_two_processes_share_one_download(web: Web, tmp_path: Path) -> None:
    web.pages[PATH].wait_s = 0.1
    target = tmp_path / "weights.pth"
    program = (
        "import sys\nfrom pathlib import Path\nfrom openblip.fetch import fetch\n"
        "print(fetch(sys.argv[1], Path(sys.argv[2])))"
    )
    command = [sys.executable, "-c", program, web.url + PATH, str(target)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=600)[0].strip() for process in both] == [str(target)] * 2
    assert target.read_bytes() == BODY
    assert web.gets(PATH) == [""]


def test_a_killed_process_leaves_what_the_next_one_goes_on_from(web: Web, tmp_path: Path) -> None:
    web.pages[PATH].wait_s = 0.2
    target = tmp_path / "weights.pth"
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom openblip.fetch import fetch\n"
        "fetch(sys.argv[1], Path(sys.argv[2]), progress=lambda name, done, total: done > 20_000 and os._exit(9))"
    )
    done = subprocess.run([sys.executable, "-c", program, web.url + PATH, str(target)], check=False)
    assert done.returncode == 9
    assert not target.exists()
    web.pages[PATH].wait_s = 0.0
    assert fetch(web.url + PATH, target).read_bytes() == BODY
    assert int(web.gets(PATH)[-1].removeprefix("bytes=").removesuffix("-")) > 20_000
