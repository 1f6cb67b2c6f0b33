"""A small BLIP with momentum copies and queues, and batches for it."""

from __future__ import annotations

import torch
from torch import Tensor

from openblip.nn.blip import BlipNetwork
from openblip.training.losses import TextBatch
from openblip.training.momentum import NO_IMAGE, Momentum
from openblip.training.momentum_losses import ImageBatch
from tests.models.blip_models import ENCODE, small_config
from tests.pairs.shake import shake

QUEUE, DECAY, SOFT = 6, 0.9, 0.3
IDS = torch.tensor([4, 4, 7, 9])


def made(task: str) -> tuple[BlipNetwork, Momentum]:
    """A network, copies that differ from it, and queues of which one image is in the batch, too."""
    torch.manual_seed(5)
    network = BlipNetwork(small_config(task)).eval()
    shake(network)
    network.temperature.data.fill_(0.2)
    momentum = Momentum(network, QUEUE, DECAY, generator=torch.Generator().manual_seed(1))
    for weight in momentum.weights.values():
        weight.add_(0.05 * torch.randn_like(weight))
    momentum.ids.copy_(torch.tensor([9, NO_IMAGE, 4, 1, 2, NO_IMAGE]))
    momentum.place.fill_(4)
    return network, momentum


def images_of(network: BlipNetwork, pixels: Tensor) -> ImageBatch:
    return ImageBatch(network.image_features(pixels), pixels)


def batch(seed: int = 0) -> tuple[Tensor, TextBatch]:
    chance = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, ENCODE - 2, (4, 9), generator=chance)
    ids[:, 0] = 2
    mask = torch.arange(9) < torch.tensor([9, 4, 6, 7])[:, None]
    return torch.randn(4, 3, 32, 32, generator=chance), TextBatch(ids.masked_fill(~mask, 0), mask)
