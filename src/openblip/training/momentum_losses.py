"""BLIP's losses on pairs of images and texts, with momentum distillation (https://arxiv.org/abs/2201.12086, 3.2).

ITC compares a batch with the momentum copies' embeddings of it and of the queues; ITM reads each text with its image
and with a wrong one, and each image with a wrong text; in pre-training the decoder learns to write the text (LM).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.nn.bert import ImageMemory
from openblip.nn.blip import LABEL_SMOOTHING, BlipNetwork
from openblip.training.losses import (
    IGNORED,
    HardNegatives,
    Pairing,
    PairLoss,
    TextBatch,
    draw_negatives,
    same_image,
)
from openblip.training.momentum import Momentum
from openblip.training.parallel.processes import ALONE, World

RAMP_EPOCHS = 2
"""Epochs in which the weight of the soft targets grows to its full size."""
TEMPERATURES = (0.001, 0.5)
NEGATIVE_FLOOR = 1e-4
"""In pre-training, what is added to the softmax probability of each negative before one is sampled."""


@dataclass(frozen=True)
class ImageBatch:
    """The images of a batch.

    Attributes:
        features: [B, N, image width], by the network's image encoder, the class token's vector first.
        pixels: [B, 3, S, S], for the momentum copy of an encoder that learns; None: it is frozen.
    """

    features: Tensor
    pixels: Tensor | None = None


@dataclass(frozen=True)
class PretrainLoss:
    """The three losses, each a scalar."""

    itc: Tensor
    itm: Tensor
    lm: Tensor


@dataclass(frozen=True)
class Contrast:
    """ITC of one batch.

    Attributes:
        itc: the loss, a scalar.
        image_to_text, text_to_image: [b, N + Q] similarities, over the temperature, with the momentum copies'
            embeddings of all processes' N rows and of the queues.
    """

    itc: Tensor
    image_to_text: Tensor
    text_to_image: Tensor


def soft_share(alpha: float, epochs: float, ramp: float = RAMP_EPOCHS) -> float:
    """The share of soft targets after so many epochs: it grows linearly to `alpha`, in `ramp` epochs."""
    return alpha * min(1.0, epochs / ramp)


def retrieval_loss(
    network: BlipNetwork,
    momentum: Momentum,
    images: ImageBatch,
    text: TextBatch,
    soft: float,
    pairing: Pairing,
    among: World | None = None,
) -> PairLoss:
    """Contrast (ITC) and matching (ITM), where all texts of an image match it, those in the queue included.

    This updates the momentum copies and the queues.

    Args:
        text: one an image, beginning with [CLS].
        soft: the share of the momentum copies' soft targets, see `soft_share`.
        among: the processes that hard negatives come from; None: all of the pairing's.
    """
    world = pairing.world
    among = world if among is None else among
    clamp_temperature(network)
    features = images.features
    image_embeds, text_embeds = _embeds(network, features, text)
    contrast = momentum_contrast(
        network, momentum, images, text, (image_embeds, text_embeds), pairing.image_ids, soft, world
    )
    negatives = pairing.negatives
    if negatives is None:
        with torch.no_grad():
            scaled = [each / network.temperature for each in (image_embeds, text_embeds)]
            negatives = draw_negatives(
                scaled[0] @ among.gather(text_embeds).T,
                scaled[1] @ among.gather(image_embeds).T,
                same_image(pairing.image_ids, text.ids, among),
                pairing.generator,
                among,
            )
    memory = network.encoder.remember(features)
    return PairLoss(contrast.itc, matching_loss(network, features, memory, text, negatives, world, among))


def pretrain_loss(
    network: BlipNetwork,
    momentum: Momentum,
    images: ImageBatch,
    text: TextBatch,
    soft: float,
    pairing: Pairing,
    among: World | None = None,
) -> PretrainLoss:
    """Contrast (ITC), matching (ITM) and language modelling (LM), where a text matches its own image alone.

    Negatives are sampled by the similarities with the momentum copies' embeddings. For the arguments see
    `retrieval_loss`.
    """
    world = pairing.world
    among = world if among is None else among
    clamp_temperature(network)
    features = images.features
    embeds = _embeds(network, features, text)
    contrast = momentum_contrast(network, momentum, images, text, embeds, None, soft, world)
    negatives = pairing.negatives
    if negatives is None:
        count = world.joined(len(text.ids))
        drawn = slice(0, count) if among.size == world.size else world.rows(count)
        negatives = draw_negatives(
            contrast.image_to_text.detach()[:, drawn],
            contrast.text_to_image.detach()[:, drawn],
            same_image(None, text.ids, among),
            pairing.generator,
            among,
            NEGATIVE_FLOOR,
        )
    memory = network.encoder.remember(features)
    itm = matching_loss(network, features, memory, text, negatives, world, among)
    return PretrainLoss(contrast.itc, itm, writing_loss(network, memory, text, world))


@torch.no_grad()
def clamp_temperature(network: BlipNetwork) -> None:
    network.temperature.clamp_(*TEMPERATURES)


def momentum_contrast(
    network: BlipNetwork,
    momentum: Momentum,
    batch: ImageBatch,
    text: TextBatch,
    embeds: tuple[Tensor, Tensor],
    image_ids: Tensor | None,
    soft: float,
    world: World = ALONE,
) -> Contrast:
    """ITC; the momentum copies are updated before they are used, and their embeddings are put into the queues.

    Args:
        embeds: unit vectors [b, shared width] of images and texts, by the network itself.
        image_ids: [b], see `Pairing`.
    """
    momentum.update(network)
    images, texts = momentum.embed(network, batch.features, batch.pixels, text.ids, text.mask)
    with torch.autocast(images.device.type, enabled=False):
        all_images = torch.cat([world.gather(images), momentum.images])
        all_texts = torch.cat([world.gather(texts), momentum.texts])
        same = same_image(image_ids, text.ids, world)
        queued = (
            same.new_zeros(len(same), len(momentum.ids))
            if image_ids is None
            else image_ids[:, None] == momentum.ids[None]
        )
        right = torch.cat([same, queued], dim=1).float()
        right = right / right.sum(dim=1, keepdim=True)
        scores, losses = [], []
        for own, slow, candidates in ((embeds[0], images, all_texts), (embeds[1], texts, all_images)):
            with torch.no_grad():
                likely = (slow @ candidates.T / network.temperature).softmax(dim=1)
            scores.append(own @ candidates.T / network.temperature)
            losses.append(F.cross_entropy(scores[-1], soft * likely + (1 - soft) * right, reduction="sum"))
    momentum.enqueue(images, texts, image_ids, world)
    return Contrast(world.mean(losses[0] + losses[1], 2 * len(same)), *scores)


def matching_loss(
    network: BlipNetwork,
    features: Tensor,
    memory: ImageMemory,
    text: TextBatch,
    negatives: HardNegatives,
    world: World = ALONE,
    among: World = ALONE,
) -> Tensor:
    """ITM: the true pairs, each text with a wrong image, each image with a wrong text.

    Args:
        features: [b, N, image width]; memory: their keys and values in the text encoder.
        negatives: rows of the processes `among`.
    """
    logits = matching_logits(network, features, memory, text, negatives, among)
    labels = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    labels[: len(text.ids)] = 1
    return world.mean(F.cross_entropy(logits.float(), labels, reduction="sum"), len(labels))


def matching_logits(
    network: BlipNetwork,
    features: Tensor,
    memory: ImageMemory,
    text: TextBatch,
    negatives: HardNegatives,
    among: World = ALONE,
) -> Tensor:
    """Logits [3 b, 2] of true pairs, of texts with wrong images, and of images with wrong texts.

    An image is projected for cross-attention once; its own text and the wrong one are read side by side, so that only
    wrong images are copied.
    """
    all_ids, all_masks = among.gather_padded(text.ids, 0), among.gather_padded(text.mask, 0)
    width = all_ids.shape[1] - text.ids.shape[1]
    ids, mask = F.pad(text.ids, (0, width)), F.pad(text.mask, (0, width))
    beside = torch.stack([ids, all_ids[negatives.texts]], dim=1).flatten(0, 1)
    masks = torch.stack([mask, all_masks[negatives.texts]], dim=1).flatten(0, 1)
    own = network.itm_logits(beside, masks, memory)
    if among.size == 1:
        wrong_images = memory.take(negatives.images)
    else:
        wrong_images = network.encoder.remember(among.gather_with_gradient(features)[negatives.images])
    return torch.cat([own[::2], network.itm_logits(ids, mask, wrong_images), own[1::2]])


def writing_loss(network: BlipNetwork, memory: ImageMemory, text: TextBatch, world: World = ALONE) -> Tensor:
    """LM: the decoder writes the texts about their images, from [DEC] to [SEP]; label-smoothed, a mean over tokens.

    Args:
        memory: of the images, as the decoder reads them.
    """
    decoder, mask = network.decoder, text.mask.bool()
    start = torch.full_like(text.ids[:, :1], network.config.decode_id)
    ids = torch.cat([start, text.ids[:, 1:]], dim=1)
    hidden = decoder.decode(decoder.embed(ids), mask, memory)[:, :-1]
    targets = ids.masked_fill(~mask, IGNORED)[:, 1:]
    wanted = targets != IGNORED
    logits = decoder.logits(hidden[wanted]).float()
    loss = F.cross_entropy(logits, targets[wanted], reduction="sum", label_smoothing=LABEL_SMOOTHING)
    return world.mean(loss, wanted.sum())


def _embeds(network: BlipNetwork, features: Tensor, text: TextBatch) -> tuple[Tensor, Tensor]:
    """Unit vectors [b, shared width] of images and of texts, float32."""
    return network.project_images(features[:, 0]).float(), network.embed_texts(text.ids, text.mask).float()
