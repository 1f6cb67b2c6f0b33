"""A training step of BLIP retrieval, ours against the way LAVIS goes.

    python benchmarks/blip_retrieval_step.py [--batch 4] [--rounds 3] [--threads 2] [--image-size 384] [--small]

The network of `blip_retrieval` with random weights (ViT-B/16 at 384 px, BERT-base), float32, captions of 8 to 20
tokens, a queue of 57,600: forward, backward, and a step of AdamW, the same for both. LAVIS' way is written here
from what its `BlipRetrieval.forward` does over the same weights: texts are filled up to 35 tokens; the momentum copies
are complete, move tensor by tensor into new memory, and give all tokens; matching reads true pairs and wrong ones in
two passes, each of which projects its images anew; attention is written out, as it is there. Both ways compute the same
losses of the same negatives, which is checked first. The ways take turns; times are of the wall and of the processor.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from typing import cast

import torch
import torch.nn.functional as F
from results import Row, add_json_option, finish
from torch import Tensor, nn

from openblip.nn.bert import Attention, Bert, BertConfig
from openblip.nn.blip import BlipConfig, BlipNetwork
from openblip.nn.vit import Block, VisionTransformer, VitConfig
from openblip.training.loop.optim import make_optimizer
from openblip.training.losses import HardNegatives, Pairing, TextBatch
from openblip.training.momentum import Momentum
from openblip.training.momentum_losses import ImageBatch, retrieval_loss
from openblip.training.recipe_keys import OptimizerSection

FILLED = 35
"""Tokens that LAVIS fills every text up to."""
QUEUE, DECAY, SOFT = 57_600, 0.995, 0.4
BAR, SAME = 1.3, 1e-3
LAVIS, OURS = "LAVIS' way", "ours"


class Lavis:
    """The way LAVIS goes, over a network of ours."""

    def __init__(self, network: BlipNetwork, queue: int) -> None:
        self.network, self.slow = network, deepcopy(network).requires_grad_(False)
        width = network.config.shared_width or 0
        self.images, self.texts = (F.normalize(torch.randn(width, queue), dim=0) for _ in range(2))
        self.ids, self.place = torch.full((1, queue), -100), 0

    def loss(self, pixels: Tensor, text: TextBatch, image_ids: Tensor, negatives: HardNegatives) -> Tensor:
        network = self.network
        missing = FILLED - text.ids.shape[1]
        ids = F.pad(text.ids, (0, missing))
        mask = F.pad(text.mask, (0, missing), value=False)
        with torch.no_grad():
            network.temperature.clamp_(0.001, 0.5)
        image = encode_image(network.vision, pixels)
        image_feature = F.normalize(network.image_projection(image[:, 0]), dim=-1)
        text_feature = F.normalize(network.text_projection(encode_text(network.encoder, ids, mask)[:, 0]), dim=-1)
        with torch.no_grad():
            for copy, own in zip(self.slow.parameters(), network.parameters(), strict=True):
                copy.data = copy.data * DECAY + own.data * (1 - DECAY)
            slow_image = self.slow.image_projection(encode_image(self.slow.vision, pixels)[:, 0])
            slow_text = self.slow.text_projection(encode_text(self.slow.encoder, ids, mask)[:, 0])
            slow_image, slow_text = F.normalize(slow_image, dim=-1), F.normalize(slow_text, dim=-1)
            all_images = torch.cat([slow_image.T, self.images], dim=1)
            all_texts = torch.cat([slow_text.T, self.texts], dim=1)
            right = (image_ids[:, None] == torch.cat([image_ids[None], self.ids], dim=1)).float()
            right = right / right.sum(1, keepdim=True)
            image_targets = SOFT * F.softmax(slow_image @ all_texts / network.temperature, dim=1) + (1 - SOFT) * right
            text_targets = SOFT * F.softmax(slow_text @ all_images / network.temperature, dim=1) + (1 - SOFT) * right
        to_text = image_feature @ all_texts / network.temperature
        to_image = text_feature @ all_images / network.temperature
        itc = -(F.log_softmax(to_text, dim=1) * image_targets).sum(1).mean() / 2
        itc = itc - (F.log_softmax(to_image, dim=1) * text_targets).sum(1).mean() / 2
        end = self.place + len(ids)
        self.images[:, self.place : end], self.texts[:, self.place : end] = slow_image.T, slow_text.T
        self.ids[:, self.place : end] = image_ids
        self.place = end % self.images.shape[1]
        ids = network.begin_with_encode(ids)
        true = encode_text(network.encoder, ids, mask, image)
        wrong_images = torch.stack([image[row] for row in negatives.images])
        wrong_ids = torch.stack([ids[row] for row in negatives.texts])
        wrong_masks = torch.stack([mask[row] for row in negatives.texts])
        wrong = encode_text(
            network.encoder,
            torch.cat([ids, wrong_ids]),
            torch.cat([mask, wrong_masks]),
            torch.cat([wrong_images, image]),
        )
        logits: Tensor = network.itm_head(torch.cat([true[:, 0], wrong[:, 0]]))
        labels = torch.cat([torch.ones(len(ids), dtype=torch.long), torch.zeros(2 * len(ids), dtype=torch.long)])
        loss: Tensor = itc + F.cross_entropy(logits, labels)
        return loss


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention, written out: [B, heads, T, width of a head] to [B, T, width]."""
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    weights = (scores if mask is None else scores + mask).softmax(dim=-1)
    mixed: Tensor = (weights @ value).transpose(1, 2).flatten(2)
    return mixed


def encode_image(vision: VisionTransformer, pixels: Tensor) -> Tensor:
    x = vision.embed(pixels)
    for block in cast("list[Block]", list(vision.blocks)):
        batch, count, _ = x.shape
        qkv = block.attention.qkv(block.norm1(x)).reshape(batch, count, 3, block.attention.num_heads, -1)
        x = x + block.attention.out(attend(*qkv.permute(2, 0, 3, 1, 4).unbind(0)))
        x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
    norm = vision.final_norm
    assert norm is not None
    found: Tensor = norm(x)
    return found


def encode_text(encoder: Bert, ids: Tensor, mask: Tensor, image: Tensor | None = None) -> Tensor:
    x = encoder.norm(encoder.words(ids) + encoder.positions(torch.arange(ids.shape[1])))
    hidden = (1 - mask[:, None, None].float()) * -10_000.0
    for layer in encoder.blocks():
        x = read(layer.self_attention, x, x, hidden)
        if image is not None:
            assert isinstance(layer.cross_attention, Attention)
            x = read(layer.cross_attention, x, image, None)
        x = layer.ffn.norm(x + layer.ffn.fc2(F.gelu(layer.ffn.fc1(x))))
    states: Tensor = x
    return states


def read(attention: Attention, x: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
    split = attention.split
    query, key, value = split(attention.query(x)), split(attention.key(source)), split(attention.value(source))
    normed: Tensor = attention.norm(x + attention.out(attend(query, key, value, mask)))
    return normed


def build(image_size: int, small: bool) -> BlipNetwork:
    """Weights of a size that products neither vanish nor overflow with; without dropout, so that losses are equal."""
    vision = VitConfig(image_size, 16, 768, 2 if small else 12, 12, 3072, final_norm=True)
    text = BertConfig(depth=2 if small else 12, image_width=768, dropout=0.0)
    network = BlipNetwork(BlipConfig(vision, text, shared_width=256, itm=True)).train()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.normal_(std=0.02)
    return network


def texts(count: int) -> TextBatch:
    lengths = torch.randint(8, 20, (count,))
    ids = torch.randint(1000, 30_000, (count, int(lengths.max())))
    return TextBatch(ids, torch.arange(ids.shape[1])[None] < lengths[:, None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--image-size", type=int, default=384)
    parser.add_argument("--small", action="store_true", help="two blocks and two layers")
    add_json_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    count, queue = options.batch, QUEUE // options.batch * options.batch
    network = build(options.image_size, options.small)
    lavis, momentum = Lavis(network, queue), Momentum(network, queue, DECAY)
    momentum.images.copy_(lavis.images.T)
    momentum.texts.copy_(lavis.texts.T)
    optimizer = make_optimizer(dict(network.named_parameters()), OptimizerSection(lr=1e-6))
    pixels, text, ids = torch.randn(count, 3, options.image_size, options.image_size), texts(count), torch.arange(count)
    negatives = HardNegatives(ids.roll(1), ids.roll(-1))

    def ours() -> Tensor:
        images = ImageBatch(network.image_features(pixels), pixels)
        found = retrieval_loss(network, momentum, images, text, SOFT, Pairing(ids, negatives))
        return found.itc + found.itm

    ways: dict[str, Callable[[], Tensor]] = {LAVIS: lambda: lavis.loss(pixels, text, ids, negatives), OURS: ours}
    with torch.no_grad():
        losses = [float(way()) for way in ways.values()]
    gap = abs(losses[0] - losses[1])
    print(f"loss {losses[0]:.6f} and {losses[1]:.6f}")
    if gap > SAME:
        raise SystemExit(f"the losses differ by {gap:.2g}")
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds + 1):
        for name, way in ways.items():
            start, used = time.perf_counter(), time.process_time()
            optimizer.zero_grad(set_to_none=True)
            way().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if number:  # the first round does not count
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - used)
    print("\n| way | s | s of the processor |\n|---|---|---|")
    middle = {name: (statistics.median(wall[name]), statistics.median(cpu[name])) for name in ways}
    for name, (seconds, used) in middle.items():
        print(f"| {name} | {seconds:.2f} | {used:.2f} |")
    rows = []
    for place, what in enumerate(("wall", "processor")):
        theirs, own = middle[LAVIS][place], middle[OURS][place]
        print(f"{what}: {theirs / own:.2f} x (bar {BAR} x)")
        rows.append(Row(f"BLIP retrieval step, {what}", theirs / own, ours=own, theirs=theirs))
    finish(rows, options.json, f"batch {count}, {options.image_size} px, {options.threads} threads")


if __name__ == "__main__":
    main()
