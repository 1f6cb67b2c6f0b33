"""BLIP's losses on pairs against a plain formula; test_momentum_recorded.py has LAVIS' values."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.nn.blip import BlipNetwork
from openblip.training.losses import HardNegatives, Pairing, TextBatch, draw_negatives, same_image
from openblip.training.momentum import Momentum
from openblip.training.momentum_losses import PretrainLoss, pretrain_loss, retrieval_loss, soft_share
from openblip.training.parallel.processes import World
from tests.pairs.gaps import difference
from tests.training.momentum_pairs import DECAY, IDS, QUEUE, SOFT, batch, images_of, made
from tests.training.parallel.test_processes import alone_and_together

NEGATIVES = HardNegatives(torch.tensor([2, 3, 3, 0]), torch.tensor([3, 2, 0, 1]))


def plain(
    task: str, network: BlipNetwork, momentum: Momentum, pixels: Tensor, text: TextBatch
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The losses, each pair and each text by itself, and the queues that follow."""
    slow = deepcopy(network)
    for name, weight in momentum.weights.items():
        slow.get_parameter(name).data.copy_(DECAY * weight + (1 - DECAY) * network.get_parameter(name).detach())

    def embed(net: BlipNetwork) -> tuple[Tensor, Tensor]:
        rows = [ids[mask][None] for ids, mask in zip(text.ids, text.mask, strict=True)]
        words = torch.cat([net.encoder(row)[:, 0] for row in rows])
        return net.project_images(net.image_features(pixels)[:, 0]), net.project_texts(words)

    own = embed(network)
    with torch.no_grad():
        copied = embed(slow)
    itc = torch.zeros(())
    queues = {"images": momentum.images.clone(), "texts": momentum.texts.clone(), "ids": momentum.ids.clone()}
    for side, other in ((0, "texts"), (1, "images")):
        for row in range(4):
            total = 0.0
            candidates = torch.cat([copied[1 - side], queues[other]])
            ids = torch.cat([IDS, queues["ids"]])
            right = (ids == IDS[row]).float() if task == "match" else (torch.arange(len(ids)) == row).float()
            soft = (copied[side][row] @ candidates.T / network.temperature.detach()).softmax(0)
            target = SOFT * soft + (1 - SOFT) * right / right.sum()
            scores = (own[side][row] @ candidates.T / network.temperature).log_softmax(0)
            total = -(target * scores).sum()
            itc = itc + total / 8
    for number, place in enumerate([4, 5, 0, 1]):
        queues["images"][place], queues["texts"][place] = copied[0][number], copied[1][number]
        if task == "match":
            queues["ids"][place] = IDS[number]
    features = network.image_features(pixels)
    pairs = [(row, row, 1) for row in range(4)]
    pairs += [(int(NEGATIVES.images[row]), row, 0) for row in range(4)]
    pairs += [(row, int(NEGATIVES.texts[row]), 0) for row in range(4)]
    itm, lm, tokens = torch.zeros(()), torch.zeros(()), 0
    for image, row, label in pairs:
        ids = text.ids[row][text.mask[row]][None]
        states = network.read_together(ids, None, features[image : image + 1])
        itm = itm + F.cross_entropy(network.itm_head(states[:, 0]), torch.tensor([label])) / 12
    losses = {"itc": itc, "itm": itm}
    if task == "pretrain":
        for row in range(4):
            ids = text.ids[row][text.mask[row]].clone()
            ids[0] = network.config.decode_id
            memory = network.decoder.remember(features[row : row + 1])
            hidden = network.decoder.decode(network.decoder.embed(ids[None]), None, memory)
            logits = network.decoder.logits(hidden)[0, :-1]
            lm = lm + F.cross_entropy(logits, ids[1:], reduction="sum", label_smoothing=0.1)
            tokens += len(ids) - 1
        losses["lm"] = lm / tokens
    return losses, queues


@pytest.mark.parametrize("task", ["match", "pretrain"])
def test_losses_are_those_of_the_plain_formula(task: str) -> None:
    network, momentum = made(task)
    other = deepcopy(network)
    pixels, text = batch()
    expected, queues = plain(task, other, momentum, pixels, text)
    step = retrieval_loss if task == "match" else pretrain_loss
    before = {name: weight.clone() for name, weight in momentum.weights.items()}
    found = step(
        network, momentum, images_of(network, pixels), text, SOFT, Pairing(IDS if task == "match" else None, NEGATIVES)
    )
    losses = {"itc": found.itc, "itm": found.itm}
    if isinstance(found, PretrainLoss):
        losses["lm"] = found.lm
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        assert difference(loss, expected[name]) <= 2e-5
    for name, queue in queues.items():
        assert difference(momentum.state()[name], queue) <= 1e-5
    assert momentum.place.tolist() == [2]
    for name, weight in momentum.weights.items():
        moved = DECAY * before[name] + (1 - DECAY) * network.get_parameter(name).detach()
        assert difference(weight, moved) <= 1e-6 and not weight.requires_grad
    for each in (losses, expected):
        torch.stack([*each.values()]).sum().backward()  # type: ignore[no-untyped-call]
    for name, weight in network.named_parameters():
        theirs = other.get_parameter(name).grad
        assert weight.grad is not None and theirs is not None, name
        assert difference(weight.grad, theirs) <= 2e-4 * max(1.0, float(theirs.abs().max())), name


def test_a_queue_may_be_empty_and_a_share_of_soft_targets_grows() -> None:
    network, _ = made("match")
    momentum = Momentum(network, 0, DECAY)
    pixels, text = batch()
    first, second = (
        retrieval_loss(network, momentum, images_of(network, pixels), text, 0.0, Pairing(IDS, NEGATIVES)).itc
        for _ in range(2)
    )
    assert difference(first, second) <= 1e-5  # copies that are equal do not move
    assert [soft_share(0.4, epochs) for epochs in (0, 0.5, 2, 7)] == pytest.approx([0.0, 0.1, 0.4, 0.4])
    network.temperature.data.fill_(7.0)
    retrieval_loss(network, momentum, images_of(network, pixels), text, 0.0, Pairing(IDS, NEGATIVES))
    assert network.temperature.item() == 0.5


def test_pretraining_reaches_every_stranger() -> None:
    """However unlike it is: the floor alone is its chance."""
    scores = torch.full((3, 3), -200.0).fill_diagonal_(200.0)
    same, chance = same_image(None, scores), torch.Generator().manual_seed(0)
    drawn = [draw_negatives(scores, scores.T, same, chance, floor=1e-4) for _ in range(200)]
    for row in range(3):
        assert {int(one.images[row]) for one in drawn} == {0, 1, 2} - {row}


def test_copies_come_from_tensors_that_fit_or_not_at_all() -> None:
    network, momentum = made("match")
    state = {name: tensor.clone() for name, tensor in momentum.state().items()}
    fresh = Momentum(network, QUEUE, DECAY)
    assert fresh.load(state) and all(torch.equal(tensor, state[name]) for name, tensor in fresh.state().items())
    start = Momentum(network, QUEUE, DECAY).weights["vision.class_token"].clone()
    shorter = Momentum(network, QUEUE - 1, DECAY)
    assert not shorter.load(state) and torch.equal(shorter.weights["vision.class_token"], start)
    assert not fresh.load({name: tensor for name, tensor in state.items() if name != "encoder.norm.bias"})
    assert not any("cross_attention" in name for name in state)


LOSSES = """
import os
import sys
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from openblip.training.losses import Pairing, TextBatch
from openblip.training.momentum_losses import pretrain_loss, retrieval_loss
from openblip.training.parallel.processes import ALONE, World, leave
from tests.training.momentum_pairs import IDS, SOFT, batch, images_of, made

torch.set_num_threads(1)
if "RANK" in os.environ:
    dist.init_process_group("gloo")
world, found = World.current(), {}
rows = world.rows(4)
for task, step in (("match", retrieval_loss), ("pretrain", pretrain_loss)):
    network, momentum = made(task)
    ids = IDS[rows] if task == "match" else None
    for number in range(2):
        pixels, text = batch(number)
        longest = int(text.mask[rows].sum(1).max())  # each process cuts its texts at its own longest
        own = TextBatch(text.ids[rows, :longest], text.mask[rows, :longest])
        pairing = Pairing(ids, None, torch.Generator().manual_seed(number), world=world)
        loss = step(network, momentum, images_of(network, pixels[rows]), own, SOFT, pairing)
        total = sum(value for name, value in vars(loss).items())
        network.zero_grad()
        total.backward()
        for name, value in vars(loss).items():
            found[f"{task} {number} {name}"] = (world.total(value) / world.size).reshape(1)
    for name, parameter in network.named_parameters():
        found[f"{task} grad {name}"] = world.total(parameter.grad) / world.size  # what DDP does
    found |= {f"{task} {name}": tensor.clone().float() for name, tensor in momentum.state().items()}
if world.size > 1:
    # Negatives of one's own rows alone are possible, too.
    images = images_of(network, pixels[rows])
    loss = retrieval_loss(network, momentum, images, own, SOFT, Pairing(IDS[rows], world=world), ALONE)
    assert loss.itm.isfinite()
if world.rank == 0:
    save_file(found, sys.argv[1])
leave()
sys.stdout.flush()
os._exit(0)  # gloo's threads may outlive their group, and a process that ends in the usual way then crashes
"""


def test_two_processes_compute_what_one_computes(tmp_path: Path) -> None:
    out = tmp_path / "losses.safetensors"
    one, two = alone_and_together(["-c", LOSSES, str(out)], out)
    assert one.keys() == two.keys() and World().size == 1
    for name, value in one.items():
        size = max(1.0, float(value.abs().max()))
        assert difference(two[name], value) <= (1e-4 if "grad" in name else 1e-5) * size, name
