"""The base of all tasks: a task turns batches of images and texts into losses, for one family."""

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
    """The device, precision and processes of a task."""

    arithmetic: Arithmetic
    world: World = ALONE

    @property
    def device(self) -> torch.device:
        return self.arithmetic.device


@dataclass(frozen=True)
class Views:
    """The images of a batch, either as cached features or as pixels.

    Attributes:
        patches: [B, N, C] float32, the cached output of the frozen encoder, or of its frozen blocks.
        pixels: [B, 3, S, S] float32, for the encoder; [2B, 3, S, S] for rows of two images, which are adjacent.
    """

    patches: Tensor | None = None
    pixels: Tensor | None = None


@dataclass(frozen=True)
class BatchPosition:
    """Where in a run a batch is, for schedules.

    Attributes:
        epoch: counted from 0.
        batch: number within the epoch, counted from 0.
        batches: batches per epoch; an optimizer step with accumulation has several.
    """

    epoch: int = 0
    batch: int = 0
    batches: int = 1

    @property
    def epochs(self) -> float:
        """Finished epochs, including the finished share of the current one."""
        return self.epoch + self.batch / self.batches


class Task(nn.Module, ABC):
    """One loss on one family; a module, so that processes can share its gradients and its weights.

    Attributes:
        text_tokens: the most tokens of a text; longer ones are cut.
        position: the position of the next batch; the trainer sets it.
    """

    needs_views = True
    usual_tokens = 32
    """The default of `text_tokens`."""

    def __init__(self, parts: ModelParts[Any, Any], recipe: Recipe, runtime: Runtime) -> None:
        super().__init__()
        self.parts, self.recipe, self.runtime = parts, recipe, runtime
        self.network = parts.network
        self.text_tokens = self.usual_tokens if recipe.text_tokens is None else recipe.text_tokens
        self.position = BatchPosition()

    @property
    @abstractmethod
    def loss_names(self) -> tuple[str, ...]:
        """The losses that `forward` may return; a batch without data for a loss lacks it."""

    @abstractmethod
    def trained(self) -> list[nn.Module | nn.Parameter]:
        """The parts that are trained; everything else is frozen and in evaluation mode."""

    @abstractmethod
    def forward(
        self, batch: Sequence[BatchRow], views: Views | None, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Losses by name; their sum is minimized. `generator`, on the CPU, samples hard negatives."""

    def state(self) -> Mapping[str, Tensor]:
        """The state of a run other than parameters, such as queues and momentum copies, by name.

        Checkpoints store it, and a resumed run restores it bit for bit. It is the same in all processes.
        """
        return {}

    def large_parts(self) -> list[nn.Module]:
        """The largest parts: where frozen, they are kept in the fast dtype; FSDP shards them block by block."""
        return [self.network.vision]

    def patches(self, views: Views | None) -> Tensor:
        """Patch features [B, N, C] float32 of the images, before any norm that follows the encoder."""
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
        """The parts of the image encoder to train. Raises OptionError when the recipe names more blocks than it has."""
        vision, count = self.network.vision, self.recipe.vision_blocks
        if not self.recipe.train_vision or not count:
            return [vision] if self.recipe.train_vision else []
        if count > len(vision.blocks):
            raise OptionError(
                f"vision_blocks is {count}, the image encoder has {len(vision.blocks)}: 0 lets all of it learn"
            )
        return [vision.get_submodule(name) for name in vision.upper(count)]
