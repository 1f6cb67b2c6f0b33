"""The most memory that loading a model and captioning one image takes, each format in a process of its own.

    python benchmarks/real_size.py opt blip2-random/
    python benchmarks/peak_memory.py blip2-random/ [--dtypes int8 int4] [--theirs]

With --theirs transformers loads the folder in float32, too, and captions nothing. Linux and macOS.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from results import Row, add_json_option, finish

OURS = """
import openblip, sys
from PIL import Image
model = openblip.load(sys.argv[1], dtype=sys.argv[2])
for beams in (1, 5):
    image = Image.effect_noise((640, 480), 50 + beams).convert("RGB")
    model.caption(image, num_beams=beams, max_new_tokens=20, min_new_tokens=20)
"""
THEIRS = """
import sys, torch, transformers
transformers.logging.disable_progress_bar()
model = transformers.Blip2ForConditionalGeneration.from_pretrained(sys.argv[1], dtype=torch.float32)
"""
TELL = """
import pathlib, re, resource
status = pathlib.Path("/proc/self/status")
# Of this program alone: what getrusage tells begins at the memory of the process that started this one.
found = re.search(r"VmHWM:\\s+(\\d+)", status.read_text()) if status.exists() else None
print(found[1] if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in what the system counts."""


def peak(program: str, *arguments: str) -> int:
    """The most memory that a program takes, in bytes."""
    ran = subprocess.run([sys.executable, "-c", program + TELL, *arguments], check=True, capture_output=True, text=True)
    return int(ran.stdout.split()[-1]) * UNIT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtypes", nargs="+", default=["int8", "int4"])
    parser.add_argument("--theirs", action="store_true")
    add_json_option(parser)
    options = parser.parse_args()
    rows = []
    print("| what | GB | GiB |\n|---|---|---|")
    for dtype in options.dtypes:
        found = peak(OURS, str(options.folder), dtype)
        print(f"| ours, {dtype} | {found / 1e9:.2f} | {found / 2**30:.2f} |", flush=True)
        rows.append(Row(f"peak memory, {dtype}", found / 1e9, "GB", less_is_better=True))
    if options.theirs:
        found = peak(THEIRS, str(options.folder))
        print(f"| transformers, float32, loading alone | {found / 1e9:.2f} | {found / 2**30:.2f} |")
        rows.append(Row("peak memory, transformers float32", found / 1e9, "GB", less_is_better=True))
    size = sum(path.stat().st_size for path in options.folder.glob("*.safetensors"))
    print(f"\nThe folder's weights are {size / 1e9:.2f} GB.")
    finish(rows, options.json, options.folder.name)


if __name__ == "__main__":
    main()
