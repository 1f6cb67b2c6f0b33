"""Image embeddings of CLIP ViT-L/14: ours in int8 and float32 against open_clip, or transformers, in float32.

    python benchmarks/clip_embed.py [--size ViT-L-14] [--batch 16] [--rounds 5] [--threads 2] [--peer open_clip]

All have the same random weights and read the same batch; they take turns. Cosines compare what they give. Seconds are
those of the processor, of all threads, so that other programs on the machine count little. open_clip, which needs
torchvision, is the peer where it is installed. All blocks of an encoder are alike: with --depth a few of them give the
same ratios in less time.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from results import Row, add_json_option, finish
from torch import Tensor

from openblip.checkpoints.clip_models import OPENAI_NAMES, RESNET, clip_config
from openblip.checkpoints.names.clip import TRANSFORMERS, openai_layout
from openblip.nn.clip import ClipNetwork
from openblip.nn.quant.swap import prepare_layers, quantize
from openblip.nn.vit import VitConfig

LARGEST_GAP = 0.02
"""Of 1 - cosine between float32 and int8; between two of float32 a thousandth of it."""
WARM = 2
"""Rounds that do not count: int8 weights are packed in them."""
Embed = Callable[[Tensor], Tensor]


def open_clip_model(network: ClipNetwork, size: str) -> Embed:
    open_clip: Any = importlib.import_module("open_clip")
    sizes = open_clip.get_model_config(f"{size}-quickgelu")
    vision = network.config.vision
    assert isinstance(vision, VitConfig)
    sizes["vision_cfg"]["layers"] = vision.depth
    model = open_clip.CLIP(**sizes).eval()
    state = openai_layout(network.config).to_theirs(network.state_dict())
    model.load_state_dict({name: tensor.contiguous() for name, tensor in state.items()})
    embed: Embed = model.encode_image
    return embed


def transformers_model(network: ClipNetwork, size: str) -> Embed:
    transformers: Any = importlib.import_module("transformers")
    vision = network.config.vision
    assert isinstance(vision, VitConfig)
    config = transformers.CLIPVisionConfig(
        hidden_size=vision.width,
        intermediate_size=vision.mlp_width,
        num_hidden_layers=vision.depth,
        num_attention_heads=vision.num_heads,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        projection_dim=network.config.shared_width,
    )
    model = transformers.CLIPVisionModelWithProjection(config).eval()
    state = TRANSFORMERS.to_theirs(network.state_dict())
    model.load_state_dict({name: tensor for name, tensor in state.items() if name.startswith(("vision", "visual"))})
    return lambda pixels: model(pixel_values=pixels).image_embeds


PEERS = {"open_clip": open_clip_model, "transformers": transformers_model}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="ViT-L-14", choices=[size for size in OPENAI_NAMES if size not in RESNET])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    installed = [name for name in PEERS if importlib.util.find_spec(name) is not None]
    parser.add_argument("--peer", default=installed[0], choices=installed)
    parser.add_argument("--depth", type=int, help="blocks of the image encoder instead of all")
    add_json_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config = clip_config(options.size)
    if options.depth:
        config = replace(config, vision=replace(config.vision, depth=options.depth))
    network = ClipNetwork(config).eval().requires_grad_(False)
    side = config.vision.image_size
    pixels = torch.randn(options.batch, 3, side, side)
    small = copy.deepcopy(network)
    quantize(small, 8)
    prepare_layers(small)
    ways = {
        f"{options.peer} float32": PEERS[options.peer](network, options.size),
        "ours float32": network.embed_images,
        "ours int8": small.embed_images,
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    reference: Tensor | None = None
    with torch.inference_mode():
        for turn in range(options.rounds + WARM):
            for name, embed in ways.items():
                start = time.process_time()
                found = F.normalize(embed(pixels).float(), dim=-1)
                if turn >= WARM:
                    taken[name].append(time.process_time() - start)
                reference = found if reference is None else reference
                gap = float(1 - (found * reference).sum(dim=-1).min())
                if not gap < (LARGEST_GAP if name == "ours int8" else LARGEST_GAP / 1000):
                    raise SystemExit(f"{name} gives other embeddings: the least cosine is {1 - gap:.5f}")
                if turn == options.rounds + WARM - 1:
                    print(f"{name}: least cosine with {options.peer} {1 - gap:.6f}")
    print(f"\n{options.size}, batch {options.batch}, {options.threads} threads, torch {torch.__version__}\n")
    print("| what | ms an image, median | lowest to highest | times as fast |\n|---|---|---|---|")
    theirs = next(iter(taken.values()))
    rows = []
    for name, seconds in taken.items():
        low, middle, high = (
            1000 * one / options.batch for one in (min(seconds), statistics.median(seconds), max(seconds))
        )
        # rounds are compared one by one: what else the machine does changes slowly
        times = statistics.median(peer / own for peer, own in zip(theirs, seconds, strict=True))
        print(f"| {name} | {middle:.0f} | {low:.0f} to {high:.0f} | {times:.2f} |")
        rows.append(Row(name, times, ours=statistics.median(seconds), theirs=statistics.median(theirs)))
    finish(rows[1:], options.json, f"{options.size}, batch {options.batch}, {options.threads} threads")


if __name__ == "__main__":
    main()
