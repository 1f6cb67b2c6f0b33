"""BLIP's classification of statements about two images (NLVR2), or about one (SNLI-VE)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from openblip.checkpoints.model_parts import ModelParts
from openblip.nn.blip import BlipNetwork
from openblip.training.class_losses import RAMP_EPOCHS, class_copies, class_loss, copied_class_logits
from openblip.training.init.class_head import LONGEST
from openblip.training.input.batches import BatchRow
from openblip.training.lora.adapters import adapts_vision
from openblip.training.losses import TextBatch
from openblip.training.momentum_losses import soft_share
from openblip.training.recipe_keys import Recipe
from openblip.training.tasks.stages import matching_text
from openblip.training.tasks.task import Runtime, Task, Views


class NlvrTask(Task):
    """Cross entropy of the class of a statement about two images."""

    network: BlipNetwork
    loss_names = ("classes",)
    images = 2
    usual_tokens = LONGEST[2]

    def __init__(self, parts: ModelParts[Any, Any], recipe: Recipe, runtime: Runtime) -> None:
        super().__init__(parts, recipe, runtime)
        self.matching = matching_text(parts, self.text_tokens)
        self.numbers = {name.casefold(): number for number, name in enumerate(parts.classes)}

    def trained(self) -> list[nn.Module | nn.Parameter]:
        return [*self.seen_parts(), self.network.encoder, self.network.class_head]

    def forward(
        self, batch: Sequence[BatchRow], views: Views | None, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        device = self.runtime.device
        text = TextBatch(*self.matching.batch([row.pair.claim for row in batch])).to(device)
        labels = torch.tensor([self.numbers[row.pair.label.casefold()] for row in batch], device=device)
        patches = self.patches(views)
        features = patches.view(len(batch), self.images, *patches.shape[1:]).unbind(1)
        with self.runtime.arithmetic.quickly():
            logits = self.network.class_logits(text.ids, text.mask, *features)
            return {"classes": self.loss(logits, labels, text, views)}

    def loss(self, logits: Tensor, labels: Tensor, text: TextBatch, views: Views | None) -> Tensor:
        """The loss of logits [B, classes] with labels [B]."""
        return class_loss(logits, labels, world=self.runtime.world)


class ClassifyTask(NlvrTask):
    """Cross entropy of the class of a statement about an image, with the soft targets of momentum copies."""

    images = 1
    usual_tokens = LONGEST[1]

    def __init__(self, parts: ModelParts[Any, Any], recipe: Recipe, runtime: Runtime) -> None:
        super().__init__(parts, recipe, runtime)
        section = recipe.momentum
        self.copies = None
        if section.alpha:
            adapters = recipe.lora is not None
            vision = adapts_vision(self.network) if adapters else recipe.train_vision
            self.copies = class_copies(self.network, section.decay, runtime.device, vision, adapters)

    def state(self) -> Mapping[str, Tensor]:
        return {} if self.copies is None else self.copies.weights

    def loss(self, logits: Tensor, labels: Tensor, text: TextBatch, views: Views | None) -> Tensor:
        if self.copies is None or views is None or views.pixels is None:
            return super().loss(logits, labels, text, views)
        self.copies.update(self.network)
        soft_logits = copied_class_logits(self.copies, self.network, views.pixels, text)
        soft = soft_share(self.recipe.momentum.alpha, self.position.epochs, RAMP_EPOCHS)
        return class_loss(logits, labels, soft_logits, soft, self.runtime.world)
