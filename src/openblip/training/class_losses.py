"""The loss of a head that puts texts into classes, each read with an image or two (NLVR2, SNLI-VE)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from openblip.nn.blip import BlipNetwork
from openblip.training.losses import TextBatch
from openblip.training.momentum import Copies
from openblip.training.parallel.processes import ALONE, World

RAMP_EPOCHS = 1
"""Epochs in which the weight of the soft targets grows to its full size; for pairs it takes two."""
COPIED = ("vision.", "encoder.", "class_head.")


def class_loss(
    logits: Tensor, labels: Tensor, soft_logits: Tensor | None = None, soft: float = 0.0, world: World = ALONE
) -> Tensor:
    """Cross entropy with the right classes and, by a share, with what momentum copies say.

    Args:
        logits: [B, classes]; labels: [B].
        soft_logits: the copies' [B, classes], nothing is learnt by them; None for right classes alone.
        soft: their share, see `momentum_losses.soft_share`.
    """
    loss = F.cross_entropy(logits.float(), labels, reduction="sum")
    if soft_logits is not None:
        targets = soft_logits.detach().float().softmax(dim=1)
        loss = (1 - soft) * loss + soft * F.cross_entropy(logits.float(), targets, reduction="sum")
    return world.mean(loss, len(labels))


def class_copies(
    network: BlipNetwork,
    decay: float,
    device: torch.device | None = None,
    vision: bool = True,
    adapters: bool = False,
) -> Copies:
    """Momentum copies of all that `class_logits` needs.

    Args:
        decay, device: see `Copies`.
        vision: whether the image encoder learns; a frozen one needs no copy.
        adapters: whether nothing but adapters learns, which alone are copied then.
    """
    copied = COPIED if vision else COPIED[1:]
    weights = {
        name: weight
        for name, weight in network.named_parameters()
        if name.startswith(copied) and (weight.requires_grad or not adapters)
    }
    return Copies(weights, decay, device)


@torch.no_grad()
def copied_class_logits(copies: Copies, network: BlipNetwork, pixels: Tensor, text: TextBatch) -> Tensor:
    """Logits [B, classes] of texts with one image each, by the copies."""
    weights = {f"network.{name}": weight for name, weight in copies.weights.items()}
    logits: Tensor = functional_call(_Classifier(network), weights, (pixels, text.ids, text.mask))
    return logits


class _Classifier(nn.Module):
    """What the copies compute, as `functional_call` runs it."""

    def __init__(self, network: BlipNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        return self.network.class_logits(ids, mask, self.network.image_features(pixels))
