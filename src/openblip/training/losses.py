"""The training losses of BLIP-2's two stages (https://arxiv.org/abs/2301.12597, sections 3.2 and 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.nn.bert import ImageMemory
from openblip.nn.blip2 import Blip2Network, itc_similarity
from openblip.nn.language_model import LanguageModel
from openblip.nn.opt import Opt
from openblip.training.parallel.processes import ALONE, World

IGNORED = -100
LABEL_SMOOTHING = 0.1


@dataclass(frozen=True)
class TextBatch:
    """Tokenized text, padded on the right.

    Attributes:
        ids: [B, L] int64; mask: [B, L] bool, False for padding.
    """

    ids: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> TextBatch:
        return TextBatch(self.ids.to(device), self.mask.to(device))


@dataclass(frozen=True)
class HardNegatives:
    """For each text the index of a wrong image [B], and for each image the index of a wrong text [B].

    The indices count the rows of all processes.
    """

    images: Tensor
    texts: Tensor


@dataclass(frozen=True)
class Pairing:
    """How matching pairs are contrasted with pairs that do not match.

    Attributes:
        image_ids: [B]; texts with equal ids belong to the same image, and are no negatives of each other. None: each
            text has its own image.
        negatives: fixed hard negatives, to repeat a recorded step; None: they are sampled.
        generator: a generator on the CPU that samples the negatives. Processes that train together need equal ones.
        itm_share: the share of the batch for which ITM, the costliest loss, is computed. In the paper it is 1.
        learn_candidates: whether gradients of ITC flow to the candidates as well as to the query. LAVIS gathers the
            candidates from all processes without gradient, so its images learn from image-to-text alone, and its texts
            from text-to-image alone.
        world: the processes that share the batch; its `parts` give the rows of each, where they differ.
    """

    image_ids: Tensor | None = None
    negatives: HardNegatives | None = None
    generator: torch.Generator | None = None
    itm_share: float = 1.0
    learn_candidates: bool = False
    world: World = ALONE


@dataclass(frozen=True)
class PairLoss:
    """The losses that compare images with texts, each a scalar."""

    itc: Tensor
    itm: Tensor


@dataclass(frozen=True)
class Stage1Loss:
    """The three losses of stage 1 and their sum, each a scalar."""

    itc: Tensor
    itm: Tensor
    itg: Tensor

    @property
    def total(self) -> Tensor:
        return self.itc + self.itm + self.itg


def stage1_loss(
    network: Blip2Network, features: Tensor, text: TextBatch, decoder_start_id: int, pairing: Pairing | None = None
) -> Stage1Loss:
    """Contrast (ITC), matching (ITM) and generation (ITG) on one batch of pairs.

    Args:
        features: [B, N, image width], already normalized.
        text: one caption per image, beginning with [CLS].
        decoder_start_id: id of [DEC], which replaces [CLS] for ITG.
    """
    pairing = pairing or Pairing()
    memory = network.qformer.remember(features)
    query_pass = network.qformer.read_image(memory)
    pair = pair_losses(network, features, memory, query_pass.output, text, pairing)
    start_ids = text.ids.clone()
    start_ids[:, 0] = decoder_start_id
    hidden = network.qformer.causal_text(start_ids, text.mask, query_pass)
    itg = next_token_loss(
        network.qformer.text_logits(hidden),
        start_ids.masked_fill(~text.mask.bool(), IGNORED),
        label_smoothing=LABEL_SMOOTHING,
        world=pairing.world,
    )
    return Stage1Loss(pair.itc, pair.itm, itg)


def pair_losses(
    network: Blip2Network,
    features: Tensor,
    memory: ImageMemory,
    queries: Tensor,
    text: TextBatch,
    pairing: Pairing,
) -> PairLoss:
    """Contrast (ITC) and matching (ITM).

    Args:
        features: [B, N, image width]; memory: their keys and values in the Q-Former; queries: its output [B, Q, D].
        text: one caption per image, beginning with [CLS].
    """
    world = pairing.world
    image_embeds = network.project_queries(queries).float()
    text_embeds = network.project_text(network.qformer.text(text.ids, text.mask)).float()
    gather = world.gather_with_gradient if pairing.learn_candidates else world.gather
    image_to_text = itc_similarity(image_embeds, gather(text_embeds)) / network.temperature
    text_to_image = itc_similarity(gather(image_embeds), text_embeds).T / network.temperature
    same = same_image(pairing.image_ids, text.ids, world)
    itc = contrastive_loss(image_to_text, text_to_image, same, world)
    negatives = pairing.negatives or draw_negatives(
        image_to_text.detach(), text_to_image.detach(), same, pairing.generator, world
    )
    return PairLoss(itc, matching_loss(network, features, memory, text, negatives, pairing.itm_share, world))


def same_image(image_ids: Tensor | None, rows: Tensor, world: World = ALONE) -> Tensor:
    """Which pairs of all processes [B] have the same image as each pair of this process [b]: bool [b, B].

    Args:
        rows: any tensor with one row per pair, [b, ...].
    """
    if image_ids is None:
        count = rows.shape[0]
        image_ids = torch.arange(count, device=rows.device) + world.rows(world.joined(count)).start
    return image_ids[:, None] == world.gather(image_ids)[None]


def contrastive_loss(image_to_text: Tensor, text_to_image: Tensor, same: Tensor, world: World = ALONE) -> Tensor:
    """ITC in both directions, on scaled similarities [b, B]: images with all texts, and texts with all images.

    Args:
        same: bool [b, B]; all texts of an image are right answers and share its target, as in LAVIS' COCO
            retrieval: 0.9 over the right ones, 0.1 over all.
    """
    right = same.float()
    targets = (1 - LABEL_SMOOTHING) * right / right.sum(1, keepdim=True) + LABEL_SMOOTHING / right.shape[1]
    both = [F.cross_entropy(scores, targets, reduction="sum") for scores in (image_to_text, text_to_image)]
    return world.mean(both[0] + both[1], 2 * len(same))


def draw_negatives(
    image_to_text: Tensor,
    text_to_image: Tensor,
    same: Tensor,
    generator: torch.Generator | None = None,
    world: World = ALONE,
    floor: float = 0.0,
) -> HardNegatives:
    """Sample negatives among the rows of all processes; the more similar a row, the likelier it is sampled.

    Each process takes its rows of one sample for all rows, so the result does not depend on the number of processes.

    Args:
        image_to_text, text_to_image: [b, B] scaled similarities.
        same: bool [b, B], True for texts of the same image. An image without any negative, as in a batch of one
            image, gets itself.
        floor: added to the probability of each negative, of a softmax over all rows; 0: the softmax is over negatives
            alone.
    """
    count, all_rows = same.shape
    rows = world.rows(all_rows)
    uniforms = torch.rand(2, all_rows, generator=generator)[:, rows].to(same.device, torch.float64)
    alone = same.all(1, keepdim=True)
    own = F.one_hot(torch.arange(count, device=same.device) + rows.start, all_rows).bool()

    def draw(scores: Tensor, uniform: Tensor) -> Tensor:
        # Right answers are masked before the softmax: negatives far below them would all underflow after it.
        scores = scores.double() if floor else scores.double().masked_fill(same, float("-inf"))
        weights = (scores.softmax(dim=1) + floor).masked_fill(same, 0)
        sums = torch.where(alone, own.double(), weights).cumsum(dim=1)
        # The first row whose sum is above the number: a row of no weight adds nothing to the sum before it.
        # NaN scores find no row. The index is clamped, and the NaN loss is reported instead of an index error.
        return torch.searchsorted(sums, (uniform * sums[:, -1])[:, None], right=True)[:, 0].clamp(max=all_rows - 1)

    return HardNegatives(images=draw(text_to_image, uniforms[0]), texts=draw(image_to_text, uniforms[1]))


def matching_loss(
    network: Blip2Network,
    features: Tensor,
    memory: ImageMemory,
    text: TextBatch,
    negatives: HardNegatives,
    share: float = 1.0,
    world: World = ALONE,
) -> Tensor:
    """ITM on the matching pairs, on each text with a wrong image, and on each image with a wrong text.

    Images are projected for cross-attention once for all three; images of other processes are projected here again.
    With `share` below 1, only that share of the rows is used, but their negatives come from the whole batch.
    """
    own = itm_rows(text.ids.shape[0], share, world).to(text.ids.device)
    all_ids, all_masks = world.gather_padded(text.ids, 0), world.gather_padded(text.mask, 0)
    width = all_ids.shape[1] - text.ids.shape[1]
    ids, mask = F.pad(text.ids, (0, width)), F.pad(text.mask, (0, width))
    if world.size == 1:
        images = memory.take(torch.cat([own, negatives.images[own], own]))
    else:
        wrong_images = world.gather_with_gradient(features)[negatives.images[own]]
        images = ImageMemory.join([memory.take(own), network.qformer.remember(wrong_images), memory.take(own)])
    wrong = negatives.texts[own]
    logits = network.itm_logits(
        torch.cat([ids[own], ids[own], all_ids[wrong]]), torch.cat([mask[own], mask[own], all_masks[wrong]]), images
    )
    labels = torch.zeros(3 * len(own), dtype=torch.int64, device=text.ids.device)
    labels[: len(own)] = 1
    return world.mean(F.cross_entropy(logits.float(), labels, reduction="sum"), len(labels))


def itm_rows(count: int, share: float, world: World = ALONE) -> Tensor:
    """The rows of this process for which ITM is computed: an evenly spread `share` of all rows, and at least one."""
    rows = world.rows(world.joined(count))
    place = torch.arange(rows.start, rows.stop, dtype=torch.float64)
    chosen = ((place + 1) * share).ceil() > (place * share).ceil()
    return chosen.nonzero()[:, 0] if chosen.any() or not count else torch.zeros(1, dtype=torch.int64)


def stage2_loss(network: Blip2Network, features: Tensor, text: TextBatch, labels: Tensor) -> Tensor:
    """Language-model loss of the text behind the image's soft prompt.

    Args:
        features: [B, N, image width], already normalized.
        text: prompt and target together, beginning with the language model's start token: [B, L].
        labels: [B, L], the ids to predict, IGNORED over prompt and padding. The first one, the start
            token itself, is predicted from the last visual token, as in LAVIS.
    """
    decoder = cast(Opt, network.own_language_model)
    return decoder_loss(decoder, read_behind(decoder, network.visual_prompt(features), text), labels)


def stage2_t5_loss(network: Blip2Network, features: Tensor, text: TextBatch, labels: Tensor) -> Tensor:
    """Language-model loss of T5: image and prompt go into the encoder, the target comes out of the decoder.

    Args:
        features: [B, N, image width], already normalized.
        text: the prompt [B, L], ending with </s> as T5's tokenizer ends every text, padded on the right.
        labels: [B, T], the target's ids to its </s>, IGNORED over padding, which stands behind it.
    """
    return answer_loss(network.language_model, network.visual_prompt(features), text, labels)


def answer_loss(
    model: LanguageModel, visual: Tensor, prompt: TextBatch, labels: Tensor, world: World = ALONE
) -> Tensor:
    """Loss of answers after a soft prompt [B, Q, token width] and a text prompt, for any language model.

    Args:
        labels: [B, T], ids up to the stop token, IGNORED over padding, which is on the right.
    """
    embeds = torch.cat([visual, model.embed(prompt.ids).to(visual)], dim=1)
    visual_mask = prompt.mask.new_ones(visual.shape[:2])
    hidden = model.hidden_before(embeds, torch.cat([visual_mask, prompt.mask], dim=1), labels)
    return decoder_loss(model, hidden, labels, world)


def read_behind(decoder: Opt, prompt: Tensor, text: TextBatch) -> Tensor:
    """Hidden states [B, L, width] that predict each token of a text behind a soft prompt [B, Q, token width]."""
    embeds = torch.cat([prompt, decoder.embed(text.ids).to(prompt)], dim=1)
    visual_mask = text.mask.new_ones(prompt.shape[:2])
    hidden = decoder(embeds, torch.cat([visual_mask, text.mask], dim=1))
    before: Tensor = hidden[:, prompt.shape[1] - 1 : -1]
    return before


def self_critical_loss(decoder: Opt, hidden: Tensor, labels: Tensor, rewards: Tensor, world: World = ALONE) -> Tensor:
    """Minus the mean reward of sampled texts; its gradient makes the better texts of an image likelier.

    Self-critical sequence training (Rennie et al. 2017, https://arxiv.org/abs/1612.00563). The baseline of a text is
    the mean of the other texts of its image (Luo 2020, https://arxiv.org/abs/2003.09971). Advantages are divided by
    their standard deviation over the batch of all processes, so the scale of the reward does not change the step.

    Args:
        hidden: [T, L, width] before each token; labels: [T, L], the sampled ids, IGNORED elsewhere.
        rewards: [B, K], one per text of each image; T = B * K.
    """
    count = rewards.shape[1]
    advantage = (rewards - rewards.mean(1, keepdim=True)) * count / (count - 1)
    # The advantages of an image sum to 0, so the mean over the batch is 0.
    squares = world.total(advantage.square().sum())
    spread = (squares / (world.joined(len(rewards)) * count - 1)).sqrt()
    advantage = advantage / spread.clamp(min=1e-6)
    wanted = labels != IGNORED
    token_losses = F.cross_entropy(decoder.logits(hidden[wanted]).float(), labels[wanted], reduction="none")
    weighted = (token_losses * advantage.flatten()[:, None].expand_as(labels)[wanted]).sum()
    surrogate = world.mean(weighted, wanted.sum())
    return surrogate - surrogate.detach() - world.mean(rewards.sum(), rewards.numel())


def language_loss(decoder: Opt, text: TextBatch, labels: Tensor) -> Tensor:
    """Language-model loss of text without images: labels [B, L] as in `stage2_loss`; their first column is not used."""
    hidden = decoder(decoder.embed(text.ids))
    return decoder_loss(decoder, hidden[:, :-1], labels[:, 1:])


def decoder_loss(decoder: LanguageModel, hidden: Tensor, labels: Tensor, world: World = ALONE) -> Tensor:
    """Mean cross-entropy of labels [B, L] given the hidden states before them [B, L, width].

    Logits are computed only where there is a label: the vocabulary is the widest layer of a small model.
    """
    wanted = labels != IGNORED
    token_losses = F.cross_entropy(decoder.logits(hidden[wanted]).float(), labels[wanted], reduction="sum")
    return world.mean(token_losses, wanted.sum())


def next_token_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0, world: World = ALONE) -> Tensor:
    """Mean cross-entropy of each token given those before it: logits [B, L, V], labels [B, L]."""
    targets = labels[:, 1:].flatten()
    token_losses = F.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        targets,
        ignore_index=IGNORED,
        label_smoothing=label_smoothing,
        reduction="sum",
    )
    return world.mean(token_losses, (targets != IGNORED).sum())
