"""Features of a recipe's images, computed by all processes before the first step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor

from openblip.checkpoints.model_parts import ModelParts
from openblip.data.feature_store import FeatureStore, ViewPlan, fill, fingerprint
from openblip.data.image_files import BadImage, OnBadImage, open_image
from openblip.data.pairs import ImageText
from openblip.data.sample import ImageFile
from openblip.errors import ImageError, OpenBlipError, printable
from openblip.training.feature_cache.index import EncoderIndex, EncoderSpeed
from openblip.training.monitor.profile import machine_name, size_of
from openblip.training.recipe_keys import Recipe
from openblip.training.tasks.task import Runtime

MAX_UNREADABLE = 0.5
"""If a larger share of a source's images cannot be read, its paths must be wrong."""


class FeatureCache:
    """The features of a run: a store for each of its data sources; sources with the same views share one.

    Attributes:
        stores: one for each source, once their fingerprints are known.
        speed: of the encoder, where this run or an earlier one measured it.
    """

    def __init__(self, recipe: Recipe, images: Sequence[Sequence[ImageText]], runtime: Runtime) -> None:
        assert recipe.cache is not None
        self.recipe, self.images, self.runtime = recipe, images, runtime
        self.folder = Path(recipe.cache)
        self.index = EncoderIndex(self.folder, recipe)
        self.plans = [ViewPlan(source.views, source.min_area, source.mirror) for source in recipe.data]
        self.stores: list[FeatureStore] = []
        self.speed: EncoderSpeed | None = None
        self._opened: dict[str, FeatureStore] = {}

    def is_complete(self) -> bool:
        """Whether all images that can be read have features of the model's encoder, without reading the model.

        Every process has to call this; all get the same answer.
        """
        marks = [mark for plan in self.plans if (mark := self.index.fingerprint(plan)) is not None]
        here = len(marks) == len(self.plans)
        if here:
            self._open(marks)
            here = not any(self._lacks(source) for source in range(len(marks)))
        lacking = torch.tensor(float(not here), device=self.runtime.device)
        return self.runtime.world.total(lacking).item() == 0

    def complete(
        self, parts: ModelParts, make_encoder: Callable[[], Callable[[Tensor], Tensor]], wait: Callable[[], None]
    ) -> None:
        """Compute what is missing.

        Args:
            make_encoder: gives a function of pixels [B, 3, S, S] to patches [B, N, C].
            wait: returns when all processes have called it.

        Raises:
            OpenBlipError: the disk is full.
        """
        if self.index.origin is None:  # it may just have been downloaded
            self.index = EncoderIndex(self.folder, self.recipe)
        self._open([self._mark(parts, plan) for plan in self.plans])
        world, encoder = self.runtime.world, _Timed(make_encoder, self.runtime.device)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, disable=world.rank > 0) as progress:
            for source, group, plan, store in zip(self.recipe.data, self.images, self.plans, self.stores, strict=True):
                # By their places in the whole list, which is the same in all processes, whatever is on disk already.
                own = [pair.image for pair in group[world.rank :: world.size] if pair.image not in store]
                what = f"features of {printable(source.name)}"
                bar = progress.add_task(what, total=len(own) * world.size, visible=bool(own))
                started = time.perf_counter()
                fill(store, own, encoder, parts.transform, plan, progress=partial(_advance, progress, bar, world.size))
                seconds = time.perf_counter() - started
                wait()
                store.refresh()
                if own and world.rank == 0:
                    progress.console.print(
                        f"{what}: {len(own) * world.size / seconds:.1f} images/s, "
                        f"{size_of(store.nbytes)} in {printable(str(store.folder))}",
                        markup=False,
                        highlight=False,
                    )
        if world.rank == 0:
            self._remember(encoder.speed())

    def _open(self, marks: Sequence[str]) -> None:
        for mark in marks:
            if mark not in self._opened:
                self._opened[mark] = FeatureStore(self.folder / mark)
        self.stores = [self._opened[mark] for mark in marks]
        self.speed = self.index.speed(marks)

    def _lacks(self, source: int) -> bool:
        """Whether an image that can be read has no features."""
        missing = (pair.image for pair in self.images[source] if pair.image not in self.stores[source])
        return any(_problem(image) is None for image in missing)

    def _mark(self, parts: ModelParts, plan: ViewPlan) -> str:
        found = self.index.fingerprint(plan)
        if found is not None:
            return found
        vision, learning = parts.network.vision, self.recipe.vision_blocks
        return fingerprint(vision, parts.transform, plan, vision.upper(learning) if learning else ())

    def _remember(self, speed: EncoderSpeed | None) -> None:
        for plan, store in zip(self.plans, self.stores, strict=True):
            self.index.remember(plan, store.folder.name)
            if speed is not None:
                self.index.remember_speed(store.folder.name, speed)
        self.speed = speed or self.speed


class _Timed:
    """An encoder, made when it is needed first, and how long it takes."""

    def __init__(self, make: Callable[[], Callable[[Tensor], Tensor]], device: torch.device) -> None:
        self.make, self.device = make, device
        self.encode: Callable[[Tensor], Tensor] | None = None
        self.taken: list[tuple[float, int]] = []

    def __call__(self, pixels: Tensor) -> Tensor:
        if self.encode is None:
            self.encode = self.make()
        started = time.perf_counter()
        patches = self.encode(pixels.to(self.device)).cpu()  # which waits for a GPU
        self.taken.append((time.perf_counter() - started, len(pixels)))
        return patches

    def speed(self) -> EncoderSpeed | None:
        """None if the encoder was not needed. The first batch, which is slower, counts only if it is the only one."""
        counted = self.taken[1:] or self.taken
        if not counted:
            return None
        views = sum(count for _, count in counted)
        return EncoderSpeed(sum(seconds for seconds, _ in counted) / views, machine_name(self.device))


def without_unreadable(
    recipe: Recipe, images: Sequence[Sequence[ImageText]], stores: Sequence[FeatureStore]
) -> tuple[list[list[ImageText]], list[BadImage]]:
    """The images that have features, and those that have none because they cannot be read.

    Raises:
        ImageError: one cannot be read, and the recipe says to stop then.
        OpenBlipError: most of a source cannot be read.
    """
    kept: list[list[ImageText]] = []
    bad: list[BadImage] = []
    for source, group, store in zip(recipe.data, images, stores, strict=True):
        wrong = [_bad(pair.image) for pair in group if pair.image not in store]
        if wrong and recipe.on_bad_image is OnBadImage.STOP:
            raise ImageError(str(wrong[0].image), wrong[0].problem)
        if len(wrong) > MAX_UNREADABLE * len(group):
            raise OpenBlipError(
                f"{len(wrong)} of the {len(group)} images of {source.name} cannot be read, as {wrong[0].problem}: "
                "check data_root and the paths in its file"
            )
        bad += wrong
        kept.append([pair for pair in group if pair.image in store])
    return kept, bad


def _advance(progress: Progress, bar: TaskID, processes: int, done: int) -> None:
    progress.update(bar, advance=done * processes)


def _bad(image: ImageFile) -> BadImage:
    return BadImage(image, _problem(image) or "it could not be read when features were computed")


def _problem(image: ImageFile) -> str | None:
    """Why an image cannot be read; None for one that can."""
    try:
        open_image(image)
    except ImageError as error:
        return str(error)
    return None
