"""Whatever a step is shown, what is said of left and right is true of it."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from openblip.data.feature_store import FeatureStore, ViewPlan, fill
from openblip.data.pairs import DataSource, ImageText
from openblip.data.sources.open import tar_paths
from openblip.images.transform import ImageTransform
from openblip.training.input.batches import BatchPlan
from openblip.training.input.loader import BatchLoader, FeatureLoader, ImageLoader
from openblip.training.input.streaming import StreamedTars, StreamLoader
from openblip.training.parallel.processes import ALONE
from openblip.training.recipe import Recipe, Stage
from tests.data.tiny_images import write_tar

TRANSFORM = ImageTransform(16)
CAPTION = "it is brighter on the right side"
OTHER = "it is brighter on the left side"
Make = Callable[[list[ImageText], DataSource], BatchLoader]


def png(number: int) -> bytes:
    """Brighter towards the right; of several shapes, on which the draws of a crop depend."""
    width, height = 40 + 7 * (number % 5), 50 - 6 * (number % 4)
    row = np.linspace(0, 255, width).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.broadcast_to(row[None, :, None], (height, width, 3)))).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> list[ImageText]:
    for number in range(20):
        (tmp_path / f"{number:02}.png").write_bytes(png(number))
    return [ImageText(path, (CAPTION,)) for path in sorted(tmp_path.glob("*.png"))]


def columns(pixels: Tensor) -> Tensor:
    """An encoder [B, 3, S, S] to [B, S, 3] that keeps which side is brighter."""
    return pixels.mean(dim=2).transpose(1, 2)


def seen(loader: BatchLoader, epochs: int = 8) -> Counter[tuple[bool, str]]:
    """How often the right side was brighter, or not, with which caption."""
    found: Counter[tuple[bool, str]] = Counter()
    for epoch in range(epochs):
        for rows, views in islice(loader.batches(epoch, 0), loader.steps):
            assert views is not None
            patches = views.patches if views.patches is not None else columns(views.pixels)
            brightness = patches.float().mean(dim=2)
            for drawn, row in zip(rows, brightness, strict=True):
                found[bool(row[-1] > row[0]), drawn.pair.captions[0]] += 1
    return found


def cached(images: list[ImageText], source: DataSource) -> BatchLoader:
    store = FeatureStore(images[0].image.parent / source.name)
    plan = ViewPlan(source.views, source.min_area, source.mirror)
    fill(store, [each.image for each in images], columns, TRANSFORM, plan)
    return FeatureLoader(BatchPlan([source], [images], 5, seed=1), [store])


def fresh(images: list[ImageText], source: DataSource) -> BatchLoader:
    return ImageLoader(BatchPlan([source], [images], 5, seed=1), [source], TRANSFORM)


def streamed(images: list[ImageText], source: DataSource) -> BatchLoader:
    folder = images[0].image.parent
    for each in images:
        each.image.with_suffix(".txt").write_text(CAPTION)
    files = sorted(path for path in folder.iterdir() if path.suffix in (".png", ".txt"))
    write_tar(folder / "a.tar", {path.name: path.read_bytes() for path in files})
    table = DataSource("web", table="*.tar", stream=True, rows=20, mirror=source.mirror)
    recipe = Recipe(Stage.STAGE1, "out", [table], data_root=str(folder), init="x", cache=None, batch_size=5)
    supply = StreamedTars(table, tar_paths(table, folder))
    return StreamLoader(recipe, [supply], TRANSFORM, lambda image: bool(image.captions), ALONE)


@pytest.mark.parametrize("make", [cached, fresh, streamed])
def test_a_mirrored_image_is_described_as_it_is_seen(images: list[ImageText], make: Make) -> None:
    found = seen(make(images, DataSource("a", views=8)))
    assert set(found) == {(True, CAPTION), (False, OTHER)}
    assert min(found.values()) > 40  # of 160
    upright = seen(make(images, DataSource("b", views=8, mirror=False)))
    assert upright == {(True, CAPTION): 160}


def test_a_run_whose_features_are_on_disk_outlives_its_images(images: list[ImageText]) -> None:
    loader = cached(images, DataSource("a", views=8))
    assert sum(seen(loader, epochs=1).values()) == 20
    for each in images:
        assert isinstance(each.image, Path)
        each.image.write_bytes(b"")
    found = seen(loader)
    assert sum(found.values()) == 160
