"""recipes/deploy/ray_serve.py on a real Ray cluster of this machine, one replica of which is killed under load.

`make test-ray` runs it: Ray Serve needs more packages than the other tests.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from .conftest import WAIT
from .processes import free_port, photo

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
RECIPE = REPOSITORY / "recipes" / "deploy"
CLIENTS = 6


@dataclass(frozen=True)
class Cluster:
    """Two replicas of the recipe, and the folder where each notes the requests that it took."""

    url: str
    notes: Path

    def taken(self) -> dict[int, set[str]]:
        """Requests by the process that took them."""
        return {int(file.name): set(file.read_text(encoding="utf-8").split()) for file in self.notes.iterdir()}


def family_of(pid: int) -> set[int]:
    """A process with all that it started."""
    parents: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(place.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(place.parent.name))
    found, waiting = set(), [pid]
    while waiting:
        found.add(one := waiting.pop())
        waiting += parents.get(one, [])
    return found


@pytest.fixture(scope="module")
def cluster(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    pytest.importorskip("ray.serve", reason="needs ray[serve]: make test-ray", exc_type=ImportError)
    yaml = pytest.importorskip("yaml")
    place = tmp_path_factory.mktemp("ray_serve")
    (place / "taken").mkdir()
    # What a user starts, but for the model, the port, and a replica that takes notes.
    config = yaml.safe_load((RECIPE / "ray_serve.yaml").read_text(encoding="utf-8"))
    config["http_options"]["port"] = port = free_port()
    (application,) = config["applications"]
    application["import_path"] = "ray_traced:app"
    application["args"] |= {"model": str(tiny_model_folder), "cpus": 1, "limits": ["answers=0"]}
    for file in (RECIPE / "ray_serve.py", Path(__file__).with_name("ray_traced.py")):
        shutil.copy(file, place)
    (place / "serve.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    # Sockets have short paths; nothing is sent or asked for, and no key is written to the home folder.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    environment |= {"TAKEN_BY": str(place / "taken")}
    flags = ["--head", "--block", "--num-cpus=4", "--num-gpus=0", "--port=0", "--node-ip-address=127.0.0.1"]
    flags += ["--include-dashboard=false", "--disable-usage-stats", "--object-store-memory=80000000"]
    log = Path(folder) / "log"
    with log.open("wb") as said:
        head = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", *flags, f"--temp-dir={folder}"],
            stdout=said,
            stderr=said,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
    try:
        until(lambda: address_in(log) is not None, head)
        run = [sys.executable, "-m", "ray.serve.scripts", "run", "--non-blocking", f"--working-dir={place}"]
        run.append(str(place / "serve.yaml"))
        environment["RAY_ADDRESS"] = address_in(log) or ""
        done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False, timeout=WAIT)
        assert done.returncode == 0, done.stdout + done.stderr
        url = f"http://127.0.0.1:{port}"
        until(lambda: is_ready(url), head)
        yield Cluster(url, place / "taken")
    finally:
        for pid in family_of(head.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def address_in(log: Path) -> str | None:
    found = re.search(r"address='([^']+)'", log.read_text(encoding="utf-8", errors="replace"))
    return found and found[1]


def until(condition: Callable[[], bool], head: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end and head.poll() is None
        time.sleep(0.2)


def is_ready(url: str) -> bool:
    import httpx2

    try:
        return httpx2.get(f"{url}/ready", timeout=WAIT).status_code == 200
    except httpx2.TransportError:
        return False


def ask(client: Any, name: str, data: bytes) -> str | None:
    """The caption of a photo; None where the answer is that of nobody, or of Ray."""
    import httpx2

    try:
        answer = client.post("/caption", files={"file": ("a.png", data)}, headers={"X-Request-Id": name})
    except httpx2.TransportError:
        return None
    if answer.status_code == 200:
        text: str = answer.json()["caption"]
        return text
    assert answer.status_code >= 500, answer.text
    return None


def test_a_killed_replica_costs_what_it_was_at_and_clients_that_retry_nothing(cluster: Cluster) -> None:
    import httpx2

    numbers = count()
    answered: dict[str, str] = {}
    lost: set[str] = set()
    under_way: set[str] = set()
    stop = threading.Event()

    def work(retry: bool) -> None:
        """Asks about one photo after the other. A second try has another name, so that it is seen who took it."""
        with httpx2.Client(base_url=cluster.url, timeout=WAIT) as client:
            while not stop.is_set():
                number = next(numbers)
                for attempt in range(WAIT if retry else 1):
                    name = f"{number}-{attempt}"
                    under_way.add(name)
                    text = ask(client, name, photo(number))
                    under_way.discard(name)
                    if text is not None:
                        answered[name] = text
                        break
                    lost.add(name)
                    time.sleep(0.05)
                else:
                    assert not retry, number

    with ThreadPoolExecutor(2 * CLIENTS) as clients:
        work_done = [clients.submit(work, retry) for retry in (True, False) for _ in range(CLIENTS)]
        try:
            until_busy(cluster, answered, 2)
            begun = cluster.taken()
            victim = max(begun, key=lambda pid: len(begun[pid] - set(answered)))
            os.kill(victim, signal.SIGKILL)
            at_death, sent = len(answered), set(under_way)
            # The one that is left goes on, and a new one comes in its place.
            until_busy(cluster, answered, 3, at_death)
        finally:
            stop.set()
        for one in work_done:
            one.result(WAIT)
    taken = cluster.taken()
    assert len(taken) == 3
    assert all(text for text in answered.values())
    # What the dead replica had, or had been given a moment before; nothing that came to it later, or to another one.
    assert lost <= sent
    assert not lost & set().union(*(names for pid, names in taken.items() if pid != victim))


def until_busy(cluster: Cluster, answered: dict[str, str], replicas: int, more_than: int = 0) -> None:
    """Until so many replicas have answered ten requests each."""
    end = time.monotonic() + WAIT
    while True:
        done = [len(names & set(answered)) for names in cluster.taken().values()]
        if sum(one >= 10 for one in done) >= replicas and len(answered) > more_than + 10 * CLIENTS:
            return
        assert time.monotonic() < end, done
        time.sleep(0.1)


def test_refusals_streams_and_large_photos_pass_the_proxy(cluster: Cluster, image_paths: list[Path]) -> None:
    import base64

    import httpx2

    with httpx2.Client(base_url=cluster.url, timeout=WAIT) as client:
        missing = client.post("/caption", files={"file": ("a.txt", b"no photo")}, headers={"X-Request-Id": "a"})
        assert (missing.status_code, missing.json()["error"]["code"]) == (415, "formats")
        # The rest of a PNG after its end does not count: a photo of 19 MB.
        large = photo(70_000) + bytes(19_000_000)
        assert client.post("/caption", files={"file": large}, headers={"X-Request-Id": "b"}).status_code == 200
        url = "data:image/png;base64," + base64.b64encode(photo(70_001)).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what?"}]
        asked = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": content}]}
        with client.stream("POST", "/v1/chat/completions", json=asked, headers={"X-Request-Id": "c"}) as answer:
            events = [line for line in answer.iter_lines() if line]
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert events[-1] == "data: [DONE]" and len(events) > 2
