"""Images as a model has encoded them, and the one cache of them: whatever is asked of an image, it is encoded once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar
from uuid import UUID, uuid4

import torch
from torch import Tensor

from openblip.errors import ImageError, OptionError, whole_number
from openblip.images.prefetch import is_settled, read_ahead
from openblip.images.sources import ImageSource, describe_source, image_list
from openblip.images.transform import ImageTransform, load_square, normalize

if TYPE_CHECKING:
    import numpy as np

DEFAULT_BYTES = 256 * 2**20
"""For a BLIP-2 with a ViT-g and OPT 2.7B in float32, 140 images, or 12 that several questions were asked about."""

ImageInput: TypeAlias = "ImageSource | EncodedImage"
"""Whatever a model takes as an image."""

Result = TypeVar("Result")


class EncodedImage:
    """An image as one model has encoded it, accepted by this model, and by copies of it, wherever an image is.

    It can be pickled: what the model computes from its features is left out, and computed again.

    Attributes:
        key: the same for the same pixels, wherever they came from.
        features: what the image encoder gave: [N, image width], on the model's device.
        source: path, address or description of the image.
        encoder: identity of the encoder that encoded it.
    """

    def __init__(self, key: bytes, features: Tensor, source: str, encoder: UUID) -> None:
        self.key = key
        self.features = features
        self.source = source
        self.encoder = encoder
        self.derived: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"EncodedImage({self.source!r}, features={list(self.features.shape)})"

    def __reduce__(self) -> tuple[type[EncodedImage], tuple[bytes, Tensor, str, UUID]]:
        # What was derived refers to the network.
        return EncodedImage, (self.key, self.features, self.source, self.encoder)

    @property
    def nbytes(self) -> int:
        """Memory of the features and of what was derived from them by now."""
        # A list, which is made in one step: another thread may derive something meanwhile.
        return self.features.nbytes + int(sum(value.nbytes for value in list(self.derived.values())))


@dataclass(frozen=True, eq=False)
class EncodedBatch:
    """Images that were encoded together.

    Attributes:
        names: path, address or description of each source.
        errors: for each source what is wrong with it, or None.
        images: of the sources without an error.
    """

    names: list[str]
    errors: list[ImageError | None]
    images: list[EncodedImage]

    def whole(self) -> list[EncodedImage]:
        """The images of all sources; the first error, if there is one, is raised."""
        for error in self.errors:
            if error is not None:
                raise error
        return self.images

    def join(self, results: Iterable[Result]) -> Iterator[tuple[str, Result | ImageError]]:
        """The name of each source with its result, of which there is one an image, or with its error."""
        remaining = iter(results)
        for name, error in zip(self.names, self.errors, strict=True):
            yield name, next(remaining) if error is None else error


@dataclass(frozen=True, eq=False)
class ReadImage:
    """An image before it is encoded: its pixels as the encoder takes them, uint8 [S, S, 3], and their key.

    Attributes:
        key: the same for the same pixels, wherever they came from.
        source: path, address or description of the image.
    """

    pixels: np.ndarray[Any, Any]
    key: bytes
    source: str


class ImageCache:
    """Encoded images by their content, those used last within a bound of bytes; threads may share it.

    Args:
        limit: bytes of features, keys and values, on the model's device; 0 keeps nothing.

    Raises:
        OptionError: a limit that is no whole number, or below 0.
    """

    def __init__(self, limit: int = DEFAULT_BYTES) -> None:
        self.limit = whole_number("image_cache", limit, 0, "a number of bytes, 0 or more")
        self._lock = Lock()
        self._kept: OrderedDict[bytes, tuple[EncodedImage, int]] = OrderedDict()
        self._nbytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __reduce__(self) -> tuple[type[ImageCache], tuple[int]]:
        # A copy of the model, in another process perhaps, starts with none: a lock cannot be copied.
        return ImageCache, (self.limit,)

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def find(self, key: bytes) -> EncodedImage | None:
        """The image with this content, which counts as used now."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def keep(self, image: EncodedImage) -> None:
        """Keep an image, or measure it anew after it was used, and let go of those unused the longest."""
        size = image.nbytes
        with self._lock:
            if image.key in self._kept:
                self._nbytes -= self._kept.pop(image.key)[1]
            if size > self.limit:
                return
            self._kept[image.key] = image, size
            self._nbytes += size
            while self._nbytes > self.limit:
                _, (_, least_used) = self._kept.popitem(last=False)
                self._nbytes -= least_used

    def clear(self) -> None:
        """Let go of all images: when the model's weights were changed, or to free memory."""
        with self._lock:
            self._kept.clear()
            self._nbytes = 0


class CachedEncoder:
    """A model's image encoder behind its cache.

    Args:
        encode: pixels [B, 3, S, S] float32 on the CPU to features [B, N, image width] on the model's device.
        transform: of images to the pixels that it takes.

    Attributes:
        identity: the same for copies of this encoder, in other processes, too.
    """

    def __init__(self, encode: Callable[[Tensor], Tensor], transform: ImageTransform, cache: ImageCache) -> None:
        self.encode_pixels = encode
        self.transform = transform
        self.cache = cache
        self.identity = uuid4()

    def encode(self, source: ImageInput) -> EncodedImage:
        """Raises ImageError when the image cannot be read, OptionError when another model has encoded it."""
        return self.encode_read([self._read(source)])[0]

    def batches(self, sources: ImageInput | Iterable[ImageInput], batch_size: int) -> Iterator[EncodedBatch]:
        """Images in order, `batch_size` at a time, the next ones being read while the caller computes.

        Sources are taken, in the caller's thread, as far ahead as `openblip.images.prefetch.read_ahead` says.
        """
        for batch in read_ahead(image_list(sources), self._read, batch_size, _may_wait):
            yield EncodedBatch(
                [describe_source(source) if isinstance(found, ImageError) else found.source for source, found in batch],
                [found if isinstance(found, ImageError) else None for _, found in batch],
                self.encode_read([found for _, found in batch if not isinstance(found, ImageError)]),
            )

    def read(self, source: ImageSource, name: str | None = None) -> ReadImage:
        """The part of encoding that needs no model: any thread may decode an image, for another to encode it.

        Args:
            name: of the image in errors; by default what `describe_source` says.

        Raises:
            ImageError: the image cannot be read.
        """
        name = describe_source(source) if name is None else name
        pixels = load_square(source, self.transform, name)
        # Of the pixels as the encoder takes them: what differs in the file alone is the same image, and a large photo
        # costs no more to tell apart than a small one.
        # SHA-256, as processors compute it several times as fast as other digests that no two images share.
        return ReadImage(pixels, hashlib.sha256(pixels.data).digest(), name)

    def encode_read(self, found: Sequence[EncodedImage | ReadImage]) -> list[EncodedImage]:
        """Images that were read, encoded as one batch: each content once, and only what the cache does not have."""
        encoded: dict[bytes, EncodedImage] = {}
        missing: dict[bytes, ReadImage] = {}
        for one in found:
            kept = one if isinstance(one, EncodedImage) else self.cache.find(one.key)
            if kept is not None:
                encoded[one.key] = kept
            elif isinstance(one, ReadImage):
                missing.setdefault(one.key, one)
        if missing:
            with torch.inference_mode():
                features = self.encode_pixels(normalize([one.pixels for one in missing.values()], self.transform))
                for (key, one), row in zip(missing.items(), features, strict=True):
                    # Cloned: a row of the batch would keep the memory of all of it.
                    encoded[key] = EncodedImage(key, row.clone(), one.source, self.identity)
                    self.cache.keep(encoded[key])
        return [encoded[one.key] for one in found]

    def _read(self, source: ImageInput) -> EncodedImage | ReadImage:
        if isinstance(source, EncodedImage):
            if source.encoder != self.identity:
                raise OptionError(f"another model has encoded {source.source}: use encode_image of this one")
            return source
        return self.read(source)


def _may_wait(source: object) -> bool:
    return isinstance(source, EncodedImage) or is_settled(source)
