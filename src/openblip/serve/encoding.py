"""Images are encoded beside the texts that are being written: on a CPU, in threads of their own, a few at a time.

PyTorch shares an operation among threads and waits for the slowest behind each, which is a wait for whatever else runs
on the processor: a server's uploads, say. Threads that work alone on images of their own wait for nobody.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from openblip.devices import use_threads
from openblip.serve.decoding import Wanted

if TYPE_CHECKING:
    from openblip.images.encoded_image import EncodedImage
    from openblip.models.model import Model

MOST_THREADS = 4
"""Python starts operations one after the other: more threads wait for each other."""
MOST_TOGETHER = 8
"""Images that a thread takes at once: more are hardly faster, and what comes meanwhile waits for them."""

Owner = TypeVar("Owner", bound=Wanted)


@dataclass(eq=False)
class Encoded(Generic[Owner]):
    """What came of images that were encoded together.

    Attributes:
        images: of each owner, or what is wrong.
        seconds: that it took.
        computed: seconds of them that the thread had a processor for: what a batch costs, however busy the machine is.
    """

    owners: list[Owner]
    images: list[EncodedImage | Exception]
    seconds: float
    computed: float


class EncodingThreads(Generic[Owner]):
    """Threads that encode images, and how the processor is shared between them and the thread that writes texts.

    All but the work itself is called in that one thread.

    Args:
        encode: images of owners, in any thread.
        ended: called in any thread, when something has been encoded.
        threads: of PyTorch altogether; None for its own choice.

    Attributes:
        count: of threads; 0 where the one that writes texts encodes, too: on a GPU, with one thread, and where PyTorch
            cannot be told how many threads share the work of one thread.
    """

    def __init__(
        self,
        model: Model,
        encode: Callable[[Sequence[Owner]], list[EncodedImage]],
        ended: Callable[[], None],
        threads: int | None,
    ) -> None:
        self.total = torch.get_num_threads() if threads is None else threads
        self.count = _thread_count(model, self.total)
        self._encode = encode
        self._ended = ended
        self._pool = ThreadPoolExecutor(self.count, "openblip encoder") if self.count else None
        self._under_way: list[list[Owner]] = []
        self._done: list[tuple[list[Owner], Encoded[Owner]]] = []
        self._lock = threading.Lock()
        self._share = 0

    @property
    def owners(self) -> list[Owner]:
        """Whose images are being encoded."""
        return [owner for group in self._under_way for owner in group]

    @property
    def idle(self) -> int:
        return self.count - len(self._under_way)

    def plan(self, wanted: Sequence[Owner], most: int) -> tuple[list[Owner], list[list[Owner]]]:
        """Whose images the caller encodes now, and whose each idle thread does; the others wait.

        Whoever is to see words as they are written is encoded first, and alone, unless the caller has had enough.

        Args:
            most: images at once.
        """
        if not self.count:
            return list(wanted[:most]), []
        busy = {owner.item.image.key for owner in self.owners}
        streamed: dict[Hashable, list[Owner]] = {}
        others: dict[Hashable, list[Owner]] = {}
        for owner in wanted:
            key = owner.item.image.key
            if key not in busy:  # soon known
                (streamed if owner.put is not None else others).setdefault(key, []).append(owner)
        for key in streamed:
            streamed[key] += others.pop(key, [])
        idle = self.idle
        groups = list(streamed.values())
        threads = min(len(groups), idle - 1 if others else idle)
        alone = groups[: max(0, threads)]
        own = groups[len(alone) : len(alone) + 1] if groups else []
        idle -= len(alone)
        rest = list(others.values())
        size = min(MOST_TOGETHER, most, math.ceil(len(rest) / max(1, idle)))
        parts = [rest[start : start + size] for start in range(0, len(rest), size)] if size else []
        return _flat(own), [*alone, *(_flat(part) for part in parts[: max(0, idle)])]

    def begin(self, parts: Sequence[list[Owner]], writing: bool) -> None:
        """Let idle threads encode images of owners, a part each.

        Args:
            writing: whether texts are being written meanwhile.
        """
        if not parts:
            return
        if self._pool is None:
            raise RuntimeError("there are no threads that encode")
        self._under_way += parts
        threads = max(1, self.total // (len(self._under_way) + writing))
        for owners in parts:
            self._pool.submit(self._work, owners, threads)

    def finished(self) -> list[Encoded[Owner]]:
        """What has been encoded since this was asked for last."""
        with self._lock:
            done, self._done = self._done, []
        for owners, _ in done:
            self._under_way = [group for group in self._under_way if group is not owners]
        return [encoded for _, encoded in done]

    def share(self) -> None:
        """Let the calling thread, which writes texts, use what the threads that encode leave of the processor."""
        share = max(1, self.total // (1 + len(self._under_way))) if self.count else 0
        if share != self._share:
            self._share = share
            use_threads(share)

    def end(self) -> list[Owner]:
        """Wait for what is under way, and begin nothing more. Returns whose images were not fetched."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        return self.owners

    def _work(self, owners: list[Owner], threads: int) -> None:
        use_threads(threads)
        encoded = self.encode(owners)
        with self._lock:
            self._done.append((owners, encoded))
        self._ended()

    def encode(self, owners: list[Owner]) -> Encoded[Owner]:
        """Encode images here. Any thread may call this."""
        begun, computed = time.monotonic(), time.thread_time()
        images = _encode_each(self._encode, owners)
        return Encoded(owners, images, time.monotonic() - begun, time.thread_time() - computed)


def _encode_each(
    encode: Callable[[Sequence[Owner]], list[EncodedImage]], owners: Sequence[Owner]
) -> list[EncodedImage | Exception]:
    """Images together, or where that fails each by itself: one that is at fault costs the others nothing."""
    try:
        return list(encode(owners))
    except Exception as error:
        if len(owners) == 1:
            return [error]
    return [image for owner in owners for image in _encode_each(encode, [owner])]


def _flat(groups: Iterable[list[Owner]]) -> list[Owner]:
    return [owner for group in groups for owner in group]


def _thread_count(model: Model, total: int) -> int:
    if model.device.type != "cpu" or model.components.writer is None or total < 2:
        return 0
    # Tried in a thread of its own: the calling one keeps its number.
    with ThreadPoolExecutor(1) as pool:
        return min(MOST_THREADS, total) if pool.submit(use_threads, 1).result() else 0
