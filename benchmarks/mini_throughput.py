"""How many photos a second get a caption, from JPEG files to texts, and which stage takes how much of the time.

    python benchmarks/mini_throughput.py [--model mini] [--images 64] [--num-beams 1 5] [--batches 1 8 32] [--rounds 3]
                                         [--threads 2]

JPEGs of 640x480, all different, are drawn and written here, and captioned by `caption_many`, as `openblip caption
FOLDER` does. Settings take turns. The shares are of the caller's time: images are decoded beside it, and "pixels"
is what it waits for them or helps with. What decoding a photo takes by itself stands above the table.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mini_speed import synthetic_jpeg
from results import Row, add_json_option, finish

import openblip
import openblip.models.blip2
from openblip.images.decode import load_image
from openblip.images.prefetch import PixelBatch, count_threads, pixel_batches
from openblip.images.transform import to_pixels
from openblip.models.model import Model

STAGES = ("pixels", "vision", "Q-Former")


class Stages:
    """Seconds spent in each stage of a model while it is watched."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)

    def timed(self, stage: str, action: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            start = time.perf_counter()
            result = action(*given)
            self.seconds[stage] += time.perf_counter() - start
            return result

        return run

    def batches(self, *given: Any) -> Iterator[PixelBatch]:
        found = pixel_batches(*given)
        following = self.timed("pixels", lambda: next(found, None))
        while (batch := following()) is not None:
            yield batch


@contextmanager
def watched(model: Model) -> Iterator[Stages]:
    """What passes through the model's rooms is timed at their doors."""
    stages, network = Stages(), model.network
    doors: list[tuple[Any, str, Callable[..., Any]]] = [
        (network.vision, "forward", stages.timed("vision", network.vision.forward)),
        (network, "visual_prompt", stages.timed("Q-Former", network.visual_prompt)),
        (openblip.models.blip2, "pixel_batches", stages.batches),
    ]
    before = [vars(owner).get(name) for owner, name, _ in doors]
    for owner, name, action in doors:
        setattr(owner, name, action)
    try:
        yield stages
    finally:
        for (owner, name, _), was in zip(doors, before, strict=True):
            if was is None:
                delattr(owner, name)
            else:
                setattr(owner, name, was)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help="name or folder")
    parser.add_argument("--dtype", default="float32", help="float32 or int8")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--num-beams", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    add_json_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = openblip.load(options.model, device="cpu", dtype=options.dtype, image_cache=0)
    rows: dict[tuple[int, int], list[dict[str, float]]] = {
        (beams, size): [] for beams in options.num_beams for size in options.batches
    }
    decoding = []
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.jpg" for number in range(options.images)]
        for number, path in enumerate(paths):
            path.write_bytes(synthetic_jpeg(seed=number))
        for turn in range(options.rounds + 1):
            start = time.perf_counter()
            for path in paths:
                to_pixels([load_image(path)], model.parts.transform)
            decoding.append(time.perf_counter() - start)
            for (beams, size), found in rows.items():
                few = paths if turn else paths[:size]  # the first is a warm-up
                with watched(model) as stages:
                    start = time.perf_counter()
                    for captioned in model.caption_many(few, num_beams=beams, batch_size=size):
                        if captioned.error is not None:
                            raise captioned.error
                    total = time.perf_counter() - start
                if turn:
                    found.append({"total": total, "language model": total - sum(stages.seconds.values())})
                    found[-1] |= stages.seconds
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {options.threads} threads and {count_threads()} for images, torch {torch.__version__}")
    alone = 1000 * statistics.median(decoding) / len(paths)
    print(f"{options.images} JPEGs of 640x480, each decoded in {alone:.1f} ms in one thread, without the model")
    print("\n| beams | batch | photos a second | lowest to highest | pixels | vision | Q-Former | language model |")
    print("|---|---|---|---|---|---|---|---|")
    figures = []
    for (beams, size), found in rows.items():
        speeds = [options.images / one["total"] for one in found]
        middle = {name: statistics.median(one[name] for one in found) for name in found[0]}
        shares = " | ".join(f"{middle[name] / middle['total']:.0%}" for name in (*STAGES, "language model"))
        told = f"{statistics.median(speeds):.1f} | {min(speeds):.1f} to {max(speeds):.1f}"
        print(f"| {beams} | {size} | {told} | {shares} |")
        figures.append(
            Row(f"{options.dtype}, beam {beams}, batch {size}", statistics.median(speeds), "photos a second")
        )
    finish(figures, options.json, f"{options.model}, {options.threads} threads, {options.rounds} rounds")


if __name__ == "__main__":
    main()
