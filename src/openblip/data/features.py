"""Features of a frozen image encoder, computed once and kept on disk.

One float16 array [images, views, patches, channels] a data set, memory-mapped, filled in order; a killed
run goes on where it stopped. The folder's name carries a fingerprint of encoder, transform and views, so
features of another encoder are never mistaken for these.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openblip.data.views import make_view
from openblip.errors import ImageError, OpenBlipError
from openblip.images import ImageTransform, load_image, normalise, squash
from openblip.pipeline import read_ahead

Progress = Callable[[int, int], None]

FLUSH_EVERY = 16
"""Batches between flushes to disk: what a kill costs."""


@dataclass(frozen=True)
class ViewPlan:
    """How many views an image gets and how tight crops may be (see `make_view`)."""

    count: int = 1
    min_area: float = 0.5


class FeatureCache:
    """Cached patches of a list of images.

    Attributes:
        names: file names, in the order of the array.
    """

    def __init__(self, array: np.ndarray, names: Sequence[str]) -> None:
        self.array = array
        self.names = tuple(names)
        self._rows = {name: row for row, name in enumerate(self.names)}

    @property
    def views(self) -> int:
        return int(self.array.shape[1])

    def patches(self, names: Sequence[str], views: Sequence[int]) -> Tensor:
        """One view each of some images: float32 [B, N, C]."""
        rows = [self._rows[name] for name in names]
        stacked = np.stack([self.array[row, view] for row, view in zip(rows, views, strict=True)])
        return torch.from_numpy(stacked.astype(np.float32))


def fingerprint(encoder: torch.nn.Module, transform: ImageTransform, plan: ViewPlan) -> str:
    """Twelve hexadecimal digits that change with any weight, size or setting that features depend on."""
    digest = hashlib.sha256(json.dumps([asdict(transform), asdict(plan)]).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


@torch.inference_mode()
def cache_features(
    images: Sequence[Path],
    folder: Path,
    encode: Callable[[Tensor], Tensor],
    transform: ImageTransform,
    plan: ViewPlan,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> FeatureCache:
    """Open the cache in `folder`, computing what is not there yet.

    Args:
        encode: pixels [B, 3, S, S] to patches [B, N, C].
        progress: called with (images done, images in all).

    Raises:
        OpenBlipError: the folder holds features of other images.
        ImageError: an image cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [path.name for path in images]
    index_path, array_path, done_path = folder / "images.json", folder / "features.npy", folder / "done"
    if index_path.exists():
        if json.loads(index_path.read_text()) != names:
            raise OpenBlipError(f"{folder} holds features of other images: delete it or choose another folder")
    else:
        index_path.write_text(json.dumps(names))
    done = int(done_path.read_text()) if done_path.exists() and array_path.exists() else 0
    array = np.load(array_path, mmap_mode="r+") if done else None

    def views_of(path: Path) -> list[np.ndarray[Any, Any]]:
        image = load_image(path)
        views = [make_view(image, path.name, view, plan.min_area) for view in range(plan.count)]
        return [squash(view, transform.image_size) for view in views]

    for batch in read_ahead(images[done:], views_of, batch_size):
        squashed: list[np.ndarray[Any, Any]] = []
        for _, found in batch:
            if isinstance(found, ImageError):
                raise found
            squashed += found
        patches = encode(normalise(squashed, transform)).numpy().astype(np.float16)
        if array is None:
            shape = (len(images), plan.count, *patches.shape[1:])
            array = np.lib.format.open_memmap(array_path, mode="w+", dtype=np.float16, shape=shape)
        array[done : done + len(batch)] = patches.reshape(len(batch), plan.count, *patches.shape[1:])
        done += len(batch)
        if done == len(images) or done % (FLUSH_EVERY * batch_size) == 0:
            array.flush()
            _replace_text(done_path, str(done))
        if progress is not None:
            progress(done, len(images))
    if array is None:
        raise OpenBlipError("there are no images to compute features of: check the annotation file and split")
    return FeatureCache(np.load(array_path, mmap_mode="r"), names)


def _replace_text(path: Path, text: str) -> None:
    """Write so that a kill leaves the old content or the new, never half."""
    draft = path.with_suffix(".draft")
    draft.write_text(text)
    draft.replace(path)
