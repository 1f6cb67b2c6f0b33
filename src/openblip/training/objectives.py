"""The training losses of BLIP-2's two stages (https://arxiv.org/abs/2301.12597, sections 3.2 and 3.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.nn.blip2 import Blip2Network, itc_similarity
from openblip.nn.decoder import Decoder
from openblip.nn.language_model import LanguageModel
from openblip.nn.qformer import ImageMemory

IGNORED = -100
LABEL_SMOOTHING = 0.1


@dataclass(frozen=True)
class TextBatch:
    """Tokenised text, padded on the right.

    Attributes:
        ids: [B, L] int64; mask: [B, L] bool, False for padding.
    """

    ids: Tensor
    mask: Tensor


@dataclass(frozen=True)
class HardNegatives:
    """For each text an image that is not its own [B], for each image a text that is not its own [B]."""

    images: Tensor
    texts: Tensor


@dataclass(frozen=True)
class PairLoss:
    """What tells pairs from strangers, each a scalar."""

    itc: Tensor
    itm: Tensor


@dataclass(frozen=True)
class Stage1Loss:
    """The three parts and their sum, each a scalar."""

    itc: Tensor
    itm: Tensor
    itg: Tensor

    @property
    def total(self) -> Tensor:
        return self.itc + self.itm + self.itg


def stage1_loss(
    network: Blip2Network,
    features: Tensor,
    text: TextBatch,
    decoder_start_id: int,
    image_ids: Tensor | None = None,
    negatives: HardNegatives | None = None,
    generator: torch.Generator | None = None,
    itm_share: float = 1.0,
) -> Stage1Loss:
    """Contrast (ITC), matching (ITM) and generation (ITG) on one batch of pairs.

    Args:
        features: [B, N, image width], already normalised.
        text: one caption an image, beginning with [CLS].
        decoder_start_id: id of [DEC], which takes [CLS]'s place for ITG.
        image_ids: [B]; equal ids mark captions of one image, which are then no negatives of each other.
        negatives: fixed hard negatives, to replay a recorded step; drawn when None.
        generator: the source of randomness for the draw.
        itm_share: share of the batch that ITM looks at, the costliest loss; the paper: all.
    """
    memory = network.qformer.remember(features)
    seen = network.qformer.read_image(memory)
    pair = pair_losses(network, memory, seen.output, text, image_ids, negatives, generator, itm_share)
    start_ids = text.ids.clone()
    start_ids[:, 0] = decoder_start_id
    hidden = network.qformer.causal_text(start_ids, text.mask, seen)
    itg = next_token_loss(
        network.qformer.text_logits(hidden),
        start_ids.masked_fill(~text.mask.bool(), IGNORED),
        label_smoothing=LABEL_SMOOTHING,
    )
    return Stage1Loss(pair.itc, pair.itm, itg)


def pair_losses(
    network: Blip2Network,
    memory: ImageMemory,
    queries: Tensor,
    text: TextBatch,
    image_ids: Tensor | None = None,
    negatives: HardNegatives | None = None,
    generator: torch.Generator | None = None,
    itm_share: float = 1.0,
) -> PairLoss:
    """Contrast (ITC) and matching (ITM): arguments as in `stage1_loss`, `queries` [B, Q, D] read from `memory`."""
    image_embeds = network.project_queries(queries)
    text_embeds = network.project_text(network.qformer.text(text.ids, text.mask))
    # The candidates are constants to those who choose among them, as in LAVIS, which gathers them from all
    # processes without gradient: images learn from image-to-text alone, texts from text-to-image alone.
    image_to_text = itc_similarity(image_embeds.float(), text_embeds.detach().float()) / network.temperature
    text_to_image = itc_similarity(image_embeds.detach().float(), text_embeds.float()).T / network.temperature
    itc = contrastive_loss(image_to_text, text_to_image, image_ids)
    if negatives is None:
        negatives = draw_negatives(image_to_text.detach(), image_ids, generator)
    return PairLoss(itc, matching_loss(network, memory, text, negatives, itm_share))


def contrastive_loss(image_to_text: Tensor, text_to_image: Tensor, image_ids: Tensor | None = None) -> Tensor:
    """ITC both ways on scaled similarities: [B, B] image by text, and [B, B] text by image.

    The two are transposes of each other in value, but may differ in what they send gradients to.

    Args:
        image_ids: [B]; every text of an image is a right answer and shares its target, as in LAVIS' COCO
            retrieval: 0.9 over the right ones, 0.1 over all. With None, each text has an image of its own.
    """
    count = image_to_text.shape[0]
    if image_ids is None:
        image_ids = torch.arange(count, device=image_to_text.device)
    same = (image_ids[:, None] == image_ids[None]).float()
    targets = (1 - LABEL_SMOOTHING) * same / same.sum(1, keepdim=True) + LABEL_SMOOTHING / count
    return (F.cross_entropy(image_to_text, targets) + F.cross_entropy(text_to_image, targets)) / 2


def draw_negatives(
    similarity: Tensor, image_ids: Tensor | None = None, generator: torch.Generator | None = None
) -> HardNegatives:
    """Draw wrong partners, likelier the more similar they look; one multinomial draw a direction.

    Args:
        similarity: [B, B] scaled, image by text.
        image_ids: [B]; equal ids mark captions of one image. A batch in which an image has no stranger
            (a single image) gets itself: there is nothing else.
    """
    count = similarity.shape[0]
    if image_ids is None:
        image_ids = torch.arange(count, device=similarity.device)
    same = image_ids[:, None] == image_ids[None]
    alone = same.all(1, keepdim=True)
    own = torch.eye(count, device=similarity.device)

    def draw(scores: Tensor) -> Tensor:
        # Right answers leave before the softmax: strangers far below them would all underflow after it.
        weights = scores.float().masked_fill(same, float("-inf")).softmax(dim=1)
        return torch.multinomial(torch.where(alone, own, weights), 1, generator=generator)[:, 0]

    return HardNegatives(images=draw(similarity.T), texts=draw(similarity))


def matching_loss(
    network: Blip2Network,
    memory: ImageMemory,
    text: TextBatch,
    negatives: HardNegatives,
    share: float = 1.0,
) -> Tensor:
    """ITM on the true pairs, each text with a wrong image, each image with a wrong text.

    Images are projected for cross-attention once, for all three uses. Only the first `share` of the batch
    is looked at, though its negatives come from all of it.
    """
    count = math.ceil(share * text.ids.shape[0])
    own = torch.arange(count, device=text.ids.device)
    texts = torch.cat([own, own, negatives.texts[:count]])
    images = torch.cat([own, negatives.images[:count], own])
    logits = network.itm_logits(text.ids[texts], text.mask[texts], memory.take(images))
    labels = torch.zeros(3 * count, dtype=torch.int64, device=text.ids.device)
    labels[:count] = 1
    return F.cross_entropy(logits.float(), labels)


def stage2_loss(network: Blip2Network, features: Tensor, text: TextBatch, labels: Tensor) -> Tensor:
    """Language-model loss of the text behind the image's soft prompt.

    Args:
        features: [B, N, image width], already normalised.
        text: prompt and target together, beginning with the language model's start token: [B, L].
        labels: [B, L], the ids to predict, IGNORED over prompt and padding. The first one, the start
            token itself, is predicted from the last visual token, as in LAVIS.
    """
    hidden = read_behind(network.decoder, network.visual_prompt(features), text)
    return decoder_loss(network.decoder, hidden, labels)


def stage2_t5_loss(network: Blip2Network, features: Tensor, text: TextBatch, labels: Tensor) -> Tensor:
    """Language-model loss of T5: image and prompt go into the encoder, the target comes out of the decoder.

    Args:
        features: [B, N, image width], already normalised.
        text: the prompt [B, L], ending with </s> as T5's tokeniser ends every text, padded on the right.
        labels: [B, T], the target's ids to its </s>, IGNORED over padding, which stands behind it.
    """
    return answer_loss(network.t5, network.visual_prompt(features), text, labels)


def answer_loss(model: LanguageModel, visual: Tensor, prompt: TextBatch, labels: Tensor) -> Tensor:
    """Loss of what any language model is to say to a soft prompt [B, Q, token width] and a prompt of words behind it.

    Args:
        labels: [B, T], ids to the stop token, IGNORED over padding, which stands behind them.
    """
    embeds = torch.cat([visual, model.embed(prompt.ids).to(visual)], dim=1)
    seen = prompt.mask.new_ones(visual.shape[:2])
    hidden = model.hidden_before(embeds, torch.cat([seen, prompt.mask], dim=1), labels)
    return decoder_loss(model, hidden, labels)


def read_behind(decoder: Decoder, prompt: Tensor, text: TextBatch) -> Tensor:
    """Hidden states [B, L, width] that predict each token of a text behind a soft prompt [B, Q, token width]."""
    embeds = torch.cat([prompt, decoder.embed(text.ids).to(prompt)], dim=1)
    seen = text.mask.new_ones(prompt.shape[:2])
    hidden = decoder(embeds, torch.cat([seen, text.mask], dim=1))
    before: Tensor = hidden[:, prompt.shape[1] - 1 : -1]
    return before


def self_critical_loss(decoder: Decoder, hidden: Tensor, labels: Tensor, rewards: Tensor) -> Tensor:
    """Minus the mean reward of texts that the model drew; its gradient makes the better ones of an image likelier.

    Self-critical sequence training (Rennie et al. 2017, https://arxiv.org/abs/1612.00563), each text being
    measured by the other texts of its image (Luo 2020, https://arxiv.org/abs/2003.09971), in standard
    deviations over the batch: how large rewards are does not change how fast is learnt.

    Args:
        hidden: [T, L, width] before each token; labels: [T, L] as drawn, IGNORED elsewhere.
        rewards: [B, K], T = B * K: of each image's texts.
    """
    count = rewards.shape[1]
    advantage = (rewards - rewards.mean(1, keepdim=True)) * count / (count - 1)
    advantage = advantage / advantage.std().clamp(min=1e-6)
    wanted = labels != IGNORED
    surprise = F.cross_entropy(decoder.logits(hidden[wanted]).float(), labels[wanted], reduction="none")
    surrogate = (surprise * advantage.flatten()[:, None].expand_as(labels)[wanted]).mean()
    return surrogate - surrogate.detach() - rewards.mean()


def language_loss(decoder: Decoder, text: TextBatch, labels: Tensor) -> Tensor:
    """Language-model loss of text alone: labels [B, L] as in `stage2_loss`, their first column unused."""
    hidden = decoder(decoder.embed(text.ids))
    return decoder_loss(decoder, hidden[:, :-1], labels[:, 1:])


def decoder_loss(decoder: LanguageModel, hidden: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of labels [B, L] given the hidden states before them [B, L, width].

    Only what has a label is scored: the vocabulary is the widest layer of a small model.
    """
    wanted = labels != IGNORED
    return F.cross_entropy(decoder.logits(hidden[wanted]).float(), labels[wanted])


def next_token_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of each token given those before it: logits [B, L, V], labels [B, L]."""
    return F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        labels[:, 1:].flatten(),
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
    )
