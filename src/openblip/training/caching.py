"""Features of a recipe's pictures, computed by all processes before the first step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor

from openblip.checkpoints.parts import ModelParts
from openblip.data.features import FeatureStore, ViewPlan, fill, fingerprint
from openblip.data.pairs import ImageText
from openblip.data.pictures import BadPicture, open_picture
from openblip.data.samples import Picture
from openblip.errors import ImageError, OpenBlipError
from openblip.training.recipe import BadPictures, Recipe
from openblip.training.tasks import Setting

MOST = 0.5
"""Share of a source's pictures that cannot be read from which its paths must be wrong."""


def open_stores(
    recipe: Recipe,
    parts: ModelParts,
    images: Sequence[Sequence[ImageText]],
    encode: Callable[[Tensor], Tensor],
    setting: Setting,
    wait: Callable[[], None],
) -> list[FeatureStore]:
    """A store for each data source, with all of its pictures that can be read.

    Args:
        encode: pixels [B, 3, S, S] to patches [B, N, C].
        wait: returns when all processes have called it.

    Raises:
        OpenBlipError: the disk is full.
    """
    assert recipe.cache is not None
    stores = []
    world = setting.world
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=world.rank > 0) as progress:
        for source, group in zip(recipe.data, images, strict=True):
            plan = ViewPlan(source.views, source.min_area)
            store = FeatureStore(Path(recipe.cache) / fingerprint(parts.network.vision, parts.transform, plan))
            missing = [image.image for image in group if image.image not in store]
            if missing:
                bar = progress.add_task(f"features of {source.name}", total=len(missing))
                own = missing[world.rank :: world.size]
                started = time.perf_counter()
                fill(
                    store,
                    own,
                    lambda pixels: encode(pixels.to(setting.device)),
                    parts.transform,
                    plan,
                    progress=partial(_advance, progress, bar, world.size),
                )
                speed = len(missing) / (time.perf_counter() - started)
                progress.console.print(f"features of {source.name}: {speed:.1f} images/s")
                wait()
                store.refresh()
            stores.append(store)
    return stores


def without_bad(
    recipe: Recipe, images: Sequence[Sequence[ImageText]], stores: Sequence[FeatureStore]
) -> tuple[list[list[ImageText]], list[BadPicture]]:
    """The images that have features, and the pictures that have none since they cannot be read.

    Raises:
        ImageError: one cannot be read, and the recipe says to stop then.
        OpenBlipError: most of a source cannot be read.
    """
    kept: list[list[ImageText]] = []
    bad: list[BadPicture] = []
    for source, group, store in zip(recipe.data, images, stores, strict=True):
        wrong = [_problem(image.image) for image in group if image.image not in store]
        if wrong and recipe.bad_pictures is BadPictures.STOP:
            raise ImageError(str(wrong[0].picture), wrong[0].problem)
        if len(wrong) > MOST * len(group):
            raise OpenBlipError(
                f"{len(wrong)} of the {len(group)} pictures of {source.name} cannot be read, as {wrong[0].problem}: "
                "check data_root and the paths in its file"
            )
        bad += wrong
        kept.append([image for image in group if image.image in store])
    return kept, bad


def _advance(progress: Progress, bar: TaskID, processes: int, done: int) -> None:
    progress.update(bar, advance=done * processes)


def _problem(picture: Picture) -> BadPicture:
    try:
        open_picture(picture)
    except ImageError as error:
        return BadPicture(picture, str(error))
    return BadPicture(picture, "it could not be read when features were computed")
