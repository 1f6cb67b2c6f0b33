"""What many images cost on many machines, by the rate that is measured on this one.

    python benchmarks/cluster_cost.py PHOTOS [--model mini] [--images 10000000] [--price 1.20] [--machines 1 4 16 64]
                                      [--limit 1000] [--batch-size 8] [--options "--dtype int8"]

PHOTOS is whatever `openblip run` takes. Its first --limit images are captioned by `openblip run caption`, as on one
machine of --shard; the rate is that behind the first chunk, for the start is paid once. --price is of a machine an
hour, in any currency. No number of machines is faster than --storage, the GB/s at which all of them together read the
images.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from results import Row, add_json_option, finish

MACHINES = (1, 4, 16, 64)


@dataclass(frozen=True)
class Rate:
    """Of one machine.

    Attributes:
        start: seconds until the first chunk was done.
        each: seconds an image behind it.
        rows: that were done; errors: of them.
    """

    start: float
    each: float
    rows: int
    errors: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", metavar="PHOTOS")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--price", type=float, help="of a machine an hour")
    parser.add_argument("--machines", type=int, nargs="+", default=list(MACHINES))
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--options", default="", help="more flags of openblip run caption, in one text")
    parser.add_argument("--storage", type=float, default=1.0, help="GB/s")
    parser.add_argument("--kilobytes", type=float, default=150.0, help="of an image")
    add_json_option(parser)
    given = parser.parse_args()
    flags = ["--model", given.model, "--batch-size", str(given.batch_size), *shlex.split(given.options)]
    rate = measured(given.photos, given.limit, given.batch_size, flags)
    wrong = f", {rate.errors:,} with an error" if rate.errors else ""
    print(f"\n{rate.rows:,} images{wrong}: {1 / rate.each:.2f} images/s behind a start of {rate.start:.1f} s\n")
    terabytes = given.images * given.kilobytes / 1e9
    reading = given.images * given.kilobytes / 1e6 / given.storage / 3600
    print(
        f"{given.images:,} images of {given.kilobytes:g} kB are {terabytes:.2f} TB: {reading:.2f} h at a time to read"
    )
    price = "" if given.price is None else f" cost at {given.price:g} an hour |"
    print(f"\n| machines | hours |{price}\n|---|---|{'---|' if price else ''}")
    rows = []
    for machines in given.machines:
        hours = max(given.images * rate.each / machines / 3600 + rate.start / 3600, reading)
        cost = "" if given.price is None else f" {hours * machines * given.price:,.0f} |"
        print(f"| {machines:,} | {hours:,.1f} |{cost}", flush=True)
        rows.append(Row(f"{given.images:,} images on {machines:,} machines", hours, "h", less_is_better=True))
    finish(rows, given.json, f"{' '.join(flags)}, {rate.rows} images")


def measured(photos: str, limit: int, batch_size: int, flags: Sequence[str]) -> Rate:
    """Caption the first images."""
    with tempfile.TemporaryDirectory(prefix="openblip-cost-") as folder:
        output = Path(folder) / "rate.csv"
        command = [sys.executable, "-m", "openblip", "run", "caption", photos, "-o", str(output)]
        begin = time.perf_counter()
        process = subprocess.Popen([*command, "--limit", str(limit), *flags], stdout=subprocess.DEVNULL)
        rows, first = Path(f"{output}.openblip") / "rows.jsonl", 0.0
        while process.poll() is None:
            if not first and rows.exists() and rows.stat().st_size:
                first = time.perf_counter() - begin
            time.sleep(0.01)
        seconds = time.perf_counter() - begin
        if process.returncode not in (0, 1) or not output.exists():
            raise SystemExit(f"{shlex.join(command)} ended with {process.returncode}")
        with output.open(encoding="utf-8", newline="") as file:
            errors = [row["error"] for row in csv.DictReader(file)]
        if len(errors) <= batch_size:
            raise SystemExit(f"{photos} has {len(errors)} images: a rate needs more than a batch of {batch_size}")
        return Rate(first, (seconds - first) / (len(errors) - batch_size), len(errors), sum(map(bool, errors)))


if __name__ == "__main__":
    main()
