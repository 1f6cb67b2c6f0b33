"""A server under load: ours, and one that captions one upload at a time inside an async endpoint; they take turns.

    python benchmarks/serving.py [--seconds 20] [--rounds 3] [--clients 16] [--photos 64] [--threads 0]
    python benchmarks/serving.py --only first --seconds 30         # the first word of a stream, idle and under load
    python benchmarks/serving.py --only overload --seconds 600     # refusals at 120 % load
    python benchmarks/serving.py --only memory --requests 10000

Both servers are processes of this machine with the same model, behind the same uvicorn; the load comes from a third
process, over loopback, in a closed loop: each client sends its next request when it has its answer. Photos are JPEGs
of noise over a gradient, all different; "repeated" draws them from 200 as a shop's are asked for (Zipf), from a
server that knows none of them, and "later" goes on with it. Requests a second count only answers, and their p99 is
shown beside them. The engine's own ceiling is `caption_many` of as many photos in batches of 32, in a process of its
own, which takes its turn with the servers; how many times faster than the naive server it is, is what batching alone
can bring. --threads is of PyTorch, 0 for its own choice. CPU seconds are those of all threads of the server; the
clients share the processors with it.

On a machine where other programs compute, too, PyTorch's threads wait for each other by spinning, and no number is of
use; OMP_WAIT_POLICY=passive then shows at least that everything works.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from results import Row, add_json_option, finish

HOST = "127.0.0.1"
BOUNDARY = "photo-of-the-benchmark"
QUESTIONS = [
    "what is this?",
    "where is it?",
    "what color is it?",
    "how many people are there?",
    "is it outside?",
    "what is in the background?",
    "is there a dog?",
    "what time of day is it?",
]

NAIVE = """
import asyncio, io, sys
import uvicorn
from fastapi import FastAPI, File, UploadFile
from PIL import Image
import openblip

model = openblip.load(sys.argv[1], image_cache=0)
app = FastAPI(telemetry={"tracing": False, "metrics": False, "logs": False})

@app.post("/caption")
async def caption(file: UploadFile = File(...), question: str | None = None):
    image = Image.open(io.BytesIO(await file.read())).convert("RGB")
    return {"caption": model.ask(image, question) if question else model.caption(image)}

async def run():
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False))
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await task

asyncio.run(run())
"""
CEILING = """
import io, sys, time
import openblip

model = openblip.load(sys.argv[1])
photos = [sys.stdin.buffer.read(int(size)) for size in sys.argv[2:]]
list(model.caption_many(photos[:8], batch_size=8))
model.image_cache.clear()
begun = time.perf_counter()
list(model.caption_many(photos, batch_size=32))
print(len(photos) / (time.perf_counter() - begun))
"""


@dataclass(frozen=True)
class Processor:
    """What a process has used of the processors.

    Attributes:
        ran: CPU seconds of its threads; waited: seconds in which they could have run, had there been a processor.
    """

    ran: float
    waited: float

    def since(self, before: Processor) -> Processor:
        return Processor(self.ran - before.ran, self.waited - before.waited)


def processor(pid: int) -> Processor:
    """By now, of the threads that a process has."""
    ran = waited = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            run, wait, _ = map(int, (task / "schedstat").read_text(encoding="ascii").split())
            ran, waited = ran + run, waited + wait
    return Processor(ran / 1e9, waited / 1e9)


def measured(pid: int, load: Coroutine[Any, Any, Load]) -> Load:
    """A load, and what it took of the processors."""
    before, clients = processor(pid), time.process_time()
    found = asyncio.run(load)
    found.server, found.clients = processor(pid).since(before), time.process_time() - clients
    return found


@dataclass
class Load:
    """What came of a load.

    Attributes:
        took: seconds in all.
        seconds: of each answer.
        refused: seconds of each refusal.
        server: what the server's process had and wanted of the processors; clients: CPU seconds of this process.
    """

    took: float = 0.0
    seconds: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    failed: int = 0
    server: Processor = field(default_factory=lambda: Processor(0.0, 0.0))
    clients: float = 0.0

    @property
    def rate(self) -> float:
        return len(self.seconds) / self.took

    def p99(self, of: list[float] | None = None) -> float:
        values = sorted(self.seconds if of is None else of)
        return values[min(len(values) - 1, int(0.99 * len(values)))] if values else float("nan")


def make_photos(count: int, seed: int = 0) -> list[bytes]:
    """JPEGs of 480 x 360, all different."""
    from PIL import Image

    found = []
    for number in range(count):
        noise = Image.effect_noise((60, 45), 90).resize((480, 360))
        tint = Image.new("RGB", (480, 360), tuple(random.Random(seed * 10_000 + number).choices(range(256), k=3)))
        file = io.BytesIO()
        Image.blend(noise.convert("RGB"), tint, 0.5).save(file, "JPEG", quality=85)
        found.append(file.getvalue())
    return found


def form_request(photo: bytes) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n'.encode()
    body = head + photo + f"\r\n--{BOUNDARY}--\r\n".encode()
    return _request("/caption", f"multipart/form-data; boundary={BOUNDARY}", body)


def question_request(photo: bytes, question: str, naive: bool, stream: bool = False) -> bytes:
    """A question about a photo: as a chat completion, or as the naive server has it."""
    if naive:
        return form_request(photo).replace(b"/caption", b"/caption?question=" + question.replace(" ", "+").encode(), 1)
    url = "data:image/jpeg;base64," + base64.b64encode(photo).decode()
    parts = [{"type": "text", "text": question}, {"type": "image_url", "image_url": {"url": url}}]
    asked = {"messages": [{"role": "user", "content": parts}], "stream": stream}
    return _request("/v1/chat/completions", "application/json", json.dumps(asked).encode())


def _request(path: str, kind: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Client:
    """One connection, which is opened again when the server has closed it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def ask(self, request: bytes) -> tuple[int, float]:
        """Status of the answer, and seconds until its first line of a body."""
        if self.writer is None or self.writer.is_closing():
            self.reader, self.writer = await asyncio.open_connection(HOST, self.port, limit=2**24)
        assert self.reader is not None
        begun = time.perf_counter()
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        first = time.perf_counter() - begun
        size = next(
            (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")),
            None,
        )
        if size is not None:
            await self.reader.readexactly(size)
        else:
            first = await self._chunks(begun)
        if b"connection: close" in head.lower():
            self.writer.close()
        return status, first

    async def _chunks(self, begun: float) -> float:
        """Seconds until the first chunk of a stream that has words in it."""
        assert self.reader is not None
        first = 0.0
        while size := int(await self.reader.readline(), 16):
            chunk = await self.reader.readexactly(size + 2)
            if not first and b'"content": "' in chunk and b'"content": ""' not in chunk:
                first = time.perf_counter() - begun
        await self.reader.readline()
        return first


async def closed_loop(port: int, requests: Callable[[], bytes], clients: int, seconds: float) -> Load:
    """So many clients, each with its next request when it has its answer."""
    load = Load()
    until = time.perf_counter() + seconds

    async def one() -> None:
        client = Client(port)
        while time.perf_counter() < until:
            begun = time.perf_counter()
            try:
                status, _ = await client.ask(requests())
            except (OSError, asyncio.IncompleteReadError):
                load.failed += 1
                client = Client(port)
                continue
            took = time.perf_counter() - begun
            if status == 200:
                load.seconds.append(took)
            elif status in (429, 503):
                load.refused.append(took)
                await asyncio.sleep(0.1)
            else:
                load.failed += 1

    begun = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    load.took = time.perf_counter() - begun
    return load


async def open_loop(port: int, requests: Callable[[], bytes], rate: float, seconds: float) -> Load:
    """So many requests a second, whether the ones before are answered or not."""
    load = Load()
    running: set[asyncio.Task[None]] = set()

    async def one() -> None:
        begun = time.perf_counter()
        client = Client(port)
        try:
            status, _ = await client.ask(requests())
        except (OSError, asyncio.IncompleteReadError):
            load.failed += 1
            return
        finally:
            if client.writer is not None:
                client.writer.close()
        (load.seconds if status == 200 else load.refused).append(time.perf_counter() - begun)

    begun = time.perf_counter()
    number = 0
    while (now := time.perf_counter() - begun) < seconds:
        while number < now * rate:
            task = asyncio.create_task(one())
            running.add(task)
            task.add_done_callback(running.discard)
            number += 1
        await asyncio.sleep(0.002)
    await asyncio.gather(*running)
    load.took = time.perf_counter() - begun
    return load


@contextmanager
def server(naive: bool, model: str, threads: int, *limits: str) -> Iterator[tuple[int, int]]:
    """Port and process of a server; limits are of ours."""
    if naive:
        command = [sys.executable, "-c", NAIVE, model]
    else:
        own = ["--threads", str(threads)] if threads else []
        command = [sys.executable, "-m", "openblip", "serve", "--model", model, "--port", "0", "--quiet", *own]
        command += [f"--limit={limit}" for limit in limits]
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline().strip().rpartition(":")[2]), process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def touched(photo: bytes, number: int) -> bytes:
    """The photo with one of its pixels' columns changed, so that no cache knows it."""
    from PIL import Image

    image = Image.open(io.BytesIO(photo)).convert("RGB")
    image.putpixel((number % 480, number // 480 % 360), (number % 256, 255, 0))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def repeated(photos: list[bytes], chance: random.Random) -> Callable[[], bytes]:
    requests = [form_request(photo) for photo in photos]
    weights = [1 / (place + 1) for place in range(len(requests))]
    return lambda: chance.choices(requests, weights)[0]


def ceiling(model: str, photos: list[bytes], threads: int) -> float:
    """Photos a second of `caption_many`."""
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    command = [sys.executable, "-c", CEILING, model, *(str(len(photo)) for photo in photos)]
    done = subprocess.run(command, input=b"".join(photos), capture_output=True, check=True, env=environment)
    return float(done.stdout)


def resident(pid: int) -> float:
    """Megabytes of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def throughput(options: argparse.Namespace) -> Iterator[Row]:
    """Ours against the naive server, round by round."""
    photos, shop = make_photos(options.photos), make_photos(200, seed=1)
    pool = [form_request(touched(photos[n % len(photos)], n)) for n in range(int(options.seconds * options.most))]
    found: dict[tuple[str, bool], list[Load]] = {}
    ceilings: list[float] = []
    for _ in range(options.rounds):
        for naive in (False, True):
            chance = random.Random(3)
            left = iter(pool)
            eight = itertools.cycle([question_request(photos[0], question, naive) for question in QUESTIONS])
            loads: dict[str, tuple[Callable[[], bytes], int]] = {
                "different": (left.__next__, options.clients),
                "repeated": (repeated(shop, chance), options.clients),
                "repeated, later": (repeated(shop, chance), options.clients),
                "questions": (eight.__next__, 8),
            }
            with server(naive, options.model, options.threads) as (port, pid):
                asyncio.run(closed_loop(port, lambda: form_request(photos[1]), 4, min(3.0, options.seconds)))
                for name, (requests, clients) in loads.items():
                    load = measured(pid, closed_loop(port, requests, clients, options.seconds))
                    found.setdefault((name, naive), []).append(load)
        ceilings.append(ceiling(options.model, photos, options.threads))
    for name in ("different", "repeated", "repeated, later", "questions"):
        rates = {naive: statistics.median(load.rate for load in found[name, naive]) for naive in (False, True)}
        for naive in (False, True):
            label = f"{name}, {'naive' if naive else 'ours'}"
            yield Row(f"{label}: requests/s", rates[naive], "1/s")
            yield Row(f"{label}: p99", statistics.median(load.p99() for load in found[name, naive]), "s")
            yield Row(f"{label}: failed", sum(load.failed for load in found[name, naive]), "")
            yield from _processors(label, found[name, naive])
        yield Row(f"{name}: times naive", rates[False] / rates[True], "x")
    most = statistics.median(ceilings)
    yield Row("caption_many, batch 32", most, "1/s")
    own, peer = (statistics.median(load.rate for load in found["different", naive]) for naive in (False, True))
    yield Row("caption_many: times naive, which batching alone allows", most / peer, "x")
    yield Row("share of the engine's own ceiling", own / most, "x")


def _processors(label: str, loads: list[Load]) -> Iterator[Row]:
    """What requests cost, and how many processors the server could have used: more than there are, if it is bound by
    them, and fewer where it waits for itself."""
    answers = sum(len(load.seconds) for load in loads)
    took = sum(load.took for load in loads)
    ran, waited = sum(load.server.ran for load in loads), sum(load.server.waited for load in loads)
    yield Row(f"{label}: CPU of the server a request", 1e3 * ran / max(1, answers), "ms")
    yield Row(f"{label}: processors that it used", ran / took, "")
    yield Row(f"{label}: processors that it could have used", (ran + waited) / took, "")
    yield Row(f"{label}: processors of the clients", sum(load.clients for load in loads) / took, "")


def first_token(options: argparse.Namespace) -> Iterator[Row]:
    """Time to the first piece of a streamed answer, idle and while all clients are at work."""
    photos = make_photos(options.photos)
    pool = [form_request(touched(photos[n % len(photos)], n)) for n in range(int(options.seconds * options.most))]

    async def streams(port: int, count: int, start: int) -> list[float]:
        client, found = Client(port), []
        for number in range(count):
            photo = touched(photos[number % len(photos)], start + number)
            _, first = await client.ask(question_request(photo, QUESTIONS[number % 8], False, stream=True))
            found.append(first)
        return found

    async def both(port: int) -> tuple[float, float]:
        idle = await streams(port, 20, 10_000)
        left = iter(pool)
        load = asyncio.create_task(closed_loop(port, lambda: next(left), options.clients, options.seconds))
        await asyncio.sleep(min(2.0, options.seconds / 4))
        under: list[float] = []
        while not load.done():
            under += await streams(port, 1, 20_000 + len(under))
        return statistics.median(idle), statistics.median(under)

    with server(False, options.model, options.threads) as (port, _):
        idle, under = asyncio.run(both(port))
    yield Row("first token, idle", idle, "s")
    yield Row("first token, full load", under, "s")
    yield Row("first token, full load against idle", under / idle, "x")


def overload(options: argparse.Namespace) -> Iterator[Row]:
    """More than the server answers in a closed loop, in an open one."""
    photos = make_photos(options.photos)
    pool = [form_request(touched(photos[n % len(photos)], n)) for n in range(2000)]
    # In turn, so that none is still kept when it comes again; and kept texts would make the server faster with time.
    left = itertools.cycle(pool)
    limits = ["answers=0", *([f"queue={options.queue}"] if options.queue else [])]
    with server(False, options.model, options.threads, *limits) as (port, _):
        usual = asyncio.run(closed_loop(port, left.__next__, options.clients, min(20.0, options.seconds)))
        load = asyncio.run(open_loop(port, left.__next__, options.load * usual.rate, options.seconds))
    share = f"{100 * options.load:.0f} % load"
    yield Row(f"{share}: answered", load.rate, "1/s")
    yield Row(f"{share}: p99 of answers", load.p99(), "s")
    yield Row(f"{share}: refused", len(load.refused), "")
    yield Row(f"{share}: p99 of refusals", load.p99(load.refused), "s")
    yield Row(f"{share}: failed", load.failed, "")


def memory(options: argparse.Namespace) -> Iterator[Row]:
    """Memory of the process after many requests, against after 500."""
    photos = make_photos(options.photos)
    with server(False, options.model, options.threads) as (port, pid):
        sizes = []
        for count in (500, options.requests - 500):
            left = iter(range(count))

            def requests(left: Iterator[int] = left) -> bytes:
                number = next(left, 0)
                return form_request(touched(photos[number % len(photos)], number))

            async def run(count: int = count, requests: Callable[[], bytes] = requests) -> None:
                clients = [Client(port) for _ in range(16)]

                async def one(client: Client) -> None:
                    for _ in range(count // 16):
                        await client.ask(requests())

                await asyncio.gather(*map(one, clients))

            asyncio.run(run())
            sizes.append(resident(pid))
    yield Row("memory after 500 requests", sizes[0], "MB")
    yield Row(f"memory after {options.requests} requests", sizes[1], "MB")
    yield Row("memory, later against earlier", sizes[1] / sizes[0], "x")


PARTS: dict[str, Callable[[Any], Iterator[Row]]] = {
    "throughput": throughput,
    "first": first_token,
    "overload": overload,
    "memory": memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--photos", type=int, default=64)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--load", type=float, default=1.2, help="of overload, as times what a closed loop does")
    parser.add_argument("--queue", type=int, default=0, help="images that may wait, for overload; 0: the server's own")
    parser.add_argument("--most", type=float, default=100.0, help="requests a second that no server exceeds")
    parser.add_argument("--only", choices=PARTS)
    add_json_option(parser)
    options = parser.parse_args()
    rows = []
    for name, part in PARTS.items():
        if options.only in (None, name):
            for row in part(options):
                print(f"{row.name:45} {row.value:10.3f} {row.unit}", flush=True)
                rows.append(row)
    finish(rows, options.json, f"{options.model}, {options.clients} clients, {options.rounds} x {options.seconds:g} s")


if __name__ == "__main__":
    main()
