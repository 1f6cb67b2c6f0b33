"""What every task has in common: how batches of images become a loss, whatever family is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from openblip.checkpoints.model_parts import ModelParts
from openblip.errors import OptionError
from openblip.training.input.batches import BatchRow
from openblip.training.loop.precision import Arithmetic
from openblip.training.parallel.processes import ALONE, World
from openblip.training.recipe_keys import Recipe


@dataclass(frozen=True)
class Runtime:
    """Where and among whom a task computes."""

    arithmetic: Arithmetic
    world: World = ALONE

    @property
    def device(self) -> torch.device:
        return self.arithmetic.device


@dataclass(frozen=True)
class Views:
    """What is seen of a batch: one of the two.

    Attributes:
        patches: what the frozen encoder, or what is frozen of it, gave [B, N, C], float32, as it was cached.
        pixels: [B, 3, S, S] float32, for the encoder to look at now; of rows with two images [2B, 3, S, S], both of a
            row side by side.
    """

    patches: Tensor | None = None
    pixels: Tensor | None = None


@dataclass(frozen=True)
class BatchPosition:
    """Where in a run a batch is, for what changes with time.

    Attributes:
        epoch: from 0 on.
        batch: of the epoch, from 0 on.
        batches: of an epoch; those of one step of the optimizer count each.
    """

    epoch: int = 0
    batch: int = 0
    batches: int = 1

    @property
    def epochs(self) -> float:
        """Epochs that are over, the running one by its share."""
        return self.epoch + self.batch / self.batches


class Task(nn.Module, ABC):
    """One loss on one family; a module, so that processes can share its gradients and its weights.

    Attributes:
        text_tokens: of the longest text; longer ones are cut.
        position: of the batch that `forward` gets next; the trainer sets it.
    """

    needs_views = True
    usual_tokens = 32
    """`text_tokens` where the recipe does not say."""

    def __init__(self, parts: ModelParts[Any, Any], recipe: Recipe, runtime: Runtime) -> None:
        super().__init__()
        self.parts, self.recipe, self.runtime = parts, recipe, runtime
        self.network = parts.network
        self.text_tokens = self.usual_tokens if recipe.text_tokens is None else recipe.text_tokens
        self.position = BatchPosition()

    @property
    @abstractmethod
    def loss_names(self) -> tuple[str, ...]:
        """What `forward` may give; a batch without anything to say to a loss lacks it."""

    @abstractmethod
    def trained(self) -> list[nn.Module | nn.Parameter]:
        """The parts that learn; everything else is frozen, in evaluation mode."""

    @abstractmethod
    def forward(
        self, batch: Sequence[BatchRow], views: Views | None, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Scalars by name; their sum is minimized. `generator`, on the CPU, draws hard negatives."""

    def state(self) -> Mapping[str, Tensor]:
        """What changes in a run without being learnt, such as queues and momentum copies, by name.

        Checkpoints keep it, and a run that goes on gets it back in place, bit for bit. It is the same in all processes.
        """
        return {}

    def large_parts(self) -> list[nn.Module]:
        """The parts with most weights: frozen, they are kept in the fast type; processes share them by their blocks."""
        return [self.network.vision]

    def patches(self, views: Views | None) -> Tensor:
        """Raw patches [B, N, C] float32 of what is seen."""
        if views is None or (views.patches is None) == (views.pixels is None):
            raise ValueError("this task needs either patches or pixels")
        if views.patches is not None and not self.recipe.vision_blocks:
            return views.patches
        vision = self.network.vision
        learns = any(parameter.requires_grad for parameter in vision.parameters())
        with torch.set_grad_enabled(learns), self.runtime.arithmetic.quickly() if learns else nullcontext():
            if views.pixels is None:
                assert views.patches is not None
                features = vision.above(views.patches, self.recipe.vision_blocks)
            else:
                features = vision(views.pixels.to(next(vision.parameters(), views.pixels).dtype))
        raw: Tensor = features.float()
        return raw

    def seen_parts(self) -> list[nn.Module | nn.Parameter]:
        """What is to learn of the image encoder. Raises OptionError when the recipe names more blocks than it has."""
        vision, count = self.network.vision, self.recipe.vision_blocks
        if not self.recipe.train_vision or not count:
            return [vision] if self.recipe.train_vision else []
        if count > len(vision.blocks):
            raise OptionError(
                f"vision_blocks is {count}, the image encoder has {len(vision.blocks)}: 0 lets all of it learn"
            )
        return [vision.get_submodule(name) for name in vision.upper(count)]
