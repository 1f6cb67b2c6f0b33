"""The stages of BLIP-2 (https://arxiv.org/abs/2301.12597), and the training of its language model alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from openblip.checkpoints.model_parts import ModelParts
from openblip.data.pairs import ImageText
from openblip.errors import CheckpointError
from openblip.nn.bert import ImageMemory
from openblip.nn.blip2 import Blip2Network
from openblip.nn.opt import Opt
from openblip.text import MatchingText, Tokenizer, pad_ids
from openblip.training.input.batches import BatchRow
from openblip.training.input.targets import (
    EncodedTarget,
    Target,
    choose_caption,
    choose_context,
    choose_targets,
    encode_target,
)
from openblip.training.losses import (
    IGNORED,
    Pairing,
    TextBatch,
    answer_loss,
    language_loss,
    pair_losses,
    stage1_loss,
)
from openblip.training.recipe_keys import Recipe
from openblip.training.tasks.scst import SelfCritic
from openblip.training.tasks.task import Runtime, Task, Views

CHUNK = 32
"""Texts that go through the language model together when it is trained alone."""


class Blip2Task(Task):
    """A loss of BLIP-2."""

    network: Blip2Network

    def __init__(self, parts: ModelParts, recipe: Recipe, runtime: Runtime) -> None:
        super().__init__(parts, recipe, runtime)
        # An external language model is no part of the network, but moves with it, and may have adapters that learn.
        self.external = None if parts.network.external is None else parts.network.external.model

    def large_parts(self) -> list[nn.Module]:
        if self.external is not None:
            return [self.network.vision, self.external]
        own = [] if self.network.config.language is None else [self.network.own_language_model]
        return [self.network.vision, *own]


class LanguageTask(Blip2Task):
    """Next-token loss of the decoder on texts alone."""

    needs_views = False
    loss_names = ("lm",)

    def __init__(self, parts: ModelParts, recipe: Recipe, runtime: Runtime) -> None:
        super().__init__(parts, recipe, runtime)
        self.mixture, self.texts_per_image = recipe.mixture, recipe.texts_per_image
        self.tokenizer = decoder_tokenizer(parts)
        self.stop_id = self.tokenizer.only_id(parts.defaults.stop_token)

    def trained(self) -> list[nn.Module | nn.Parameter]:
        return [self.network.own_language_model]

    def forward(
        self, batch: Sequence[BatchRow], views: Views | None, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        documents = sorted(
            (document for row in batch for document in self._documents(row)), key=lambda document: len(document.ids)
        )
        # Documents of like length go together, so that little of a chunk is padding.
        chunks = [documents[start : start + CHUNK] for start in range(0, len(documents), CHUNK)]
        counts = [sum(len(document.ids) - document.prompt_length for document in chunk) for chunk in chunks]
        with self.runtime.arithmetic.quickly():
            losses = [self._loss(chunk) * count for chunk, count in zip(chunks, counts, strict=True)]
        return {"lm": self.runtime.world.mean(torch.stack(losses).sum(), sum(counts))}

    def _documents(self, row: BatchRow) -> list[EncodedTarget]:
        targets = choose_targets(row.pair, self.mixture, self.parts.prompts, row.rng, self.texts_per_image)
        documents = []
        for target in targets:
            context = choose_context(row.pair, target, row.rng)
            document = encode_target(target, context, self.tokenizer, self.stop_id)
            if target.question is not None:
                # The words of a question are trained on, too, but not the choice to ask one: that is the user's.
                document = replace(document, prompt_length=document.ids.index(self.tokenizer.start_id) + 2)
            documents.append(document)
        return documents

    def _loss(self, documents: Sequence[EncodedTarget]) -> Tensor:
        ids, mask = pad_ids([row.ids for row in documents], self.tokenizer.pad_id)
        labels = mask_labels(ids, mask, [row.prompt_length for row in documents])
        device = self.runtime.device
        return language_loss(
            cast(Opt, self.network.own_language_model), TextBatch(ids, mask).to(device), labels.to(device)
        )


class Stage1Task(Blip2Task):
    """ITC, ITM and ITG of the Q-Former."""

    loss_names = ("itc", "itm", "itg")

    def __init__(self, parts: ModelParts, recipe: Recipe, runtime: Runtime) -> None:
        super().__init__(parts, recipe, runtime)
        self.matching = matching_text(parts, self.text_tokens)

    def trained(self) -> list[nn.Module | nn.Parameter]:
        return [*self.seen_parts(), *stage1_parts(self.network)]

    def forward(
        self, batch: Sequence[BatchRow], views: Views | None, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        texts = [choose_caption(row.pair, self.recipe.mixture, row.rng) for row in batch]
        text = TextBatch(*self.matching.batch(texts)).to(self.runtime.device)
        clamp_temperature(self.network)
        patches = keep_patches(self.patches(views), self.recipe.patch_share)
        with self.runtime.arithmetic.carefully():
            loss = stage1_loss(
                self.network,
                self.network.normalize(patches),
                text,
                self.matching.decoder_start_id,
                pairing_of(batch, self.recipe, self.runtime, generator),
            )
        return {"itc": loss.itc, "itm": loss.itm, "itg": loss.itg}


class Stage2Task(Blip2Task):
    """The language-model loss after the visual prompt, and the losses that the recipe adds to it."""

    def __init__(self, parts: ModelParts, recipe: Recipe, images: Sequence[ImageText], runtime: Runtime) -> None:
        super().__init__(parts, recipe, runtime)
        self.tokenizer = decoder_tokenizer(parts)
        self.stop_id = self.tokenizer.only_id(parts.defaults.stop_token)
        self.matching = matching_text(parts, self.text_tokens) if recipe.keep_matching else None
        self.critic = SelfCritic(parts, images, recipe.self_critical) if recipe.self_critical else None

    @property
    def loss_names(self) -> tuple[str, ...]:
        rewarded = ("cider",) if self.critic else ()
        return ("lm", *rewarded, *(("itc", "itm") if self.matching else ()))

    def trained(self) -> list[nn.Module | nn.Parameter]:
        network = self.network
        parts: list[nn.Module | nn.Parameter] = self.seen_parts()
        if self.matching is None:
            parts += [network.vision_norm, *network.qformer.image_side(), network.prompt_projection]
        else:
            parts += [*matching_parts(network), network.prompt_projection]
        return [*parts, network.own_language_model] if self.recipe.train_decoder else parts

    def forward(
        self, batch: Sequence[BatchRow], views: Views | None, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        network = self.network
        patches = keep_patches(self.patches(views), self.recipe.patch_share)
        with self.runtime.arithmetic.carefully():
            features = network.normalize(patches)
            memory = network.qformer.remember(features)
            queries = network.qformer.image(memory)
            prompt = network.prompt_projection(queries)
        with self.runtime.arithmetic.quickly():
            losses = self._imitate(batch, prompt)
            if self.critic is not None:
                losses |= self.critic.losses(batch, prompt, generator, self.runtime.world)
        if self.matching is not None:
            with self.runtime.arithmetic.carefully():
                losses |= self._match(batch, features, memory, queries, generator)
        return losses

    def _imitate(self, batch: Sequence[BatchRow], prompt: Tensor) -> dict[str, Tensor]:
        targets: list[Target] = []
        owners = []
        for owner, row in enumerate(batch):
            count = self.recipe.texts_per_image
            for target in choose_targets(row.pair, self.recipe.mixture, self.parts.prompts, row.rng, count):
                # A text that is trained by its reward needs no next-token loss.
                if self.critic is None or target.question is not None or not row.pair.captions:
                    targets.append(target)
                    owners.append(owner)
        # Processes agree on whether there is a loss; a process without a text for it takes part with no rows.
        if self.critic is not None and not self.runtime.world.total(torch.tensor(len(targets), device=prompt.device)):
            return {}
        return {"lm": self._answer_loss(prompt[torch.tensor(owners, dtype=torch.int64, device=prompt.device)], targets)}

    def _answer_loss(self, visual: Tensor, targets: Sequence[Target]) -> Tensor:
        model, words = self.network.language_model, self.tokenizer
        prompt = TextBatch(*pad_ids([self.parts.prompt_ids(target.prompt) for target in targets], words.pad_id))
        # Behind a prompt, the space before an answer is part of its first word.
        answers = [target.answer.strip() if model.config.encodes_prompts else target.answer for target in targets]
        ids, mask = pad_ids([[*words.encode(answer), self.stop_id] for answer in answers], words.pad_id)
        device = self.runtime.device
        labels = ids.masked_fill(~mask, IGNORED).to(device)
        # A language model that is kept in a half type reads a visual prompt in it.
        visual = visual.to(model.embed(labels.new_zeros(1)).dtype)
        return answer_loss(model, visual, prompt.to(device), labels, self.runtime.world)

    def _match(
        self,
        batch: Sequence[BatchRow],
        features: Tensor,
        memory: ImageMemory,
        queries: Tensor,
        generator: torch.Generator | None,
    ) -> dict[str, Tensor]:
        """ITC and ITM on the images of the batch that are described."""
        assert self.matching is not None
        described = [index for index, row in enumerate(batch) if row.pair.descriptions]
        world = self.runtime.world.uneven(len(described), self.runtime.device)
        if world.joined(len(described)) < 2:
            return self._unmatched()
        chosen = [batch[row] for row in described]
        texts = [choose_caption(row.pair, self.recipe.mixture, row.rng) for row in chosen]
        clamp_temperature(self.network)
        rows = torch.tensor(described, dtype=torch.int64, device=self.runtime.device)
        loss = pair_losses(
            self.network,
            features[rows],
            memory.take(rows),
            queries[rows],
            TextBatch(*self.matching.batch(texts)).to(self.runtime.device),
            replace(pairing_of(chosen, self.recipe, self.runtime, generator), world=world),
        )
        return {"itc": loss.itc * self.recipe.keep_matching, "itm": loss.itm * self.recipe.keep_matching}

    def _unmatched(self) -> dict[str, Tensor]:
        """Losses where no process has a pair to match. With several processes, each still needs a gradient."""
        if self.runtime.world.size == 1:
            return {}
        learns = [
            weight for part in matching_parts(self.network) for weight in _parameters(part) if weight.requires_grad
        ]
        zero = torch.stack([weight.sum() for weight in learns]).sum() * 0
        return {"itc": zero, "itm": zero}


def _parameters(part: nn.Module | nn.Parameter) -> list[nn.Parameter]:
    return [part] if isinstance(part, nn.Parameter) else list(part.parameters())


def pairing_of(
    batch: Sequence[BatchRow], recipe: Recipe, runtime: Runtime, generator: torch.Generator | None
) -> Pairing:
    """Two captions of one image in a batch are not negatives of each other."""
    return Pairing(
        image_ids=torch.tensor([row.number for row in batch], dtype=torch.int64, device=runtime.device),
        generator=generator,
        itm_share=recipe.itm_share,
        learn_candidates=recipe.learn_candidates,
        world=runtime.world,
    )


def mask_labels(ids: Tensor, mask: Tensor, prompt_length: Sequence[int]) -> Tensor:
    """Labels [B, L]: ids whose padding and first `prompt_length` tokens are IGNORED."""
    before = torch.arange(ids.shape[1])[None] < torch.tensor(prompt_length)[:, None]
    return ids.masked_fill(before | ~mask, IGNORED)


def stage1_parts(network: Blip2Network) -> list[nn.Module | nn.Parameter]:
    """The parts that stage 1 trains, apart from the image encoder."""
    return [*matching_parts(network), network.qformer.head]


def matching_parts(network: Blip2Network) -> list[nn.Module | nn.Parameter]:
    """The parts that matching uses, apart from the image encoder."""
    return [
        network.vision_norm,
        *network.qformer.matching_side(),
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
    chosen = torch.rand(batch, count).argsort(dim=1)[:, :kept].to(features.device)
    return features[torch.arange(batch, device=features.device)[:, None], chosen]
