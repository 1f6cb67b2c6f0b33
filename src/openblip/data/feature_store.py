"""Features of a frozen image encoder, computed once and kept on disk.

Each combination of encoder, transform and views has its own folder, named by a fingerprint, so features of different
encoders are never mixed up. The folder holds shards: a float16 array [images, views, patches, channels], and a list of
the images of its rows. A shard is written whole or not at all, so a killed run continues with the features that it
had. Several processes or runs may add to one folder, one at a time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openblip.data.image_files import BadImage, image_key, open_image
from openblip.data.sample import ImageFile
from openblip.data.views import CROPS_FROM, make_view
from openblip.errors import ImageError, OpenBlipError
from openblip.images.prefetch import anything, read_ahead
from openblip.images.transform import ImageTransform, fit, normalize

ROWS, LIST, DRAFT = ".npy", ".json", ".draft"
LOCK_FILE = ".lock"
LARGEST_HALF = float(np.finfo(np.float16).max)
SHARD_BYTES = 64 * 2**20
"""Features of at most this size are lost when a run is killed."""

Rows = np.ndarray[Any, np.dtype[np.float16]]


@dataclass(frozen=True)
class ViewPlan:
    """The views of each image: how many, the smallest crop, and whether half of the crops are mirrored."""

    count: int = 1
    min_area: float = 0.5
    mirror: bool = True

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that features depend on. `mirror` is among them only if it is off and there are crops."""
        unmirrored = {} if self.mirror or self.count <= CROPS_FROM else {"mirror": False}
        return {"count": self.count, "min_area": self.min_area} | unmirrored


class FeatureStore:
    """The features in one folder.

    Attributes:
        broken: truncated shards, which were deleted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broken: list[Path] = []
        self._shards: dict[Path, Rows] = {}
        self._places: dict[str, tuple[Path, int]] = {}
        self._keys: dict[ImageFile, str] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OpenBlipError(self._no_room(error, 0)) from error
        self.refresh()

    def refresh(self) -> None:
        """Look for shards that other processes have written."""
        broken = [path for path in self._unknown() if not self._open(path)]
        if broken:
            # Another process may be replacing it just now: a shard counts as broken only while we hold the lock.
            with suppress(OSError), self._alone():
                for path in broken:
                    if not self._open(path):
                        self.broken.append(path)
                        path.unlink(missing_ok=True)
                        path.with_suffix(LIST).unlink(missing_ok=True)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._places)

    def __contains__(self, image: ImageFile) -> bool:
        return self._key(image) in self._places

    @property
    def nbytes(self) -> int:
        """Size of its features on disk, in bytes."""
        return sum(rows.nbytes for rows in self._shards.values())

    def patches(self, images: Sequence[ImageFile], views: Sequence[int]) -> Tensor:
        """The features of one view of each image: float32 [B, N, C]. Raises OpenBlipError for a missing image.

        Shards that were found once stay readable when the folder is deleted.
        """
        places = []
        for image in images:
            if image not in self:
                raise OpenBlipError(
                    f"{self.folder} has no features of {image}: start the run again, which computes what is missing"
                )
            places.append(self._places[self._key(image)])
        stacked = np.stack([self._shards[path][row, view] for (path, row), view in zip(places, views, strict=True)])
        return torch.from_numpy(stacked.astype(np.float32))

    def add(self, images: Sequence[ImageFile], rows: Rows) -> None:
        """Store the features [images, views, patches, channels] of some images as a shard.

        Raises OpenBlipError when the disk is full; nothing that was there is lost.
        """
        keys = [self._key(image) for image in images]
        try:
            with self._alone():
                self._add_new(keys, rows)
        except OSError as error:
            raise OpenBlipError(self._no_room(error, rows.nbytes)) from error

    def _add_new(self, keys: Sequence[str], rows: Rows) -> None:
        """Write the images that are not stored yet: each image is in one shard only, so its features never change."""
        for path in self._unknown():
            self._open(path)
        new = [row for row, key in enumerate(keys) if key not in self._places]
        if not new:
            return
        if len(new) < len(keys):
            keys, rows = [keys[row] for row in new], rows[new]
        name = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]
        path = self.folder / f"{name}{ROWS}"
        drafts = {path.with_suffix(kind + DRAFT): path.with_suffix(kind) for kind in (ROWS, LIST)}
        for left in self.folder.glob(f"*{DRAFT}"):
            left.unlink(missing_ok=True)  # left by a process that was killed here
        try:
            first, second = drafts
            with first.open("wb") as file:
                np.save(file, rows)
            second.write_text(json.dumps(keys), encoding="utf-8")
            # A shard counts once its list exists, so the list is written last.
            for draft, whole in drafts.items():
                draft.replace(whole)
        except OSError:
            for draft in drafts:
                draft.unlink(missing_ok=True)
            raise
        self._open(path)

    def _alone(self) -> AbstractContextManager[object]:
        """Hold the lock: no other process or run writes to the folder or deletes from it."""
        from filelock import FileLock

        return FileLock(self.folder / LOCK_FILE)

    def _unknown(self) -> list[Path]:
        """Shards that were not opened yet."""
        paths = (path.with_suffix(ROWS) for path in sorted(self.folder.glob(f"*{LIST}")))
        return [path for path in paths if path not in self._shards]

    def _open(self, path: Path) -> bool:
        """Open a shard. Returns whether it is intact."""
        try:
            keys = json.loads(path.with_suffix(LIST).read_text(encoding="utf-8"))
            rows: Rows = np.load(path, mmap_mode="r")
            if rows.shape[0] != len(keys):
                raise ValueError("rows and names differ in number")
            places = {key: (path, row) for row, key in enumerate(keys)}
        except (AttributeError, EOFError, LookupError, OSError, RecursionError, TypeError, ValueError):
            return False
        self._shards[path] = rows
        self._places |= places
        return True

    def check_room(self, needed: int) -> None:
        """Raises OpenBlipError if the disk has less than `needed` free bytes."""
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OpenBlipError(
                f"features in {self.folder} need {needed / 1e9:.1f} GB more, the disk has {free / 1e9:.1f} GB left: "
                "make room, choose another folder with cache=, or have images encoded at every step with cache=null"
            )

    def _no_room(self, error: OSError, size: int) -> str:
        # NumPy reports a full disk by an error without errno.
        if error.errno in (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return (
                f"the disk is full: features in {self.folder} need {size / 1e6:.0f} MB and more. Make room and start "
                "again, what was computed is kept; or have images encoded at every step with cache=null"
            )
        return (
            f"features cannot be written to {self.folder} ({error.strerror or error}): choose another folder with "
            "cache=, or have images encoded at every step with cache=null"
        )

    def _key(self, image: ImageFile) -> str:
        if image not in self._keys:
            self._keys[image] = image_key(image)
        return self._keys[image]


def fingerprint(encoder: torch.nn.Module, transform: ImageTransform, plan: ViewPlan, upper: Sequence[str] = ()) -> str:
    """Sixteen hexadecimal digits that change with any weight, size or setting that features depend on.

    Args:
        upper: names of modules of the encoder that come after the features.
    """
    # Weights alone do not determine the number of heads, the activation or the position codes.
    config = getattr(encoder, "config", None)
    settings = {} if config is None else {key: value for key, value in asdict(config).items() if key != "drop_path"}
    identity: list[Any] = [asdict(transform), plan.identity, settings, *upper]
    digest = hashlib.sha256(json.dumps(identity).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        if name.startswith(tuple(f"{module}." for module in upper)):
            continue
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _require_half(image: ImageFile, patches: np.ndarray[Any, Any]) -> None:
    """Raises OpenBlipError for features that float16, the type of a store, cannot hold."""
    largest = float(np.abs(patches).max(initial=0.0))
    if largest > LARGEST_HALF:
        raise OpenBlipError(
            f"features of {image} reach {largest:.3g}, and float16, in which they are kept, ends at "
            f"{LARGEST_HALF:.3g}: have images encoded at every step with cache=null"
        )
    if math.isnan(largest):
        raise OpenBlipError(f"the image encoder gives no numbers (NaN) for {image}: its weights are broken")


@torch.inference_mode()
def fill(
    store: FeatureStore,
    images: Sequence[ImageFile],
    encode: Callable[[Tensor], Tensor],
    transform: ImageTransform,
    plan: ViewPlan,
    batch_size: int = 16,
    progress: Callable[[int], None] | None = None,
) -> list[BadImage]:
    """Compute the features of images that have none yet; returns the images that cannot be read.

    Args:
        encode: pixels [B, 3, S, S] to patches [B, N, C].
        progress: called with the number of images that are done.

    Raises:
        OpenBlipError: the disk is full, or features are no numbers in float16.
    """
    missing = [image for image in dict.fromkeys(images) if image not in store]
    bad: list[BadImage] = []
    done: list[ImageFile] = []
    rows: list[Rows] = []

    def views_of(image: ImageFile) -> list[np.ndarray[Any, Any]]:
        opened = open_image(image)
        views = [make_view(opened, image.name, view, plan.min_area, plan.mirror) for view in range(plan.count)]
        return [fit(view, transform) for view in views]

    for count, batch in enumerate(read_ahead(missing, views_of, batch_size, in_threads=anything)):
        good = [(image, found) for image, found in batch if not isinstance(found, ImageError)]
        bad += [BadImage(image, str(found)) for image, found in batch if isinstance(found, ImageError)]
        if good:
            pixels = normalize([view for _, views in good for view in views], transform)
            patches = encode(pixels).cpu().numpy()
            patches = patches.reshape(len(good), plan.count, *patches.shape[1:])
            for (image, _), found in zip(good, patches, strict=True):
                _require_half(image, found)
            rows.append(patches.astype(np.float16))
            done += [image for image, _ in good]
            if count == 0:
                store.check_room(rows[0][0].nbytes * len(missing))
        if sum(row.nbytes for row in rows) >= SHARD_BYTES:
            store.add(done, np.concatenate(rows))
            done, rows = [], []
        if progress is not None:
            progress(len(batch))
    if rows:
        store.add(done, np.concatenate(rows))
    return bad
