"""How long texts take that are asked for at random times: by continuous batching, and by whole batches.

    python benchmarks/continuous_batching.py [--model mini] [--requests 200] [--loads 0.3 0.6 0.9] [--num-beams 1]
                                             [--rounds 3] [--threads 2] [--dtype float32]

Requests arrive at random (a Poisson process), of three kinds: short answers, captions, and long texts, which have 6, 20
and 60 tokens. Whole batches take what waits with the same options, the oldest first and up to 32 together, and answer
when the batch is done; this is what a server does without continuous batching. Both ways get the same requests at the
same times, and take turns. A load of 1 is the rate at which whole batches of 32 with the same mixture are written.
Images are encoded before, as both ways encode them alike. The texts must be the same.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from results import Row, add_json_option, finish

import openblip
from openblip.models.model import Model

KINDS = {"answer": 6, "caption": 20, "long": 60}
"""Tokens of each kind of request."""
SHARES = {"answer": 0.4, "caption": 0.4, "long": 0.2}
BATCH = 32
PROMPT = "a photo of"


@dataclass(frozen=True)
class Request:
    arrival: float
    kind: str
    image: Any


@dataclass
class Served:
    """What one way made of all requests.

    Attributes:
        seconds: from the arrival of each request to its text.
        wall: from the first arrival to the last text.
    """

    seconds: list[float]
    texts: list[str]
    tokens: int
    wall: float

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.seconds, 100 * share))


def options_of(kind: str, num_beams: int) -> dict[str, Any]:
    return {"max_new_tokens": KINDS[kind], "min_new_tokens": KINDS[kind], "num_beams": num_beams}


def requests_of(rng: random.Random, images: Sequence[Any], count: int, rate: float) -> list[Request]:
    made, now = [], 0.0
    for _ in range(count):
        now += rng.expovariate(rate)
        kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
        made.append(Request(now, kind, rng.choice(images)))
    return made


def whole(model: Model, requests: Sequence[Request], num_beams: int) -> Served:
    """What waits with the same options goes together."""
    start, coming, waiting = time.perf_counter(), deque(enumerate(requests)), deque[tuple[int, Request]]()
    done: dict[int, tuple[float, Any]] = {}
    while coming or waiting:
        arrive(coming, start, waiting.append, idle=not waiting)
        kind = waiting[0][1].kind
        batch = [one for one in waiting if one[1].kind == kind][:BATCH]
        waiting = deque(one for one in waiting if one not in batch)
        pairs = [(request.image, PROMPT) for _, request in batch]
        texts = model.generate(
            [image for image, _ in pairs], PROMPT, details=True, batch_size=BATCH, **options_of(kind, num_beams)
        )
        now = time.perf_counter() - start
        done |= {place: (now, text) for (place, _), text in zip(batch, texts, strict=True)}
    return served(requests, done)


def continuous(model: Model, requests: Sequence[Request], num_beams: int) -> Served:
    start, coming = time.perf_counter(), deque(enumerate(requests))
    session = model.decode_session(max_texts=2 * BATCH * num_beams)
    places: dict[int, int] = {}
    done: dict[int, tuple[float, Any]] = {}

    def join(one: tuple[int, Request]) -> None:
        place, request = one
        places[session.generate(request.image, PROMPT, **options_of(request.kind, num_beams))] = place

    while coming or session.running:
        arrive(coming, start, join, idle=not session.running)
        for event in session.step():
            if event.result is not None:
                done[places[event.id]] = time.perf_counter() - start, event.result.answers[0]  # type: ignore[union-attr]
    return served(requests, done)


def arrive(
    coming: deque[tuple[int, Request]], start: float, take: Callable[[tuple[int, Request]], object], idle: bool
) -> None:
    """Take the requests whose time has come, and wait for the next if nothing else is to be done."""
    if idle and coming:
        time.sleep(max(0.0, coming[0][1].arrival - (time.perf_counter() - start)))
    while coming and (coming[0][1].arrival <= time.perf_counter() - start or idle):
        take(coming.popleft())
        idle = False


def served(requests: Sequence[Request], done: dict[int, tuple[float, Any]]) -> Served:
    ordered = [done[place] for place in range(len(requests))]
    seconds = [now - request.arrival for (now, _), request in zip(ordered, requests, strict=True)]
    tokens = sum(len(text.tokens) for _, text in ordered)
    return Served(seconds, [text.text for _, text in ordered], tokens, max(now for now, _ in ordered))


WAYS: dict[str, Callable[[Model, Sequence[Request], int], Served]] = {"whole": whole, "continuous": continuous}


def capacity(model: Model, images: Sequence[Any], num_beams: int) -> float:
    """Requests a second that whole batches of 32 reach with this mixture."""
    seconds = 0.0
    for kind, share in SHARES.items():
        batch = [images[place % len(images)] for place in range(BATCH)]
        for _ in range(2):  # the first packs and warms up
            start = time.perf_counter()
            model.generate(batch, PROMPT, batch_size=BATCH, **options_of(kind, num_beams))
            taken = time.perf_counter() - start
        seconds += share * taken / BATCH
    return 1 / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--loads", type=float, nargs="+", default=[0.3, 0.6, 0.9])
    parser.add_argument("--num-beams", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32")
    add_json_option(parser)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = openblip.load(given.model, dtype=given.dtype, device="cpu")
    drawn = np.random.default_rng(0)
    images = [model.encode_image(drawn.integers(0, 256, (48, 64, 3), dtype=np.uint8)) for _ in range(BATCH)]
    full = capacity(model, images, given.num_beams)
    print(f"{given.model}, {given.dtype}: whole batches of {BATCH} write {full:.1f} requests a second\n")
    print("| Load | Way | Mean, s | Median, s | p99, s | Tokens/s |\n|---|---|---|---|---|---|")
    rows, same = [], Counter[bool]()
    for load in given.loads:
        found: dict[str, list[Served]] = {way: [] for way in WAYS}
        for number in range(given.rounds):
            requests = requests_of(random.Random(number), images, given.requests, load * full)
            for way, serve in WAYS.items():
                found[way].append(serve(model, requests, given.num_beams))
            both = zip(found["whole"][-1].texts, found["continuous"][-1].texts, strict=True)
            same.update(one == other for one, other in both)
        figures = {
            way: (
                statistics.median(statistics.fmean(one.seconds) for one in each),
                statistics.median(one.percentile(0.5) for one in each),
                statistics.median(one.percentile(0.99) for one in each),
                statistics.median(one.tokens / one.wall for one in each),
            )
            for way, each in found.items()
        }
        for way, (mean, middle, high, speed) in figures.items():
            print(f"| {load} | {way} | {mean:.3f} | {middle:.3f} | {high:.3f} | {speed:.0f} |", flush=True)
        for place, name in enumerate(("mean", "median", "p99")):
            theirs, ours = figures["whole"][place], figures["continuous"][place]
            rows.append(Row(f"{name} at load {load}", theirs / ours, ours=ours, theirs=theirs))
        rows.append(Row(f"tokens/s at load {load}", figures["continuous"][3], "tokens/s"))
    print(f"\n{same[True]} of {same.total()} texts are the same.")
    finish(rows, given.json, f"{given.model}, {given.dtype}, {given.requests} requests, {given.num_beams} beams")


if __name__ == "__main__":
    main()
