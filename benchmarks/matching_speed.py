"""What it saves to compute an image's cross-attention keys and values once for all texts it is matched with.

    python benchmarks/matching_speed.py [--images 2] [--texts 16] [--rounds 5] [--threads 1]

The Q-Former of the official models (12 layers of 768, 32 queries) with random weights reads random features of
257 patches of 1408 channels (ViT-g at 224 px). Three ways take turns; seconds are those of the processor.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from results import Row, add_json_option, finish
from torch import Tensor

from openblip.matching.matcher import PAIRS
from openblip.nn.blip2 import Blip2Config, Blip2Network
from openblip.nn.qformer import QFormerConfig
from openblip.nn.vit import VitConfig
from openblip.text import pad_ids


def build() -> Blip2Network:
    torch.manual_seed(0)
    vision = VitConfig(image_size=28, patch_size=14, width=1408, depth=1, num_heads=16, mlp_width=16)
    return Blip2Network(Blip2Config(vision, QFormerConfig(image_width=1408))).eval().requires_grad_(False)


def match(network: Blip2Network, features: Tensor, texts: list[list[int]], pairs: int, once: bool) -> Tensor:
    """ITM logits [I, M, 2], `pairs` at a time.

    Args:
        once: whether an image's keys and values serve all texts; otherwise its features are repeated for each, as in
            LAVIS and transformers.
    """
    rows = []
    for image in features[:, None]:
        memory = network.qformer.remember(image) if once else None
        for start in range(0, len(texts), pairs):
            ids, mask = pad_ids(texts[start : start + pairs], 0)
            rows.append(network.itm_logits(ids, mask, memory or image.expand(len(ids), -1, -1)))
    return torch.cat(rows).view(len(features), len(texts), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    add_json_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    network = build()
    features = torch.randn(options.images, 257, 1408)
    lengths = torch.randint(8, 20, (options.texts,)).tolist()
    texts = [torch.randint(1000, 30000, (length,)).tolist() for length in lengths]
    ways: dict[str, Callable[[], Tensor]] = {
        "pair by pair, keys and values for each": lambda: match(network, features, texts, 1, once=False),
        "in batches, keys and values for each": lambda: match(network, features, texts, PAIRS, once=False),
        "in batches, keys and values once an image": lambda: match(network, features, texts, PAIRS, once=True),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    first: Tensor | None = None
    with torch.inference_mode():
        for turn in range(options.rounds + 1):
            for name, way in ways.items():
                start = time.process_time()
                logits = way()
                if turn:  # the first is a warm-up
                    taken[name].append(time.process_time() - start)
                first = logits if first is None else first
                difference = (logits - first).abs().max().item()
                if not difference < 1e-4:
                    raise SystemExit(f"{name} gives other logits, by {difference:.1e}")
    pairs = options.images * options.texts
    print(f"{pairs} pairs, {options.threads} threads, torch {torch.__version__}\n")
    print("| what | ms a pair, median | lowest to highest | times as fast |\n|---|---|---|---|")
    slowest = statistics.median(next(iter(taken.values())))
    for name, seconds in taken.items():
        low, middle, high = (1000 * f / pairs for f in (min(seconds), statistics.median(seconds), max(seconds)))
        print(f"| {name} | {middle:.0f} | {low:.0f} to {high:.0f} | {slowest / statistics.median(seconds):.2f} |")
    rows = [
        Row(name, slowest / (one := statistics.median(all)), ours=one, theirs=slowest) for name, all in taken.items()
    ]
    finish(rows[1:], options.json, f"{pairs} pairs, {options.threads} threads, {options.rounds} rounds")


if __name__ == "__main__":
    main()
