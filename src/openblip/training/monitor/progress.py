"""Show and record a run: a progress bar, curves on disk, TensorBoard, and Weights & Biases."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol
from uuid import uuid4

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from openblip.errors import OpenBlipError, printable
from openblip.saving import write_text
from openblip.training.monitor.curves import Curves, StepTable
from openblip.training.monitor.profile import PROFILE_FILE, peak_memory
from openblip.training.recipe_keys import Recipe

WANDB_ID_FILE = "wandb_run.txt"
EVERY_SECONDS = 60.0
"""Seconds between lines if standard output is no terminal."""


class Reporter(Protocol):
    """A destination for numbers."""

    def add(self, step: int, values: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class RunMonitor(AbstractContextManager["RunMonitor"]):
    """Shows and records a run with `total` steps, from step `done` on. Shows nothing if `shown` is False."""

    def __init__(
        self,
        recipe: Recipe,
        done: int,
        total: int,
        names: tuple[str, ...],
        device: torch.device,
        shown: bool = True,
    ) -> None:
        self.recipe, self.device, self.shown = recipe, device, shown
        self.curves = Curves(Path(recipe.output), done, names)
        self.profile = StepTable(Path(recipe.output) / PROFILE_FILE, ("step", "images/s", "peak memory GB"), done)
        self.reporters = reporters_of(recipe) if shown else []
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            disable=not shown,
        )
        self.bar: TaskID = self.progress.add_task("training", total=total, completed=done, speed="")
        self.total = total
        self._images, self._since = 0, time.perf_counter()
        self._said = self._since

    def __enter__(self) -> RunMonitor:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
        # Report the first error, not that the curves cannot be written, either.
        with suppress(OSError) if error is not None else nullcontext():
            if self.shown:
                self.curves.write()
                self.curves.plot()
                self.profile.write()
            for reporter in self.reporters:
                reporter.close()

    def step(self, total: int, epoch: int, rate: float, losses: dict[str, float], images: int) -> None:
        """Record a finished step and its number of images."""
        if not self.shown:
            return
        self.curves.add(total, epoch, rate, losses)
        self._images += images
        if total % self.recipe.log_every:
            self.progress.update(self.bar, completed=total)
            return
        speed = self._images / max(1e-9, time.perf_counter() - self._since)
        self._images, self._since = 0, time.perf_counter()
        means = self.curves.means()
        text = "  ".join(f"{name} {value:.3f}" for name, value in means.items())
        peak = peak_memory(self.device) / 1e9
        self.progress.update(
            self.bar,
            completed=total,
            description=f"epoch {epoch + 1}  {text}",
            speed=f"{speed:.1f} images/s  {peak:.1f} GB",
        )
        if not self.progress.console.is_terminal and time.perf_counter() - self._said >= EVERY_SECONDS:
            self._said = time.perf_counter()
            self.say(f"step {total} of {self.total}  epoch {epoch + 1}  {text}  {speed:.1f} images/s")
        self.curves.write()
        self.profile.add({"step": str(total), "images/s": f"{speed:.2f}", "peak memory GB": f"{peak:.3f}"})
        self.profile.write()
        speed_and_memory = {"images/s": speed, "peak memory GB": peak}
        self.report(total, {**{f"loss/{name}": value for name, value in means.items()}, "lr": rate, **speed_and_memory})

    def report(self, step: int, values: Mapping[str, float]) -> None:
        for reporter in self.reporters:
            reporter.add(step, values)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self.shown:
            self.progress.console.print(printable(line, 2_000, 600), markup=False, highlight=False, soft_wrap=True)


def reporters_of(recipe: Recipe) -> list[Reporter]:
    """TensorBoard, if it is wanted and installed; Weights & Biases, if a project is named.

    Raises OpenBlipError if a project is named and wandb is not installed.
    """
    found: list[Reporter] = []
    if recipe.monitor.tensorboard:
        with suppress(ImportError):
            found.append(TensorBoard(Path(recipe.output) / "tensorboard"))
    if recipe.monitor.wandb is not None:
        found.append(WeightsAndBiases(recipe))
    return found


class TensorBoard:
    """Event files in a folder."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of a Weights & Biases project, with the recipe as its config; a resumed run continues the same one."""

    def __init__(self, recipe: Recipe) -> None:
        try:
            import wandb
        except ImportError:
            raise OpenBlipError(
                "monitor.wandb names a project, but wandb is not installed: pip install wandb, or leave it out"
            ) from None
        run_id = _run_id(Path(recipe.output) / WANDB_ID_FILE)
        try:
            self.run: Any = wandb.init(
                project=recipe.monitor.wandb,
                dir=recipe.output,
                name=recipe.name or Path(recipe.output).name,
                id=run_id,
                resume="allow",
                config=json.loads(json.dumps(asdict(recipe), default=lambda choice: choice.value)),
            )
        except Exception as error:  # no network, no account, or an invalid name
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OpenBlipError(
                f"Weights & Biases cannot be begun ({reason}): log in with `wandb login`, set WANDB_MODE=offline, or "
                "leave monitor.wandb out"
            ) from error

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


def _run_id(path: Path) -> str:
    """The run's id at Weights & Biases: chosen once and stored with the checkpoint, so that no other run uses it."""
    if path.is_file():
        return path.read_text(encoding="utf-8").strip()
    run_id = uuid4().hex
    write_text(path, run_id + "\n")
    return run_id
