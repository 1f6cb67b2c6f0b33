"""int8 against float32 in layers of blip2-opt-2.7b, with this CPU's instructions and with fewer.

    python benchmarks/instruction_sets.py [--rounds 5] [--threads 1]

Each set of instructions has a process of its own, in which PyTorch, oneDNN, FBGEMM and MKL are told to use no others.
It builds some layers of the language model and of the image encoder with random weights, and the whole word table, in
float32 and again in int8. Both take turns, in CPU time, and medians are scaled to the whole model. A caption is an
image, a prompt of 33 tokens and 20 new ones, without the Q-Former; the first one packs weights of 8 bits where a CPU
needs that, later ones find them packed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from openblip.nn.memory import gather
from openblip.nn.opt import Opt, OptConfig
from openblip.nn.quant.int8 import Int8Linear
from openblip.nn.quant.swap import quantize, quantized_layers
from openblip.nn.vit import EVA_VIT_G, VisionTransformer

LAYERS, BLOCKS = 3, 3
OPT = OptConfig(vocab_size=50_272, width=2560, depth=32, num_heads=32, ffn_width=10_240)
PATCHES, PROMPT, NEW_TOKENS = 257, 33, 20
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
SETS = {
    "this CPU's": {},
    "AVX2": AVX2 | {"FBGEMM_ENABLE_INSTRUCTIONS": "AVX2"},
    "AVX2 in oneDNN alone, no vectors in PyTorch's own": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    },
}
WHAT = ("image", "prompt", "token", "scores")


def drawn(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        module = build()
    module = module.to_empty(device="cpu").eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.uniform_(-0.02, 0.02)
    return module


def caption(parts: nn.ModuleDict, taken: dict[str, list[float]]) -> None:
    """Add what each part of one caption takes, scaled to all layers."""
    vision, decoder = parts["vision"], parts["language"]
    assert isinstance(vision, VisionTransformer) and isinstance(decoder, Opt)

    def timed(name: str, share: float, work: Callable[[], object]) -> None:
        start = time.process_time()
        work()
        taken[name].append((time.process_time() - start) * share)

    x = torch.randn(1, PATCHES, EVA_VIT_G.width)
    timed("image", EVA_VIT_G.depth / BLOCKS, lambda: [block(x) for block in vision.blocks])
    cache = decoder.new_cache(1, PROMPT + NEW_TOKENS)
    deeper = OPT.depth / LAYERS
    timed("prompt", deeper, lambda: decoder(torch.randn(1, PROMPT, OPT.width), None, cache))
    embeds = torch.randn(1, 1, OPT.width)
    for _ in range(NEW_TOKENS):
        timed("token", deeper, lambda: decoder.decode_step(embeds, cache))
        timed("scores", 1, lambda: decoder.logits(embeds))


@torch.inference_mode()
def measure(rounds: int) -> dict[str, dict[str, float]]:
    torch.manual_seed(0)
    kinds = {}
    first: dict[str, dict[str, list[float]]] = {}
    for kind in ("float32", "int8"):
        parts = nn.ModuleDict(
            {
                "language": drawn(replace(OPT, depth=LAYERS).build),
                "vision": drawn(replace(EVA_VIT_G, depth=BLOCKS).build),
            }
        )
        if kind == "int8":
            quantize(parts, 8)
        kinds[kind] = parts
        first[kind] = defaultdict(list)
        caption(parts, first[kind])
    # As they are after some captions.
    for layer in quantized_layers(kinds["int8"]).values():
        if isinstance(layer, Int8Linear):
            layer.pack()
    gather()
    taken: dict[str, dict[str, list[float]]] = {kind: defaultdict(list) for kind in kinds}
    for _ in range(rounds):
        for kind, parts in kinds.items():
            caption(parts, taken[kind])
    found = {kind: {name: statistics.median(taken[kind][name]) for name in WHAT} for kind in kinds}
    for kind, times in found.items():
        times["first caption"] = sum(sum(first[kind][name]) for name in WHAT)
        times["caption"] = times["image"] + times["prompt"] + NEW_TOKENS * (times["token"] + times["scores"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        torch.set_num_threads(chosen.threads)
        print(json.dumps(measure(chosen.rounds)))
        return
    command = [sys.executable, __file__, "--child", f"--rounds={chosen.rounds}", f"--threads={chosen.threads}"]
    print(f"torch {torch.__version__}, {chosen.threads} threads, CPU seconds of blip2-opt-2.7b's sizes\n")
    print("| Instructions | What | float32 | int8 | Times as fast |\n|---|---|---|---|---|")
    for name, settings in SETS.items():
        ran = subprocess.run(command, env=os.environ | settings, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(ran.stdout)
        for what in found["int8"]:
            floats, codes = found["float32"][what], found["int8"][what]
            print(f"| {name} | {what} | {floats:.3f} | {codes:.3f} | {floats / codes:.2f} |")


if __name__ == "__main__":
    main()
