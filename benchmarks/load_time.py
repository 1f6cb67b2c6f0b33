"""How long loading takes when the files lie in memory already: ours, float and quantized, against transformers.

    python benchmarks/real_size.py opt blip2-random/
    openblip quantize blip2-random/ blip2-random-int8/ --bits 8
    python benchmarks/load_time.py blip2-random/ [--folders blip2-random-int8/] [--dtypes float16 int8 int4]

Each load is a process of its own; they take turns. Folders that `openblip quantize` wrote are loaded as they are. The
files are read before each, so that the system keeps them in memory; the first line says how fast. Imports do not count;
ours reads the vocabulary, too. "touched" includes reading a number of every page of every weight behind the load: a
library that only maps a file pays for it then. RSS is the most that a process took. The last column compares the lowest
CPU times, which other programs on the machine disturb least; a load on several threads ends sooner than they say.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

from results import Row, add_json_option, finish

BEGIN = """
import json, resource, sys, time
import torch
torch.set_num_threads(int(sys.argv[3]))
"""
OURS = """
import openblip, tokenizers, openblip.checkpoints.layouts, openblip.checkpoints.transformers.read
openblip.load  # imports what it needs
start = time.perf_counter(), time.process_time()
network = openblip.load(sys.argv[1], dtype=sys.argv[2] or None, device="cpu").network
"""
THEIRS = """
import transformers
from transformers import Blip2ForConditionalGeneration as Theirs
transformers.logging.disable_progress_bar()
start = time.perf_counter(), time.process_time()
network = Theirs.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
"""
END = """
loaded = time.perf_counter(), time.process_time()
for tensor in (*network.parameters(), *network.buffers()):
    tensor.flatten()[:: max(1, 4096 // tensor.element_size())].double().sum()
touched = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps([loaded[0] - start[0], touched - start[0], loaded[1] - start[1], peak]))
"""


def load(program: str, folder: Path, dtype: str, threads: int) -> list[float]:
    """Seconds to load, and until all is touched; seconds of the processor to load; bytes at the peak."""
    arguments = [sys.executable, "-c", BEGIN + program + END, str(folder), dtype, str(threads)]
    ran = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True)
    found: list[float] = json.loads(ran.stdout.splitlines()[-1])
    return found


def read_files(folder: Path) -> float:
    """Read all weights, so that the system has them at hand; bytes a second of the second reading."""
    room = bytearray(2**24)
    size = 0
    for _ in range(2):
        start, size = time.perf_counter(), 0
        for path in folder.glob("*.safetensors"):
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(room):
                    size += count
    return size / (time.perf_counter() - start)


def kept_in(folder: Path) -> str:
    """What the weights of a folder that `openblip quantize` wrote are."""
    return f"int{json.loads((folder / 'config.json').read_text(encoding='utf-8'))['bits']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtypes", nargs="*", default=["float16", "int8", "int4"])
    parser.add_argument("--folders", nargs="*", type=Path, default=[], help="of ours, quantized")
    parser.add_argument("--theirs", default="float16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    add_json_option(parser)
    options = parser.parse_args()
    ways = {f"transformers, {options.theirs}": (THEIRS, options.folder, options.theirs)}
    ways |= {f"ours, {dtype}": (OURS, options.folder, dtype) for dtype in options.dtypes}
    ways |= {f"ours, {kept_in(folder)} folder": (OURS, folder, "") for folder in options.folders}
    found: dict[str, list[list[float]]] = defaultdict(list)
    rates = []
    for _ in range(options.rounds):
        for name, (program, folder, dtype) in ways.items():
            rates.append(read_files(folder))
            found[name].append(load(program, folder, dtype, options.threads))
    middle = {name: [statistics.median(column) for column in zip(*runs, strict=True)] for name, runs in found.items()}
    size = sum(path.stat().st_size for path in options.folder.glob("*.safetensors"))
    rate = statistics.median(rates) / 1e9
    print(f"{size / 1e9:.2f} GB of weights, which one thread reads from the file cache at {rate:.1f} GB/s")
    print("\n| what | s | lowest to highest | s, touched | CPU s | peak RSS, GB | times as fast | by lowest CPU s |")
    print("|---|---|---|---|---|---|---|---|")
    theirs = next(iter(middle.values()))
    their_cpu = min(run[2] for run in next(iter(found.values())))
    rows = []
    for name, (seconds, touched, processor, peak) in middle.items():
        each = [run[0] for run in found[name]]
        span = f"{min(each):.2f} to {max(each):.2f}"
        gain = theirs[0] / seconds
        by_cpu = their_cpu / min(run[2] for run in found[name])
        times = f"{seconds:.2f} | {span} | {touched:.2f} | {processor:.2f}"
        print(f"| {name} | {times} | {peak / 1e9:.2f} | {gain:.2f} | {by_cpu:.2f} |")
        if name.startswith("ours"):
            rows.append(Row(f"load, {name[6:]}", gain, ours=seconds, theirs=theirs[0]))
            rows.append(Row(f"load and touch, {name[6:]}", theirs[1] / touched, ours=touched, theirs=theirs[1]))
    finish(rows, options.json, f"{options.folder.name}, {options.rounds} rounds, {options.threads} threads")


if __name__ == "__main__":
    main()
