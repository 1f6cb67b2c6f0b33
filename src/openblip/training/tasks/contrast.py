"""CLIP's contrastive loss (https://arxiv.org/abs/2103.00020) on the images and texts of a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.checkpoints.model_parts import ModelParts
from openblip.errors import CheckpointError, OptionError
from openblip.nn.clip import ClipNetwork
from openblip.text import ClipText
from openblip.training.input.batches import BatchRow
from openblip.training.input.targets import choose_caption
from openblip.training.losses import TextBatch, same_image
from openblip.training.parallel.processes import ALONE, World
from openblip.training.recipe_keys import Recipe
from openblip.training.tasks.task import Runtime, Task, Views

MOST = math.log(100)
"""The largest logarithm of the scale of cosines, as in CLIP's paper and open_clip; the smallest is 0."""


class ContrastTask(Task):
    """CLIP's symmetric cross entropy over all pairs of all processes."""

    network: ClipNetwork
    loss_names = ("contrast",)
    usual_tokens = 77

    def __init__(self, parts: ModelParts[Any, Any], recipe: Recipe, runtime: Runtime) -> None:
        """Raises CheckpointError for a model without a text side, OptionError for one that stores all activations."""
        super().__init__(parts, recipe, runtime)
        if not isinstance(parts.matching, ClipText):
            raise CheckpointError(f"{parts.name} has no text side: this stage needs a CLIP with its vocabulary")
        if recipe.gradient_checkpointing and not hasattr(parts.network.vision, "gradient_checkpointing"):
            raise OptionError(f"gradient_checkpointing is for a vision transformer, which {parts.name} has not")
        self.matching = ClipText(parts.matching.tokenizer, min(self.text_tokens, parts.matching.max_tokens))

    def trained(self) -> list[nn.Module | nn.Parameter]:
        network = self.network
        seen: list[nn.Module | nn.Parameter] = self.seen_parts()
        if network.image_projection is not None:
            seen.append(network.image_projection)
        return [*seen, network.text, network.text_projection, network.log_scale]

    def forward(
        self, batch: Sequence[BatchRow], views: Views | None, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        if views is None or views.pixels is None:
            raise ValueError("this task needs pixels")
        texts = [self.matching.clean(choose_caption(row.pair, self.recipe.mixture, row.rng)) for row in batch]
        text = TextBatch(*self.matching.batch(texts)).to(self.runtime.device)
        clamp_scale(self.network)
        with self.runtime.arithmetic.quickly():
            images = self.network.embed_images(views.pixels.to(next(self.network.vision.parameters()).dtype))
            words = self.network.embed_texts(text.ids, text.mask)
        numbers = torch.tensor([row.number for row in batch], device=self.runtime.device)
        loss = clip_loss(self.network, images.float(), words.float(), numbers, self.runtime.world)
        return {"contrast": loss}


def clip_loss(
    network: ClipNetwork, images: Tensor, texts: Tensor, image_ids: Tensor | None = None, world: World = ALONE
) -> Tensor:
    """Cross entropy both ways on scaled cosines of this process' vectors with those of all processes.

    Args:
        images, texts: [b, shared width], of any norm; gradients flow back to the processes that computed them.
        image_ids: [b]; the target of an image that is in the batch twice is shared by its texts. None: all differ.
    """
    same = same_image(image_ids, images, world).float()
    targets = same / same.sum(dim=1, keepdim=True)
    image_to_text = network.contrast(images, world.gather_with_gradient(texts))
    text_to_image = network.contrast(world.gather_with_gradient(images), texts).T
    both = [F.cross_entropy(scores, targets, reduction="sum") for scores in (image_to_text, text_to_image)]
    return world.mean(both[0] + both[1], 2 * len(same))


@torch.no_grad()
def clamp_scale(network: ClipNetwork) -> None:
    network.log_scale.clamp_(0.0, MOST)
