"""From a JPEG file to normalized pixels: OpenBLIP against transformers' image processor of BLIP-2, on Pillow both.

    python benchmarks/image_pipeline.py [--size 224] [--rounds 15] [--threads 1]

Photos of three sizes are drawn and written here. The two take turns; seconds are those of the processor, so that
what else the machine does weighs less. Pixels that differ in any bit end the run with an error. The last columns
are what Pillow alone needs to decode and to resize: below their sum is no way with the same bits.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import PIL
import torch
import transformers
from mini_speed import synthetic_jpeg
from PIL import Image
from results import Row, add_json_option, finish
from torch import Tensor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from openblip.images.decode import load_image
from openblip.images.transform import ImageTransform, to_pixels

SIZES = ((640, 480), (1920, 1080), (4000, 3000))


def take_turns(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each, the first round apart."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = time.process_time()
            way()
            if turn:
                taken[name].append(1000 * (time.process_time() - start))
    return {name: statistics.median(times) for name, times in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=224, help="side of the square the model takes")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    add_json_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transform, side = ImageTransform(options.size), options.size
    processor = BlipImageProcessorPil(size={"height": side, "width": side})
    versions = f"Pillow {PIL.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"
    print(f"{platform.processor() or platform.machine()}, {options.threads} threads, {versions}")
    print("\n| JPEG | OpenBLIP ms | transformers ms | times as fast | same bits | decode ms | resize ms |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for width, height in SIZES:
            path = Path(folder) / f"{width}.jpg"
            path.write_bytes(synthetic_jpeg(width, height))

            def ours(path: Path = path) -> Tensor:
                return to_pixels([load_image(path)], transform)

            def theirs(path: Path = path) -> Tensor:
                pixels: Tensor = processor(Image.open(path), return_tensors="pt")["pixel_values"]
                return pixels

            if not torch.equal(ours(), theirs()):
                raise SystemExit(f"pixels of {width} x {height} differ")
            image = load_image(path)

            def decode(path: Path = path) -> None:
                Image.open(path).load()

            def resize(image: Image.Image = image) -> Image.Image:
                return image.resize((side, side), Image.Resampling.BICUBIC)

            ways: dict[str, Callable[[], object]] = {"ours": ours, "theirs": theirs, "decode": decode, "resize": resize}
            found = take_turns(ways, options.rounds)
            faster = found["theirs"] / found["ours"]
            print(
                f"| {width} x {height} | {found['ours']:.1f} | {found['theirs']:.1f} | {faster:.2f} | yes "
                f"| {found['decode']:.1f} | {found['resize']:.1f} |"
            )
            rows.append(Row(f"JPEG of {width}x{height}", faster, ours=found["ours"], theirs=found["theirs"]))
    finish(rows, options.json, f"{side} px, {options.threads} threads, {options.rounds} rounds")


if __name__ == "__main__":
    main()
