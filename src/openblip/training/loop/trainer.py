"""The training loop."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from openblip.errors import OpenBlipError, OptionError
from openblip.training.feature_cache.speedup import Speedup
from openblip.training.input.batches import BatchRow
from openblip.training.input.loader import BatchLoader
from openblip.training.loop.checkpoint import TrainingState
from openblip.training.loop.ema import Ema
from openblip.training.loop.nonfinite import first_nonfinite, save_batch
from openblip.training.loop.optim import learning_rate, make_optimizer, set_rate, single_vectors
from openblip.training.loop.run_identity import identity_of
from openblip.training.loop.signals import Stop, Stopped
from openblip.training.monitor.progress import RunMonitor
from openblip.training.monitor.skipped import write_skipped
from openblip.training.parallel.fsdp import shard
from openblip.training.parallel.processes import leave
from openblip.training.recipe_keys import Parallel, Precision, Recipe
from openblip.training.tasks.task import BatchPosition, Task, Views

Evaluate = Callable[[dict[str, Tensor], Callable[[str], None]], float]
"""How good the weights learnt so far are, more being better; given somewhere to show what they make of examples."""


@dataclass(frozen=True)
class MicroBatch:
    """One batch, with its pixels or features on the device.

    Attributes:
        rng_states: of the generators of the rows, to draw the same texts again.
    """

    rows: list[BatchRow]
    views: Views | None
    rng_states: list[Any]


class Trainer:
    """Trains the parts of a task, and leaves curves and a checkpoint in `recipe.output`.

    Every process of a run has one; together they do what one would do alone.
    """

    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        loader: BatchLoader,
        wrap: Callable[[Task], nn.Module],
        evaluate: Evaluate | None = None,
        speedup: Speedup | None = None,
    ) -> None:
        """
        Args:
            task: its parts that learn have gradients, and nothing else has.
            wrap: makes the module that shares gradients among processes, where each has all weights.
            evaluate: called after epochs, as the recipe says; in the first process alone.
            speedup: by features on disk, to be reported in the first epoch.
        """
        self.recipe, self.task, self.loader, self.evaluate, self.speedup = recipe, task, loader, evaluate, speedup
        self.output = Path(recipe.output)
        self.world, self.device = task.runtime.world, task.runtime.device
        self.epoch_steps = loader.steps // recipe.accumulate
        if not self.epoch_steps:
            raise OpenBlipError(
                f"the data has fewer images than one step of {recipe.batch_size * recipe.accumulate}: lower batch_size"
            )
        self.model: nn.Module = task
        if self.world.size > 1 and recipe.parallel is Parallel.FSDP:
            shard(task, task.large_parts(), self.world, self.device)
        elif self.world.size > 1:
            with warnings.catch_warnings():
                # An option that PyTorch renamed is handed on under the name that older ones know.
                warnings.simplefilter("ignore", FutureWarning)
                self.model = wrap(task)
        own = task.network.named_parameters()
        parameters = {name: parameter for name, parameter in own if parameter.requires_grad}
        self.parameters = list(parameters.values())
        scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision is Precision.FP16)
        self.state = TrainingState(
            parameters,
            make_optimizer(parameters, recipe.optimizer, single_vectors(task.network)),
            scaler,
            Ema(parameters, recipe.ema) if recipe.ema else None,
            self.epoch_steps * recipe.epochs,
            self.world,
            {**identity_of(recipe, loader.images), **loader.identity},
            task.state(),
        )

    def run(self) -> dict[str, Tensor]:
        """Train to the end, from the last checkpoint if there is one; returns what was learnt.

        Raises:
            OpenBlipError: a loss is not finite: what was first not to be, and where the batch is kept, are named.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        state, recipe = self.state, self.recipe
        if state.load(self.output):
            if self._stopped_early():
                return self._best()
            self._best()  # another run's is told now, not when this one is over
        position = state.position
        names, shown = self.task.loss_names, self.world.rank == 0
        monitor = RunMonitor(recipe, position.total, state.total_steps, names, self.device, shown)
        with monitor, Stop() as self.stop:
            if position.total == 0:
                # How good the model is that the run starts from: it is kept where nothing better comes of the run.
                self._after_epoch(monitor)
            for epoch in range(position.epoch, recipe.epochs):
                position.epoch = epoch
                self._epoch(monitor)
                position.step, position.epoch = 0, epoch + 1
                self._after_epoch(monitor)
                self._save(monitor)
                if self._stopped_early():
                    monitor.say(f"stopped: no better for {recipe.evaluation.patience} evaluations")
                    break
        return self._best()

    def _epoch(self, monitor: RunMonitor) -> None:
        position, recipe = self.state.position, self.recipe
        batches = self.loader.batches(position.epoch, position.step * recipe.accumulate)
        for _ in range(position.step, self.epoch_steps):
            started = time.perf_counter()
            micro_batches = [
                MicroBatch(rows, self._move(views), [row.rng.getstate() for row in rows])
                for rows, views in _take(batches, recipe.accumulate)
            ]
            losses, rate = self._step(micro_batches)
            position.step += 1
            position.total += 1
            monitor.step(position.total, position.epoch, rate, losses, recipe.batch_size * recipe.accumulate)
            self._report_speedup(monitor, time.perf_counter() - started)
            # What comes after an epoch's last step is saved with it.
            is_last = position.step == self.epoch_steps
            if self.stop.wanted(self.world, self.device) and not is_last:
                self._save(monitor)
                leave()
                raise Stopped(self.stop.signal, position.total, self.state.total_steps)
            if position.total % recipe.save_every == 0 and not is_last:
                self._save(monitor)

    def _save(self, monitor: RunMonitor) -> None:
        self.state.save(self.output)
        bad = self.world.all_of(self.loader.take_unreadable())
        if self.world.rank == 0:
            new = write_skipped(self.output, bad)
            if new:
                monitor.say(f"{new} image{'s' * (new != 1)} cannot be read, and are left out: see skipped.csv")

    def _report_speedup(self, monitor: RunMonitor, seconds: float) -> None:
        if self.speedup is None or self.world.rank:
            return
        message = self.speedup.step(seconds, self.state.position.step == self.epoch_steps)
        if message is not None:
            monitor.say(message)
            self.speedup.write(self.output)

    def _step(self, micro_batches: Sequence[MicroBatch]) -> tuple[dict[str, float], float]:
        state, section = self.state, self.recipe.optimizer
        rate = learning_rate(state.position.total, state.total_steps, section, state.position.epoch, self.recipe.epochs)
        set_rate(state.optimizer, rate)
        state.optimizer.zero_grad(set_to_none=True)
        means: dict[str, float] = {}
        for number, batch in enumerate(micro_batches):
            with self._together(last=number == len(micro_batches) - 1):
                losses = self._losses(batch, number)
                for name, value in self._checked(batch, number, losses).items():
                    means[name] = means.get(name, 0.0) + value / len(micro_batches)
                total = torch.stack(list(losses.values())).sum() / len(micro_batches)
                state.scaler.scale(total).backward()  # type: ignore[no-untyped-call]
        state.scaler.unscale_(state.optimizer)
        if section.clip_norm:
            nn.utils.clip_grad_norm_(self.parameters, section.clip_norm)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        if state.ema is not None:
            state.ema.update(state.position.total)
        return means, rate

    def _losses(self, batch: MicroBatch, number: int) -> dict[str, Tensor]:
        position, each = self.state.position, self.recipe.accumulate
        self.task.position = BatchPosition(position.epoch, position.step * each + number, self.epoch_steps * each)
        losses: dict[str, Tensor] = self.model(batch.rows, batch.views, self._seed_generators(number))
        return losses

    def _seed_generators(self, number: int) -> torch.Generator:
        """Seeds are a function of recipe, step and process, so a checkpoint needs no state of generators.

        Returns:
            a generator that is the same in all processes.
        """
        place = f"{self.recipe.seed}:{self.state.position.total}:{number}"
        torch.manual_seed(_seed(f"{place}:{self.world.rank}"))
        return torch.Generator().manual_seed(_seed(place))

    def _checked(self, batch: MicroBatch, number: int, losses: dict[str, Tensor]) -> dict[str, float]:
        """Means over all processes. Raises OpenBlipError in every one when one has a loss that is not finite."""
        values = torch.stack([value.detach().float() for value in losses.values()])
        bad = ~torch.isfinite(values)
        if self.world.total(bad.any().float()) == 0:
            means = self.world.total(values) / self.world.size
            return dict(zip(losses, means.tolist(), strict=True))
        step = self.state.position.total
        if not bad.any():
            raise OpenBlipError(f"a loss of another process is not finite at step {step}")
        wrong = ", ".join(name for name, is_bad in zip(losses, bad.tolist(), strict=True) if is_bad)
        cause = first_nonfinite(self.task.network, batch.views, lambda: self._again(batch, number))
        facts = {"step": step, "losses": wrong, "cause": cause, "seed": self.recipe.seed}
        place = save_batch(self.output, batch.rows, batch.views, facts)
        names = ", ".join(row.pair.image.name for row in batch.rows[:5])
        raise OpenBlipError(
            f"the loss {wrong} is not finite at step {step} (images {names}, ...): the first to be so is {cause}. "
            f"The batch is in {place}. Lower the learning rate, or use precision=float32"
        )

    def _again(self, batch: MicroBatch, number: int) -> None:
        """Compute a batch again, with the same texts."""
        for row, rng_state in zip(batch.rows, batch.rng_states, strict=True):
            row.rng.setstate(rng_state)
        self.task(batch.rows, batch.views, self._seed_generators(number))

    def _together(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients are shared among processes once a step."""
        if last or not isinstance(self.model, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return cast("AbstractContextManager[Any]", self.model.no_sync())

    def _after_epoch(self, monitor: RunMonitor) -> None:
        position, section = self.state.position, self.recipe.evaluation
        if section.data is None or position.epoch % section.every:
            return
        learnt = self.state.learnt()
        # One process evaluates, and tells the others.
        found = self.evaluate(learnt, monitor.say) if self.evaluate is not None else 0.0
        score = float(self.world.total(torch.tensor(found, dtype=torch.float64, device=self.device)))
        if position.best is None or score > position.best:
            position.best, position.best_epoch = score, position.epoch
            if self.world.rank == 0:
                self.state.save_best(learnt, self.output)
        monitor.report(position.total, {"evaluation": score})

    def _stopped_early(self) -> bool:
        position, section = self.state.position, self.recipe.evaluation
        waited = position.epoch - position.best_epoch
        return bool(section.patience) and position.best is not None and waited >= section.patience * section.every

    def _best(self) -> dict[str, Tensor]:
        learnt = self.state.learnt()
        best = None if self.state.position.best is None else self.state.best(self.output)
        return learnt if best is None else best

    def _move(self, views: Views | None) -> Views | None:
        if views is None:
            return None

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(self.device, non_blocking=True)

        return Views(moved(views.patches), moved(views.pixels))


def freeze_all_but(network: nn.Module, trained: Sequence[nn.Module | nn.Parameter]) -> None:
    """Switch gradients and training mode on for the given parts alone."""
    network.requires_grad_(False).eval()
    for part in trained:
        part.requires_grad_(True)
        if isinstance(part, nn.Module):
            part.train()


def set_dropout(parts: Sequence[nn.Module | nn.Parameter], dropout: float) -> None:
    """Another rate of dropout than the model's own, for this run."""
    for part in parts:
        for module in part.modules() if isinstance(part, nn.Module) else ():
            if isinstance(getattr(module, "dropout", None), float | int):
                cast(Any, module).dropout = dropout


def set_drop_path(vision: nn.Module, rate: float) -> None:
    """Another rate of stochastic depth than the model's own, for this run.

    Args:
        rate: of the last block; it grows from 0 in equal steps.

    Raises:
        OptionError: the image encoder is no vision transformer.
    """
    blocks = [module for module in vision.modules() if isinstance(getattr(module, "drop_path", None), float)]
    if not blocks:
        raise OptionError("drop_path is for vision transformers, and this image encoder is none: leave it out")
    for index, block in enumerate(blocks):
        cast(Any, block).drop_path = rate * index / max(1, len(blocks) - 1)


def _take(batches: Any, count: int) -> list[Any]:
    return [next(batches) for _ in range(count)]


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
