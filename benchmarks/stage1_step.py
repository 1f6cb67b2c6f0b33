"""A step of stage 1, ours against the way LAVIS goes, and a step of stage 2 with and without cached features.

    python benchmarks/stage1_step.py [--batch 8] [--rounds 3] [--threads 2] [--small] [--only WAY]

Stage 1: the Q-Former of the official models (12 layers of 768, 32 queries) with random weights, over random features of
257 patches of 1408 channels, captions of 8 to 20 tokens; forward and backward. LAVIS' way, written here from what its
`Blip2Qformer.forward` does: texts are filled up to 32 tokens, hard negatives are drawn image by image and text by text,
their features stacked and joined to three batches, whose keys and values are projected anew. Both compute the same
losses of the same texts but for which negatives they draw. Stage 2: the encoder that is frozen in front of a small
language model, run at every step or once. Seconds are those of the wall, the ways take turns.

Memory is the peak of the resident memory of a process that does nothing but build what one way needs and take two
steps: what the system has to provide, Python and PyTorch included; beside it, how much the steps added to what was
built. No optimizer is in it: AdamW's moments are two more numbers for each that learns, whichever way it is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from results import Row, add_json_option, finish
from torch import Tensor, nn

from openblip.nn.blip2 import Blip2Config, Blip2Network, itc_similarity
from openblip.nn.opt import OptConfig
from openblip.nn.qformer import QFormerConfig
from openblip.nn.vit import EVA_VIT_G, VitConfig
from openblip.training.feature_cache.encoder_stub import drop_encoder
from openblip.training.losses import IGNORED, Pairing, TextBatch, answer_loss, next_token_loss, stage1_loss
from openblip.training.monitor.profile import peak_memory, resident_memory

FILLED = 32
"""Tokens that LAVIS fills every text up to."""
DEC = 30522


def lavis_step(network: Blip2Network, features: Tensor, text: TextBatch) -> Tensor:
    """The loss, the way LAVIS goes."""
    missing = FILLED - text.ids.shape[1]
    text = TextBatch(F.pad(text.ids, (0, missing)), F.pad(text.mask, (0, missing), value=False))
    count = len(features)
    seen = network.qformer.read_image(features)
    images = network.project_queries(seen.output)
    words = network.project_text(network.qformer.text(text.ids, text.mask))
    to_text = itc_similarity(images, words.detach()) / network.temperature
    to_image = itc_similarity(images.detach(), words).T / network.temperature
    targets = torch.arange(count)
    itc = F.cross_entropy(to_text, targets, label_smoothing=0.1) + F.cross_entropy(
        to_image, targets, label_smoothing=0.1
    )
    with torch.no_grad():
        text_weights = F.softmax(to_text, dim=1).fill_diagonal_(0) + 1e-9
        image_weights = F.softmax(to_image, dim=1).fill_diagonal_(0) + 1e-9
    wrong_images = torch.stack([features[int(torch.multinomial(row, 1))] for row in image_weights])
    drawn = [int(torch.multinomial(row, 1)) for row in text_weights]
    wrong_ids = torch.stack([text.ids[index] for index in drawn])
    wrong_masks = torch.stack([text.mask[index] for index in drawn])
    logits = network.itm_logits(
        torch.cat([text.ids, text.ids, wrong_ids]),
        torch.cat([text.mask, text.mask, wrong_masks]),
        torch.cat([features, wrong_images, features]),
    )
    labels = torch.cat([torch.ones(count, dtype=torch.long), torch.zeros(2 * count, dtype=torch.long)])
    itm = F.cross_entropy(logits, labels)
    start = text.ids.clone()
    start[:, 0] = DEC
    hidden = network.qformer.causal_text(start, text.mask, seen)
    itg = next_token_loss(network.qformer.text_logits(hidden), start.masked_fill(~text.mask, IGNORED), 0.1)
    return itc / 2 + itm + itg


def our_step(network: Blip2Network, features: Tensor, text: TextBatch) -> Tensor:
    return stage1_loss(network, features, text, DEC, Pairing()).total


def take_turns(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def texts(count: int, words: int) -> TextBatch:
    lengths = torch.randint(8, 20, (count,))
    ids = torch.randint(1000, words - 1, (count, int(lengths.max())))
    return TextBatch(ids, torch.arange(ids.shape[1])[None] < lengths[:, None])


@dataclass(frozen=True)
class Sizes:
    """Of what takes a step."""

    batch: int
    qformer: QFormerConfig
    vision: VitConfig


def stage1(sizes: Sizes, way: str | None = None) -> dict[str, Callable[[], None]]:
    """Both ways over one network: neither needs anything that the other does not."""
    vision = VitConfig(image_size=28, patch_size=14, width=1408, depth=1, num_heads=16, mlp_width=16)
    network = Blip2Network(Blip2Config(vision, sizes.qformer)).train()
    features, text = torch.randn(sizes.batch, 257, 1408), texts(sizes.batch, sizes.qformer.vocab_size)

    def learn(step: Callable[[Blip2Network, Tensor, TextBatch], Tensor]) -> None:
        network.zero_grad()
        step(network, features, text).backward()  # type: ignore[no-untyped-call]

    return {LAVIS: lambda: learn(lavis_step), OURS: lambda: learn(our_step)}


def stage2(sizes: Sizes, way: str | None = None) -> dict[str, Callable[[], None]]:
    """Both ways, or one of them with nothing that only the other needs."""
    decoder = OptConfig(vocab_size=5000, width=512, depth=6, num_heads=8, ffn_width=2048, max_positions=128)
    with torch.device("meta"):
        network = Blip2Network(Blip2Config(sizes.vision, replace(sizes.qformer, vocab_size=0), decoder))
    if way == CACHED:
        drop_encoder(network)
    network.to_empty(device="cpu").apply(draw)
    network.train().requires_grad_(True)
    for frozen in (network.vision, network.own_language_model):
        frozen.eval().requires_grad_(False)
    side = sizes.vision.image_size
    pixels = torch.randn(sizes.batch, 3, side, side)
    cached = torch.randn(sizes.batch, sizes.vision.grid**2 + 1, sizes.vision.width)
    text = texts(sizes.batch, 5000)
    labels = text.ids.masked_fill(~text.mask, IGNORED)
    prompt = TextBatch(torch.full((sizes.batch, 1), 2), torch.ones(sizes.batch, 1, dtype=torch.bool))

    def learn(look: Callable[[], Tensor]) -> None:
        network.zero_grad()
        with torch.no_grad():
            patches = look()
        visual = network.visual_prompt(network.normalize(patches))
        answer_loss(network.own_language_model, visual, prompt, labels).backward()  # type: ignore[no-untyped-call]

    return {ENCODER: lambda: learn(lambda: network.vision(pixels)), CACHED: lambda: learn(lambda: cached)}


@torch.no_grad()
def draw(module: nn.Module) -> None:
    """Numbers of a size that products neither vanish nor overflow with; norms are those of a new model."""
    for parameter in module.parameters(recurse=False):
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        else:
            parameter.normal_(std=0.02)


@dataclass(frozen=True)
class Stage:
    """Two ways of a step: the one that is compared with, and ours, with how many times as fast it is to be."""

    name: str
    theirs: str
    ours: str
    bar: float
    build: Callable[[Sizes, str | None], dict[str, Callable[[], None]]]


LAVIS, OURS, ENCODER, CACHED = "LAVIS' way", "ours", "encoder at every step", "cached"
STAGES = (Stage("stage 1", LAVIS, OURS, 1.5, stage1), Stage("stage 2", ENCODER, CACHED, 3.0, stage2))


@dataclass(frozen=True)
class Memory:
    """Of a process, in bytes: when all is built, and at most."""

    built: int
    peak: int


def memory_of(stage: Stage, way: str, sizes: Sizes) -> Memory:
    """In this process, which must have done nothing before."""
    step = stage.build(sizes, way)[way]
    built = resident_memory()
    for _ in range(2):
        step()
    return Memory(built, peak_memory(torch.device("cpu")))


def memory_apart(way: str, arguments: list[str]) -> Memory:
    """In a process of its own."""
    command = [sys.executable, __file__, *arguments, "--only", way]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Memory(**json.loads(said.splitlines()[-1]))


def measure(stage: Stage, sizes: Sizes, rounds: int, arguments: list[str]) -> list[Row]:
    memory = {way: memory_apart(way, arguments) for way in (stage.theirs, stage.ours)}
    seconds = take_turns(stage.build(sizes, None), rounds)
    print(f"\n{stage.name}, a batch of {sizes.batch}, images of {sizes.vision.image_size} px, forward and backward\n")
    print(f"| {'way':24} | s | peak memory, GB | of it in steps, GB |\n|---|---|---|---|")
    for way, found in memory.items():
        added = (found.peak - found.built) / 1e9
        print(f"| {way:24} | {seconds[way]:.3f} | {found.peak / 1e9:.2f} | {added:.2f} |")
    faster = seconds[stage.theirs] / seconds[stage.ours]
    ours, theirs = memory[stage.ours].peak / 1e9, memory[stage.theirs].peak / 1e9
    print(f"\nratio {faster:.2f} x (bar {stage.bar} x), memory {ours / theirs:.2f} x", flush=True)
    name = f"{stage.name} step, {stage.ours}"
    return [
        Row(name, faster, ours=seconds[stage.ours], theirs=seconds[stage.theirs]),
        Row(f"{name}, peak memory", ours, "GB", ours=ours, theirs=theirs, less_is_better=True),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="a Q-Former of two layers and an encoder of two blocks")
    parser.add_argument("--only", choices=[LAVIS, OURS, ENCODER, CACHED], help="nothing but the memory of one way")
    add_json_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config, vision = QFormerConfig(image_width=1408), EVA_VIT_G
    if options.small:
        config, vision = replace(config, depth=2), replace(vision, depth=2)
    sizes = Sizes(options.batch, config, vision)
    if options.only is not None:
        (stage,) = (each for each in STAGES if options.only in (each.theirs, each.ours))
        print(json.dumps(asdict(memory_of(stage, options.only, sizes))))
        return
    arguments = ["--batch", str(options.batch), "--threads", str(options.threads)]
    arguments += ["--small"] if options.small else []
    found = [row for stage in STAGES for row in measure(stage, sizes, options.rounds, arguments)]
    finish(found, options.json, f"batch {options.batch}, {options.threads} threads, {options.rounds} rounds")


if __name__ == "__main__":
    main()
