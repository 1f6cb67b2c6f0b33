"""What a benchmark found: a file of rows beside its table, with what the machine could do in the same run."""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from openblip.machine import measure

TIMES = "times as fast"


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        value: in `unit`; where that is `TIMES`, the peer's time by ours.
        ours, theirs: the times or sizes behind it, where there are two.
        less_is_better: of sizes and times, say.
    """

    name: str
    value: float
    unit: str = TIMES
    ours: float | None = None
    theirs: float | None = None
    less_is_better: bool = False


def add_json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, help="a file to write the figures to, too")


def finish(rows: Sequence[Row], path: Path | None, settings: str) -> None:
    """Measure and print what the machine gives, and write all to `path` if there is one."""
    ceilings = machine_ceilings()
    told = ", ".join(f"{name} {value:.1f}" for name, value in ceilings.items())
    print(f"\nThis machine, measured in the same run: {told}.", flush=True)
    if path is not None:
        content: dict[str, Any] = {
            "settings": settings,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "date": time.strftime("%Y-%m-%d"),
            "ceilings": ceilings,
            "rows": [asdict(row) for row in rows],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def machine_ceilings() -> dict[str, float]:
    """What memory gives, and products of the rows of an image in each number format, with the threads in use."""
    machine = measure(rounds=3)
    found = {"memory GB/s": machine.reads / 1e9}
    for speed in machine.speeds:
        found[f"{speed.dtype} products GFLOP/s"] = speed.many / 1e9
        found[f"{speed.dtype} weights read by one row GB/s"] = speed.row / 1e9
    return found
