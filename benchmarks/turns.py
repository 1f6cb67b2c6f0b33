"""Several ways of doing the same work, which take turns, and what they took beside a peer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from results import Row

WARM = 1
"""Rounds that do not count; int8 layers are packed before."""
PEER, FLOAT32, INT8 = "peer", "float32", "int8"
NOTHING = 1e-4
"""Seconds."""
Field: TypeAlias = Literal["wall", "cpu"]
FIELDS: tuple[Field, Field] = ("wall", "cpu")


@dataclass(frozen=True)
class Taken:
    """One call: seconds on the clock and of the CPU, and what came out."""

    wall: float
    cpu: float
    result: Any


@dataclass(frozen=True)
class Figures:
    """What all ways took in a row of the table, round by round."""

    name: str
    taken: Mapping[str, Sequence[Taken]]

    def ratio(self, way: str, of: Field) -> float:
        """Times as fast as the peer, by the field `of` of `Taken`."""
        pairs = zip(self.taken[PEER], self.taken[way], strict=True)
        return float(statistics.median(getattr(theirs, of) / getattr(own, of) for theirs, own in pairs))

    def seconds(self, way: str) -> float:
        return statistics.median(one.wall for one in self.taken[way])

    def same(self, way: str) -> tuple[int, int]:
        """Results that are the peer's, and all."""
        theirs = [text for one in self.taken[PEER] for text in one.result]
        own = [text for one in self.taken[way] for text in one.result]
        return sum(a == b for a, b in zip(theirs, own, strict=True)), len(own)

    def line(self) -> str:
        shown = [f"| {self.name} | {self.seconds(PEER):.2f} |"]
        for way in (FLOAT32, INT8):
            equal, count = self.same(way)
            # What the peer does not do costs it nothing.
            wall, cpu = (f"{self.ratio(way, of):.2f}" if self.seconds(PEER) > NOTHING else "-" for of in FIELDS)
            shown.append(f" {self.seconds(way):.3f} | **{wall}** | {cpu} | {equal} of {count} |")
        return "".join(shown)

    def rows(self) -> list[Row]:
        peer = self.seconds(PEER)
        return [
            Row(f"{self.name}, {way}", self.ratio(way, "wall"), ours=self.seconds(way), theirs=peer)
            for way in (FLOAT32, INT8)
        ]


HEAD = (
    "| What | Peer, s | Float32, s | Times as fast | CPU time | Same | Int8, s | Times as fast | CPU time | Same |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def take_turns(name: str, ways: Mapping[str, Callable[[int], Any]], rounds: int) -> Figures:
    """Each way once in each round, which has a number."""
    taken: dict[str, list[Taken]] = {way: [] for way in ways}
    for number in range(rounds + WARM):
        for way, work in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            with torch.inference_mode():
                result = work(number)
            one = Taken(time.perf_counter() - wall, time.process_time() - cpu, result)
            if number >= WARM:
                taken[way].append(one)
    return Figures(name, taken)
