"""What each stage trains and how it turns drawn images into a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from openblip.checkpoints.parts import ModelParts
from openblip.data.features import FeatureCache
from openblip.data.pairs import ImageText
from openblip.errors import CheckpointError
from openblip.nn.blip2 import Blip2Network
from openblip.nn.qformer import ImageMemory
from openblip.text import MatchingText, Tokenizer, pad_ids
from openblip.training.batches import Drawn
from openblip.training.documents import (
    EncodedTarget,
    Target,
    choose_caption,
    choose_context,
    choose_targets,
    encode_target,
)
from openblip.training.objectives import (
    IGNORED,
    TextBatch,
    answer_loss,
    language_loss,
    pair_losses,
    stage1_loss,
)
from openblip.training.recipe import Mixture, Recipe
from openblip.training.self_critical import SelfCritic

CHUNK = 32
"""Texts that go through the language model together when it is trained alone."""


class Task(ABC):
    """One stage's loss."""

    needs_features: bool

    @property
    @abstractmethod
    def loss_names(self) -> tuple[str, ...]:
        """What `losses` may hold; a batch without anything to say to a loss lacks it."""

    @abstractmethod
    def trained(self) -> list[nn.Module | nn.Parameter]:
        """The parts that learn; everything else is frozen, in evaluation mode."""

    @abstractmethod
    def losses(self, batch: Sequence[Drawn], features: Tensor | None) -> dict[str, Tensor]:
        """Scalars by name; their sum is minimised. `features` are raw patches [B, N, C]."""


class LanguageTask(Task):
    """Next-token loss of the decoder on texts alone."""

    needs_features = False
    loss_names = ("lm",)

    def __init__(self, parts: ModelParts, mixture: Mixture, texts_per_image: int) -> None:
        self.parts, self.mixture, self.texts_per_image = parts, mixture, texts_per_image
        self.tokenizer = decoder_tokenizer(parts)
        self.stop_id = self.tokenizer.only_id(parts.defaults.stop_token)

    def trained(self) -> list[nn.Module | nn.Parameter]:
        return [self.parts.network.decoder]

    def losses(self, batch: Sequence[Drawn], features: Tensor | None) -> dict[str, Tensor]:
        documents = sorted(
            (document for drawn in batch for document in self._documents(drawn)), key=lambda row: len(row.ids)
        )
        # Documents of like length go together, so that little of a chunk is padding.
        chunks = [documents[start : start + CHUNK] for start in range(0, len(documents), CHUNK)]
        counts = [sum(len(row.ids) - row.given for row in chunk) for chunk in chunks]
        losses = [self._loss(chunk) * count for chunk, count in zip(chunks, counts, strict=True)]
        return {"lm": torch.stack(losses).sum() / sum(counts)}

    def _documents(self, drawn: Drawn) -> list[EncodedTarget]:
        targets = choose_targets(drawn.image, self.mixture, self.parts.prompts, drawn.draw, self.texts_per_image)
        rows = []
        for target in targets:
            context = choose_context(drawn.image, target, drawn.draw)
            row = encode_target(target, context, self.tokenizer, self.stop_id)
            if target.question is not None:
                # The words of questions are learnt, too, but not whether one is asked: that is up to the user.
                row = replace(row, given=row.ids.index(self.tokenizer.start_id) + 2)
            rows.append(row)
        return rows

    def _loss(self, documents: Sequence[EncodedTarget]) -> Tensor:
        ids, mask = pad_ids([row.ids for row in documents], self.tokenizer.pad_id)
        labels = mask_labels(ids, mask, [row.given for row in documents])
        return language_loss(self.parts.network.decoder, TextBatch(ids, mask), labels)


class Stage1Task(Task):
    """ITC, ITM and ITG of the Q-Former over frozen features."""

    needs_features = True
    loss_names = ("itc", "itm", "itg")

    def __init__(self, parts: ModelParts, recipe: Recipe) -> None:
        self.parts, self.mixture = parts, recipe.mixture
        self.itm_share, self.patch_share = recipe.itm_share, recipe.patch_share
        self.matching = matching_text(parts, recipe.text_tokens)

    def trained(self) -> list[nn.Module | nn.Parameter]:
        return stage1_parts(self.parts.network)

    def losses(self, batch: Sequence[Drawn], features: Tensor | None) -> dict[str, Tensor]:
        network = self.parts.network
        texts = [choose_caption(drawn.image, self.mixture, drawn.draw) for drawn in batch]
        text = TextBatch(*self.matching.batch(texts))
        clamp_temperature(network)
        loss = stage1_loss(
            network,
            network.normalise(keep_patches(_required(features), self.patch_share)),
            text,
            self.matching.decoder_start_id,
            itm_share=self.itm_share,
        )
        return {"itc": loss.itc, "itm": loss.itm, "itg": loss.itg}


class Stage2Task(Task):
    """Loss through the language model behind the visual prompt, and what the recipe adds to it."""

    needs_features = True

    def __init__(self, parts: ModelParts, recipe: Recipe, images: Sequence[ImageText]) -> None:
        self.parts, self.recipe = parts, recipe
        self.tokenizer = decoder_tokenizer(parts)
        self.stop_id = self.tokenizer.only_id(parts.defaults.stop_token)
        self.matching = matching_text(parts, recipe.text_tokens) if recipe.keep_matching else None
        self.critic = SelfCritic(parts, images, recipe.self_critical) if recipe.self_critical else None

    @property
    def loss_names(self) -> tuple[str, ...]:
        rewarded = ("cider",) if self.critic else ()
        return ("lm", *rewarded, *(("itc", "itm") if self.matching else ()))

    def trained(self) -> list[nn.Module | nn.Parameter]:
        network = self.parts.network
        if self.matching is None:
            parts = [network.vision_norm, *network.qformer.image_side(), network.prompt_projection]
        else:
            parts = [*stage1_parts(network), network.prompt_projection]
        return [*parts, network.own_language_model] if self.recipe.train_decoder else parts

    def losses(self, batch: Sequence[Drawn], features: Tensor | None) -> dict[str, Tensor]:
        network = self.parts.network
        patches = keep_patches(_required(features), self.recipe.patch_share)
        memory = network.qformer.remember(network.normalise(patches))
        queries = network.qformer.image(memory)
        prompt = network.prompt_projection(queries)
        losses = self._imitate(batch, prompt)
        if self.critic is not None:
            losses |= self.critic.losses(batch, prompt)
        if self.matching is not None:
            losses |= self._match(batch, memory, queries)
        return losses

    def _imitate(self, batch: Sequence[Drawn], prompt: Tensor) -> dict[str, Tensor]:
        targets: list[Target] = []
        owners = []
        for owner, drawn in enumerate(batch):
            count = self.recipe.texts_per_image
            for target in choose_targets(drawn.image, self.recipe.mixture, self.parts.prompts, drawn.draw, count):
                # What is learnt by reward need not be imitated.
                if self.critic is None or target.question is not None or not drawn.image.captions:
                    targets.append(target)
                    owners.append(owner)
        if not targets:
            return {}
        return {"lm": self._answer_loss(prompt[owners], targets)}

    def _answer_loss(self, visual: Tensor, targets: Sequence[Target]) -> Tensor:
        model, words = self.parts.network.language_model, self.tokenizer
        prompt = TextBatch(*pad_ids([self.parts.prompt_ids(target.prompt) for target in targets], words.pad_id))
        # Behind a prompt, the space before an answer is part of its first word.
        answers = [target.answer.strip() if model.config.encodes_prompts else target.answer for target in targets]
        ids, mask = pad_ids([[*words.encode(answer), self.stop_id] for answer in answers], words.pad_id)
        return answer_loss(model, visual, prompt, ids.masked_fill(~mask, IGNORED))

    def _match(self, batch: Sequence[Drawn], memory: ImageMemory, queries: Tensor) -> dict[str, Tensor]:
        """ITC and ITM on the images of the batch that are described."""
        assert self.matching is not None
        described = [row for row, drawn in enumerate(batch) if drawn.image.descriptions]
        if len(described) < 2:
            return {}
        texts = [choose_caption(batch[row].image, self.recipe.mixture, batch[row].draw) for row in described]
        clamp_temperature(self.parts.network)
        loss = pair_losses(
            self.parts.network,
            memory.take(torch.tensor(described)),
            queries[described],
            TextBatch(*self.matching.batch(texts)),
            itm_share=self.recipe.itm_share,
        )
        return {"itc": loss.itc * self.recipe.keep_matching, "itm": loss.itm * self.recipe.keep_matching}


def mask_labels(ids: Tensor, mask: Tensor, given: Sequence[int]) -> Tensor:
    """Ids with padding and the first `given` of each row ignored: [B, L]."""
    before = torch.arange(ids.shape[1])[None] < torch.tensor(given)[:, None]
    return ids.masked_fill(before | ~mask, IGNORED)


def stage1_parts(network: Blip2Network) -> list[nn.Module | nn.Parameter]:
    """All that matching needs, apart from the frozen image encoder."""
    return [
        network.vision_norm,
        network.qformer,
        network.image_projection,
        network.text_projection,
        network.itm_head,
        network.temperature,
    ]


@torch.no_grad()
def clamp_temperature(network: Blip2Network) -> None:
    network.temperature.clamp_(0.001, 0.5)


def matching_text(parts: ModelParts, text_tokens: int) -> MatchingText:
    """The model's text side, with texts cut at `text_tokens`. Raises CheckpointError when it has none."""
    if parts.matching is None:
        raise CheckpointError(f"{parts.name} has no text side: this recipe needs a model that can match")
    return MatchingText(parts.matching.tokenizer, min(text_tokens, parts.matching.max_tokens))


def decoder_tokenizer(parts: ModelParts) -> Tokenizer:
    if parts.tokenizer is None:
        raise CheckpointError(f"{parts.name} has no language model: give one that can write text")
    return parts.tokenizer


def keep_patches(features: Tensor, share: float) -> Tensor:
    """A random `share` of each image's patches [B, N, C] (PatchDropout, Liu et al. 2022, arXiv 2208.07220)."""
    batch, count, _ = features.shape
    kept = max(1, round(share * count))
    if kept == count:
        return features
    chosen = torch.rand(batch, count).argsort(dim=1)[:, :kept]
    return features[torch.arange(batch)[:, None], chosen]


def _required(features: Tensor | None) -> Tensor:
    if features is None:
        raise ValueError("this task needs image features")
    return features


def batch_features(batch: Sequence[Drawn], caches: Sequence[FeatureCache]) -> Tensor:
    """Cached patches of a batch that mixes data sources: float32 [B, N, C]."""
    return torch.cat([caches[drawn.source].patches([drawn.image.image.name], [drawn.view]) for drawn in batch])
