"""What is kept for whoever asks the same again: texts about images, and images of files; those asked for last.

Nothing of it changes a result: texts are those of searches, or of seeds, which give the same for the same pixels again.
All of it is used in the thread of the server's loop.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from openblip.serve.limits import MEGABYTE, Limits
from openblip.serve.model_jobs import Job, Streamed, Write, Written

if TYPE_CHECKING:
    from openblip.images.encoded_image import ReadImage
    from openblip.serve.uploads import Upload

ENTRY, TEXT, TOKEN = 1_000, 500, 120
"""Bytes of an entry, a text and a token as objects of Python, about as much as they take at most."""
QUICK = 2**18
"""Bytes that are told apart so fast that no thread need do it."""


class Kept:
    """Values by their keys, within a bound of bytes and a number."""

    def __init__(self, most_bytes: float, most: float = float("inf")) -> None:
        self.most_bytes = most_bytes
        self.most = most
        self.nbytes = 0
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, key: Hashable | None) -> Any:
        """The value, which counts as asked for now; None where there is none, or no key."""
        if key is None or key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def keep(self, key: Hashable, value: Any, nbytes: int) -> None:
        if key in self._kept:
            self.nbytes -= self._kept.pop(key)[1]
        self._kept[key] = value, nbytes
        self.nbytes += nbytes
        while self._kept and (len(self._kept) > self.most or self.nbytes > self.most_bytes):
            self.nbytes -= self._kept.popitem(last=False)[1][1]


class KeptTexts:
    """Texts that were written about images, for whoever asks the same about the same pixels."""

    def __init__(self, limits: Limits) -> None:
        self._kept = Kept(limits.answers_mb * MEGABYTE, limits.answers)

    @property
    def nbytes(self) -> int:
        return self._kept.nbytes

    def find(self, job: Job, item: Any) -> Written | None:
        found: Written | None = self._kept.find(self._key(job, item))
        return found

    def find_stream(self, job: Job, item: Any) -> tuple[str, Streamed] | None:
        """A text that was streamed, or written at once by the same options."""
        written = self.find(job, item)
        if written is not None and len(written.texts) == 1:
            (one,) = written.texts
            return one.text, Streamed(written.read, written.longest, written.written)
        found: tuple[str, Streamed] | None = self._kept.find((self._key(job, item), Streamed))
        return found

    def keep(self, job: Job, item: Any, result: Any) -> None:
        key = self._key(job, item)
        if key is not None and isinstance(result, Written):
            texts = sum(TEXT + 4 * len(one.text) + TOKEN * len(one.tokens) for one in result.texts)
            self._kept.keep(key, result, texts + _entry(item))

    def keep_stream(self, job: Job, item: Any, text: str, streamed: Streamed) -> None:
        """Keep a text that was streamed to its end; it has no score, so that streams alone get it again."""
        key = self._key(job, item)
        if key is not None:
            self._kept.keep((key, Streamed), (text, streamed), TEXT + 4 * len(text) + _entry(item))

    def _key(self, job: Job, item: Any) -> Hashable | None:
        if not isinstance(job, Write) or not job.repeatable:
            return None
        return job, item.image.key, item.prompts


class KeptUploads:
    """Images as the model takes them, for whoever sends the same bytes again: they need not be decoded."""

    def __init__(self, limits: Limits) -> None:
        self._kept = Kept(limits.uploads_mb * MEGABYTE)
        self._longest = limits.file_bytes if limits.uploads_mb else 0

    @property
    def nbytes(self) -> int:
        return self._kept.nbytes

    async def key(self, upload: Upload) -> bytes | None:
        """By which a file is found; None for one that is not kept."""
        size = len(upload.data)
        if not 0 < size <= self._longest:
            return None
        return _digest(upload.data) if size <= QUICK else await asyncio.to_thread(_digest, upload.data)

    def find(self, key: bytes | None, upload: Upload) -> ReadImage | None:
        found: ReadImage | None = self._kept.find(key)
        return None if found is None else replace(found, source=upload.name)

    def keep(self, key: bytes | None, image: ReadImage) -> None:
        if key is not None:
            self._kept.keep(key, image, image.pixels.nbytes + ENTRY)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _entry(item: Any) -> int:
    return ENTRY + 4 * sum(map(len, item.prompts))
