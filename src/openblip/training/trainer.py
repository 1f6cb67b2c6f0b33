"""The training loop: schedule, checkpoints to resume from, curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from openblip.checkpoints.native import save_native
from openblip.checkpoints.parts import ModelParts
from openblip.data.features import FeatureCache
from openblip.errors import OpenBlipError
from openblip.training.batches import BatchPlan, Drawn
from openblip.training.curves import Curves
from openblip.training.recipe import OptimizerSection, Precision, Recipe
from openblip.training.tasks import Task, batch_features

CHECKPOINT_FILE = "checkpoint.pt"


@dataclass
class Position:
    """Where a run is: `step` batches of `epoch` are done, `total` in all."""

    epoch: int = 0
    step: int = 0
    total: int = 0


def learning_rate(step: int, total: int, section: OptimizerSection) -> float:
    """Linear warm-up, then cosine decay to the last of `total` steps."""
    if step < section.warmup_steps:
        return section.warmup_lr + (section.lr - section.warmup_lr) * step / section.warmup_steps
    done = (step - section.warmup_steps) / max(1, total - section.warmup_steps)
    return section.min_lr + (section.lr - section.min_lr) * (1 + math.cos(math.pi * min(1.0, done))) / 2


class Trainer:
    """Trains the task's parts and leaves a model folder, its curves and a checkpoint in `recipe.output`."""

    def __init__(
        self, recipe: Recipe, parts: ModelParts, task: Task, plan: BatchPlan, caches: Sequence[FeatureCache]
    ) -> None:
        self.recipe, self.parts, self.task, self.plan, self.caches = recipe, parts, task, plan, caches
        self.output = Path(recipe.output)
        self.total_steps = plan.steps * recipe.epochs
        if not self.total_steps:
            raise OpenBlipError(f"the data has fewer images than one batch of {recipe.batch_size}: lower batch_size")
        self.parameters = _freeze_all_but(parts.network, task.trained())
        if recipe.dropout is not None:
            set_dropout(task.trained(), recipe.dropout)
        section = recipe.optimizer
        decayed = [p for p in self.parameters.values() if p.ndim >= 2]
        others = [p for p in self.parameters.values() if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": section.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=section.lr,
            betas=(section.beta1, section.beta2),
        )
        self.position = Position()

    def run(self) -> None:
        """Train to the end, from the last checkpoint if there is one.

        Raises:
            OpenBlipError: a loss is not finite; the step and the images of the batch are named.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        self._resume()
        curves = Curves(self.output, self.position.total, self.task.loss_names)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns) as progress:
            bar = progress.add_task("training", total=self.total_steps, completed=self.position.total)
            for epoch in range(self.position.epoch, self.recipe.epochs):
                self.position.epoch = epoch
                for batch in self.plan.batches(epoch, skip=self.position.step):
                    losses, rate = self._step(batch)
                    self.position.step += 1
                    self.position.total += 1
                    curves.add(self.position.total, epoch, rate, losses)
                    if self.position.total % self.recipe.log_every == 0:
                        shown = "  ".join(f"{name} {value:.3f}" for name, value in curves.means().items())
                        progress.update(bar, completed=self.position.total, description=f"epoch {epoch + 1}  {shown}")
                        curves.write()
                    if self.position.total % self.recipe.save_every == 0:
                        self._save()
                self.position.step = 0
                self.position.epoch = epoch + 1
                curves.write()
                self._save()
                save_native(self.parts, self.output, self.recipe.storage.value)
        curves.plot()

    def _step(self, batch: list[Drawn]) -> tuple[dict[str, float], float]:
        rate = learning_rate(self.position.total, self.total_steps, self.recipe.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        features = batch_features(batch, self.caches) if self.task.needs_features else None
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.precision is Precision.BF16):
            losses = self.task.losses(batch, features)
            total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            bad = ", ".join(name for name, value in losses.items() if not torch.isfinite(value))
            names = ", ".join(drawn.image.image.name for drawn in batch[:5])
            raise OpenBlipError(
                f"the loss {bad} is not finite at step {self.position.total} (images {names}, ...): "
                "lower the learning rate or use precision=float32"
            )
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters.values(), self.recipe.optimizer.clip_norm)
        self.optimizer.step()
        return {name: float(value.detach()) for name, value in losses.items()}, rate

    def _save(self) -> None:
        """Trained parts only: what is frozen is in the model the run started from."""
        draft = self.output / (CHECKPOINT_FILE + ".draft")
        state = {
            "parameters": {name: parameter.detach() for name, parameter in self.parameters.items()},
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "position": vars(self.position),
            "total_steps": self.total_steps,
        }
        torch.save(state, draft)
        draft.replace(self.output / CHECKPOINT_FILE)

    def _resume(self) -> None:
        path = self.output / CHECKPOINT_FILE
        if not path.is_file():
            torch.manual_seed(self.recipe.seed)
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["total_steps"] != self.total_steps or set(state["parameters"]) != set(self.parameters):
            raise OpenBlipError(f"{path} is of another run: delete it, or give this run another output folder")
        with torch.no_grad():
            for name, value in state["parameters"].items():
                self.parameters[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        self.position = Position(**state["position"])


def set_dropout(parts: Sequence[nn.Module | nn.Parameter], dropout: float) -> None:
    """Another rate of dropout than the model's own, for this run."""
    for part in parts:
        for module in part.modules() if isinstance(part, nn.Module) else ():
            if isinstance(getattr(module, "dropout", None), float | int):
                cast(Any, module).dropout = dropout


def _freeze_all_but(network: nn.Module, trained: Sequence[nn.Module | nn.Parameter]) -> dict[str, Tensor]:
    """Switch gradients and training mode on for the given parts alone; return their parameters by name."""
    network.requires_grad_(False).eval()
    for part in trained:
        part.requires_grad_(True)
        if isinstance(part, nn.Module):
            part.train()
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
