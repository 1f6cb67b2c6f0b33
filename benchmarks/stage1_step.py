"""A step of stage 1, ours against the way LAVIS goes, and a step of stage 2 with and without cached features.

    python benchmarks/stage1_step.py [--batch 8] [--rounds 3] [--threads 2] [--small]

Stage 1: the Q-Former of the official models (12 layers of 768, 32 queries) with random weights, over random features of
257 patches of 1408 channels, captions of 8 to 20 tokens; forward and backward. LAVIS' way, written here from what its
`Blip2Qformer.forward` does: texts are filled up to 32 tokens, hard negatives are drawn image by image and text by text,
their features stacked and joined to three batches, whose keys and values are projected anew. Both compute the same
losses of the same texts but for which negatives they draw. Stage 2: the encoder that is frozen in front of a small
language model, run at every step or once. Seconds are those of the wall, the ways take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from results import Row, add_json_option, finish
from torch import Tensor

from openblip.nn.blip2 import Blip2Config, Blip2Network, itc_similarity
from openblip.nn.decoder import DecoderConfig
from openblip.nn.qformer import QFormerConfig
from openblip.nn.vit import EVA_VIT_G, VitConfig
from openblip.training.objectives import IGNORED, Pairing, TextBatch, answer_loss, next_token_loss, stage1_loss

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


def take_turns(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
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


def stage1(batch: int, rounds: int, config: QFormerConfig) -> list[Row]:
    vision = VitConfig(image_size=28, patch_size=14, width=1408, depth=1, num_heads=16, mlp_width=16)
    network = Blip2Network(Blip2Config(vision, config)).train()
    features, text = torch.randn(batch, 257, 1408), texts(batch, config.vocab_size)

    def learn(step: Callable[[Blip2Network, Tensor, TextBatch], Tensor]) -> None:
        network.zero_grad()
        step(network, features, text).backward()  # type: ignore[no-untyped-call]

    found = take_turns({"LAVIS' way": lambda: learn(lavis_step), "ours": lambda: learn(our_step)}, rounds)
    print(f"\nStage 1, {batch} pairs a step, forward and backward\n")
    return rows("stage 1", found, "LAVIS' way", 1.5)


def stage2(batch: int, rounds: int, config: QFormerConfig, vision: VitConfig) -> list[Row]:
    decoder = DecoderConfig(vocab_size=5000, width=512, depth=6, num_heads=8, ffn_width=2048, max_positions=128)
    network = Blip2Network(Blip2Config(vision, replace(config, vocab_size=0), decoder))
    network.train().requires_grad_(True)
    for frozen in (network.vision, network.decoder):
        frozen.eval().requires_grad_(False)
    pixels = torch.randn(batch, 3, vision.image_size, vision.image_size)
    with torch.no_grad():
        cached = network.vision(pixels)
    text = texts(batch, 5000)
    labels = text.ids.masked_fill(~text.mask, IGNORED)
    prompt = TextBatch(torch.full((batch, 1), 2), torch.ones(batch, 1, dtype=torch.bool))

    def learn(look: Callable[[], Tensor]) -> None:
        network.zero_grad()
        with torch.no_grad():
            patches = look()
        visual = network.visual_prompt(network.normalise(patches))
        answer_loss(network.decoder, visual, prompt, labels).backward()  # type: ignore[no-untyped-call]

    found = take_turns(
        {
            "encoder at every step": lambda: learn(lambda: network.vision(pixels)),
            "cached": lambda: learn(lambda: cached),
        },
        rounds,
    )
    print(f"\nStage 2, {batch} pictures of {vision.image_size} px a step\n")
    return rows("stage 2", found, "encoder at every step", 3.0)


def rows(stage: str, found: dict[str, float], peer: str, bar: float) -> list[Row]:
    (ours,) = found.keys() - {peer}
    for name, seconds in found.items():
        print(f"{name:24} {seconds:8.3f} s")
    print(f"{'ratio':24} {found[peer] / found[ours]:8.2f} x  (bar {bar} x)")
    return [Row(f"{stage} step, {ours}", found[peer] / found[ours], ours=found[ours], theirs=found[peer])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="a Q-Former of two layers and an encoder of two blocks")
    add_json_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config, vision = QFormerConfig(image_width=1408), EVA_VIT_G
    if options.small:
        config, vision = replace(config, depth=2), replace(vision, depth=2)
    found = stage1(options.batch, options.rounds, config)
    found += stage2(options.batch, options.rounds, config, vision)
    finish(found, options.json, f"batch {options.batch}, {options.threads} threads, {options.rounds} rounds")


if __name__ == "__main__":
    main()
