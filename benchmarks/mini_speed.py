"""How long a newcomer waits: import, help, load, and the caption of one photo.

    python benchmarks/mini_speed.py [--model mini] [--runs 9] [--threads 2]

Import and help are whole processes; load and caption are measured inside one process, the first caption apart
from the later ones. The photo is drawn here: 640x480, JPEG.
"""

from __future__ import annotations

import argparse
import io
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def synthetic_jpeg(width: int = 640, height: int = 480, seed: int = 0) -> bytes:
    """A JPEG with as much detail as a photo has."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(coarse, dtype=np.int16) + rng.integers(-12, 13, (height, width, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def seconds(action: Callable[[], object], runs: int) -> list[float]:
    taken = []
    for _ in range(runs):
        start = time.perf_counter()
        action()
        taken.append(time.perf_counter() - start)
    return taken


def process(*arguments: str) -> Callable[[], subprocess.CompletedProcess[str]]:
    return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help="name or folder")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="a file to write the figures to, too")
    options = parser.parse_args()
    bare = seconds(process("-c", "pass"), options.runs)
    rows = [
        ("a bare Python process", bare),
        ("`import openblip`, whole process", seconds(process("-c", "import openblip"), options.runs)),
        ("`openblip --help`, whole process", seconds(process("-m", "openblip", "--help"), options.runs)),
    ]
    loading = (
        "import time; start = time.perf_counter(); import openblip; "
        f"openblip.load({options.model!r}); print(time.perf_counter() - start)"
    )
    fresh = [float(process("-c", loading)().stdout) for _ in range(options.runs)]
    rows.append(("`import openblip` and `load()`, new process", fresh))

    import torch

    import openblip

    torch.set_num_threads(options.threads)
    openblip.load(options.model)  # the modules it imports are read from disk here
    rows.append(("`openblip.load()`, later", seconds(lambda: openblip.load(options.model), options.runs)))
    model, image = openblip.load(options.model), synthetic_jpeg()
    rows.append(("first caption", seconds(lambda: model.caption(image), 1)))
    rows.append(("caption of a 640x480 JPEG", seconds(lambda: model.caption(image), options.runs)))
    rows.append(("answer", seconds(lambda: model.ask(image, "what is it?"), options.runs)))
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {options.threads} threads, Python {platform.python_version()}, torch {torch.__version__}")
    print("\n| what | median s | lowest to highest |\n|---|---|---|")
    for name, taken in rows:
        print(f"| {name} | {statistics.median(taken):.3f} | {min(taken):.3f} to {max(taken):.3f} |")
    from results import Row, finish

    found = [Row(name.replace("`", ""), statistics.median(taken), "s", less_is_better=True) for name, taken in rows]
    finish(found, options.json, f"{options.model}, {options.threads} threads, {options.runs} runs")


if __name__ == "__main__":
    main()
