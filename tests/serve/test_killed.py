"""A server that is killed under load and started again: clients that retry have every answer, nothing stays behind."""

from __future__ import annotations

import io
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from uuid import uuid4

import httpx2
import pytest
from PIL import Image

from openblip.models.model import Model
from openblip.serve.listening import listen

from .conftest import WAIT
from .processes import ended, free_port, photo, start, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are not seen in /proc"),
]
CLIENTS, DEATHS = 6, 3


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def processes_with(mark: str) -> list[str]:
    """Processes that have a word in their environment."""
    found = []
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in place.read_bytes():
                found.append(place.parent.name)
        except OSError:  # it ended, or is another user's
            continue
    return found


def test_nothing_is_lost_and_nothing_stays(tiny_model: Model, tiny_model_folder: Path, tmp_path: Path) -> None:
    mark = uuid4().hex
    places = {name: tmp_path / name for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME")}
    for place in places.values():
        place.mkdir()
    environment = {name: str(place) for name, place in places.items()} | {"OPENBLIP_TEST": mark}
    port, before = free_port(), files_in(tiny_model_folder)
    numbers, stop = count(), threading.Event()
    answers: dict[int, str] = {}
    broken: list[int] = []

    def work() -> None:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT) as client:
            while not stop.is_set():
                number = next(numbers)
                end = time.monotonic() + WAIT
                while number not in answers:
                    assert time.monotonic() < end
                    try:
                        answer = client.post("/caption", files={"file": photo(number)})
                    except httpx2.TransportError:
                        broken.append(number)
                        time.sleep(0.05)
                        continue
                    assert answer.status_code in (200, 429, 503), answer.text
                    if answer.status_code == 200:
                        answers[number] = answer.json()["caption"]

    servers: list[subprocess.Popen[str]] = []
    with ended(servers), ThreadPoolExecutor(CLIENTS) as clients:
        servers.append(start(tiny_model_folder, port, **environment))
        working = [clients.submit(work) for _ in range(CLIENTS)]
        try:
            for _ in range(DEATHS):
                had = len(answers)
                until(lambda had=had: len(answers) >= had + 5 * CLIENTS or any(one.done() for one in working))
                servers[-1].kill()
                assert servers[-1].wait(WAIT) == -signal.SIGKILL
                assert processes_with(mark) == []
                servers.append(start(tiny_model_folder, port, **environment))
        finally:
            stop.set()
        for one in working:
            one.result(WAIT)
        servers[-1].send_signal(signal.SIGTERM)
        assert servers[-1].wait(WAIT) == 0
    assert broken, "the deaths were seen"
    assert sorted(answers) == list(range(len(answers)))
    assert answers == {
        number: tiny_model.caption(Image.open(io.BytesIO(photo(number)))) for number in range(len(answers))
    }
    assert {name: files_in(place) for name, place in places.items()} == {name: [] for name in places}
    assert files_in(tiny_model_folder) == before
    listen("127.0.0.1", port).close()
