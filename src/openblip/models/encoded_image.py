"""What was computed for the images seen last, so that the next question about one does not look at it again."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock

from torch import Tensor

from openblip.errors import OptionError
from openblip.generation.prefix import Prefix

DEFAULT_BYTES = 256 * 2**20
"""For a BLIP-2 with OPT 2.7B in float32, 800 images, or 12 that several questions were asked about."""


@dataclass(frozen=True, eq=False)
class SeenImage:
    """What the language model reads of an image.

    Attributes:
        key: the same for the same pixels, wherever they came from.
        prefix: the visual prompt, and once several prompts stood behind it its keys and values in a decoder.
    """

    key: bytes
    prefix: Prefix


class ImageCache:
    """Seen images by their content, those used last within a bound of bytes; threads may share it.

    Args:
        limit: bytes of visual prompts, keys and values, on the model's device; 0 keeps nothing.

    Raises:
        OptionError: a limit below 0.
    """

    def __init__(self, limit: int = DEFAULT_BYTES) -> None:
        if limit < 0:
            raise OptionError(f"image_cache is {limit} bytes: give 0 or more")
        self.limit = limit
        self._lock = Lock()
        self._kept: OrderedDict[bytes, tuple[SeenImage, int]] = OrderedDict()
        self._nbytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __reduce__(self) -> tuple[type[ImageCache], tuple[int]]:
        # A copy of the model, in another process perhaps, starts with none: a lock cannot be copied.
        return ImageCache, (self.limit,)

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def look(self, pixels: Tensor, see: Callable[[Tensor], Sequence[Prefix]]) -> list[SeenImage]:
        """What was computed for each image, or is computed now: once for images that are alike.

        Args:
            pixels: [B, 3, H, W] float32 on the CPU, as the image encoder takes them.
            see: called with the pixels of images that are not kept, if there are any.
        """
        keys = [_content_key(image) for image in pixels]
        found: dict[bytes, SeenImage] = {}
        with self._lock:
            for key in keys:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    found[key] = self._kept[key][0]
        missing = {key: row for row, key in enumerate(keys) if key not in found}
        if missing:
            for key, prefix in zip(missing, see(pixels[list(missing.values())]), strict=True):
                found[key] = SeenImage(key, prefix)
                self.keep(found[key])
        return [found[key] for key in keys]

    def keep(self, seen: SeenImage) -> None:
        """Keep an image, or measure it anew after it was used, and let go of those unused the longest."""
        size = seen.prefix.nbytes
        with self._lock:
            self._drop(seen.key)
            if size > self.limit:
                return
            self._kept[seen.key] = seen, size
            self._nbytes += size
            while self._nbytes > self.limit:
                self._drop(next(iter(self._kept)))

    def clear(self) -> None:
        """Let go of all images: when the model's weights were changed, or to free memory."""
        with self._lock:
            self._kept.clear()
            self._nbytes = 0

    def _drop(self, key: bytes) -> None:
        if key in self._kept:
            self._nbytes -= self._kept.pop(key)[1]


def _content_key(pixels: Tensor) -> bytes:
    # Pixels as the encoder takes them: what differs in the file alone is the same image, and a large photo costs no
    # more to tell apart than a small one.
    return hashlib.blake2b(pixels.numpy().tobytes(), digest_size=16).digest()
