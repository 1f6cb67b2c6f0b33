"""`openblip run` over many photos: against the bare engine, against a loop over a pandas table, its memory and start.

    python benchmarks/jobs.py [--only throughput pandas memory start] [--photos 2000] [--rounds 3] [--cores 2]

Each measurement is a process of its own; ours and the peer's take turns, and medians are compared. The photos are
those in examples/, each cropped by a few pixels more, so that no two are the same. `pandas` is the loop that people
write: `data.apply` over a table, with transformers' processor and `generate` on one image at a time and 20 new tokens.
Both load one folder of transformers, with random weights (see real_size.py), and decode greedily in float32.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from results import Row, add_json_option, finish

EXAMPLES = Path(__file__).parents[1] / "examples"
REAL_SIZE = Path(__file__).with_name("real_size.py")
LARGE, SMALL = 200_000, 2_000
DIFFERENT = 200
"""Photos of the large tables, whose rows name them again and again."""

ENGINE = """
import json, sys, time
from pathlib import Path
import openblip
folder, options = sys.argv[1], json.loads(sys.argv[2])
model = openblip.load(options.pop("model"), image_cache=0)
photos = sorted(Path(folder).glob("*.jpg"))
start = time.perf_counter()
captions = [found.captions[0].text for found in model.caption_many(photos, **options)]
print(json.dumps({"seconds": time.perf_counter() - start, "captions": captions[:3]}))
"""
PANDAS = """
import json, sys, time
from pathlib import Path
import pandas as pd
import torch
from PIL import Image
from transformers import AutoProcessor, Blip2ForConditionalGeneration
table, folder = sys.argv[1:3]
processor = AutoProcessor.from_pretrained(folder)
model = Blip2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
data = pd.read_csv(table)
def generate_text(row):
    raw_image = Image.open(row["image"].replace("\\\\", "/")).convert("RGB")
    inputs = processor(raw_image, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=20)
    return processor.batch_decode(ids, skip_special_tokens=True)[0].strip()
start = time.perf_counter()
data["caption"] = data.apply(generate_text, axis=1)
data.to_csv(sys.argv[3], index=False)
print(json.dumps({"seconds": time.perf_counter() - start, "captions": list(data["caption"][:3])}))
"""


@dataclass(frozen=True)
class Run:
    """One `openblip run`.

    Attributes:
        seconds: of the whole command; first: until the first chunk was on the disk.
        steady: seconds from there to the end.
        peak: of the memory of all its processes together, in MB.
    """

    seconds: float
    first: float
    steady: float
    peak: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--photos", type=int, default=2_000)
    parser.add_argument("--peer-photos", type=int, default=100, help="photos for the loop over pandas")
    parser.add_argument("--peer-size", default="small", help="a size of real_size.py")
    parser.add_argument("--rows", type=int, default=LARGE, help="rows of the large table")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--model", default="mini")
    add_json_option(parser)
    given = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="openblip-jobs-") as folder:
        for part in given.only:
            rows += PARTS[part](given, Path(folder))
    finish(rows, given.json, f"{given.model}, {given.photos} photos, {given.rounds} rounds")


def throughput(given: argparse.Namespace, folder: Path) -> list[Row]:
    """Images a second of `run caption` and of `caption_many`, in turns."""
    photos = make_photos(folder / "photos", given.photos)
    options = json.dumps({"model": given.model, "batch_size": 8})
    whole, steady, engine = [], [], []
    for number in range(given.rounds):
        ours = run_caption(photos, folder / f"engine{number}.csv", given.model, max(given.cores))
        peer = call([sys.executable, "-c", ENGINE, str(photos), options], max(given.cores))
        whole.append(given.photos / ours.seconds)
        steady.append((given.photos - 8) / ours.steady)
        engine.append(given.photos / peer["seconds"])
        print(
            f"run {whole[-1]:.2f} ({steady[-1]:.2f} once it runs), caption_many {engine[-1]:.2f} images/s", flush=True
        )
    return [
        compared("run caption, behind the first chunk, against caption_many (images/s)", steady, engine),
        compared("run caption with its start and end, against caption_many (images/s)", whole, engine),
    ]


def pandas(given: argparse.Namespace, folder: Path) -> list[Row]:
    """Images a second of `run caption` and of a loop over a pandas table."""
    photos = make_photos(folder / "theirs", given.peer_photos)
    table = make_table(folder / "peer.csv", sorted(photos.iterdir()))
    model = folder / given.peer_size
    subprocess.run([sys.executable, str(REAL_SIZE), given.peer_size, str(model)], check=True, stderr=subprocess.DEVNULL)
    rows = []
    for cores in given.cores:
        ours, peer = [], []
        for number in range(given.rounds):
            options = ("--max-new-tokens", "20", "--num-beams", "1", "--dtype", "float32")
            run = run_caption(table, folder / f"pandas{cores}-{number}.csv", str(model), cores, *options)
            ours.append((given.peer_photos - 8) / run.steady)
            found = call([sys.executable, "-c", PANDAS, str(table), str(model), str(folder / "loop.csv")], cores)
            peer.append(given.peer_photos / found["seconds"])
            print(f"{cores} cores: run {ours[-1]:.2f}, pandas {peer[-1]:.2f} images/s", flush=True)
        rows.append(compared(f"run caption against a loop over pandas, {cores} cores (images/s)", ours, peer))
    return rows


def memory(given: argparse.Namespace, folder: Path) -> list[Row]:
    """Peak memory of all processes with many rows and with few."""
    photos = make_photos(folder / "few", DIFFERENT)
    peaks: dict[int, list[float]] = {SMALL: [], given.rows: []}
    for number in range(given.rounds):
        for count in peaks:
            table = make_table(
                folder / f"{count}.csv", itertools.islice(itertools.cycle(sorted(photos.iterdir())), count)
            )
            run = run_caption(
                table, folder / f"memory{count}-{number}.csv", given.model, max(given.cores), watch_memory=True
            )
            peaks[count].append(run.peak)
            print(f"{count:,} rows: {run.peak:.0f} MB, {run.seconds:.1f} s", flush=True)
    large, small = statistics.median(peaks[given.rows]), statistics.median(peaks[SMALL])
    return [Row(f"memory at {given.rows:,} rows against {SMALL:,} (MB)", large / small, "x", large, small, True)]


def start(given: argparse.Namespace, folder: Path) -> list[Row]:
    """Seconds until the first captions of a large table are on the disk."""
    photos = make_photos(folder / "few", DIFFERENT)
    table = make_table(folder / "start.csv", itertools.islice(itertools.cycle(sorted(photos.iterdir())), given.rows))
    seconds = []
    for number in range(given.rounds):
        run = run_caption(table, folder / f"start{number}.csv", given.model, max(given.cores), stop_at_first=True)
        seconds.append(run.first)
        print(f"first captions after {run.first:.2f} s", flush=True)
    return [Row(f"first captions of {given.rows:,} rows after", statistics.median(seconds), "s", less_is_better=True)]


PARTS: dict[str, Callable[[argparse.Namespace, Path], list[Row]]] = {
    "throughput": throughput,
    "pandas": pandas,
    "memory": memory,
    "start": start,
}
OPENBLIP = [sys.executable, "-m", "openblip"]


def compared(name: str, ours: list[float], theirs: list[float]) -> Row:
    """The median of the ratios, for each is of two neighbouring measurements."""
    ratio = statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
    print(f"{name}: {ratio:.3f}", flush=True)
    return Row(name, ratio, "x", statistics.median(ours), statistics.median(theirs))


def run_caption(
    source: Path,
    output: Path,
    model: str,
    cores: int,
    *options: str,
    stop_at_first: bool = False,
    watch_memory: bool = False,
) -> Run:
    """One command. To look at the memory of its processes, ten times a second, takes them a third of their speed."""
    command = [*OPENBLIP, "run", "caption", str(source), "-o", str(output), "--model", model, *options]
    rows = Path(f"{output}.openblip") / "rows.jsonl"
    begin = time.perf_counter()
    process = subprocess.Popen(command, env=on(cores), stdout=subprocess.DEVNULL, preexec_fn=lambda: pin(cores))
    first, peak = 0.0, 0.0
    looked = begin
    while process.poll() is None:
        now = time.perf_counter()
        if not first and rows.exists() and rows.stat().st_size:
            first = now - begin
            if stop_at_first:
                process.terminate()
        if watch_memory and now - looked > 0.1:
            peak, looked = max(peak, memory_of(process.pid)), now
        time.sleep(0.005 if not first else 0.05)
    seconds = time.perf_counter() - begin
    if process.returncode and not stop_at_first:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return Run(seconds, first, seconds - first, peak)


def memory_of(process: int) -> float:
    """Memory that a process and its children have to themselves or share among them, in MB."""
    total = 0.0
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) / 1024
    except (OSError, ProcessLookupError):
        return 0.0
    return total + sum(memory_of(int(child)) for child in children)


def call(command: list[str], cores: int) -> dict[str, Any]:
    done = subprocess.run(
        command, env=on(cores), stdout=subprocess.PIPE, check=True, text=True, preexec_fn=lambda: pin(cores)
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def on(cores: int) -> Mapping[str, str]:
    return os.environ | {"OMP_NUM_THREADS": str(cores)}


def pin(cores: int) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def make_photos(folder: Path, count: int) -> Path:
    """Photos of the examples, no two the same."""
    folder.mkdir(exist_ok=True)
    originals = [Image.open(path).convert("RGB") for path in sorted(EXAMPLES.glob("*.jpg"))]
    for number in range(count):
        path = folder / f"{number:05}.jpg"
        if not path.exists():
            image = originals[number % len(originals)]
            less = number // len(originals)
            box = (less % 20, less // 20, image.width, image.height)
            content = io.BytesIO()
            image.crop(box).save(content, "JPEG", quality=88)
            path.write_bytes(content.getvalue())
    return folder


def make_table(path: Path, photos: Any) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "image", "category", "description"])
        for number, photo in enumerate(photos):
            writer.writerow([f"{number:06}", str(photo), "shoes", f'a shoe, {number} of them, with "laces"'])
    return path


if __name__ == "__main__":
    main()
