"""Decoding steps that are captured once and replayed: on a GPU, launching kernels takes longer than running them.

A captured step reads and writes the same memory every time, so there is one for each number of prompts and texts and
each length, both rounded up. Its memory is lent to one generation at a time and comes back when that is over, however
it ends.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from threading import Lock
from typing import TypeAlias

import torch
from torch import Tensor

from openblip.nn.blip2 import OwnLanguageModel
from openblip.nn.language_model import LanguageConfig, Reading, Slots
from openblip.nn.opt import DecoderPrefix
from openblip.nn.static_kv_cache import Fixable, fixed_cache

Step: TypeAlias = Callable[[], Tensor]
"""Makes one step over memory that stays where it is; the scores it returns stay where they are, too."""
Key: TypeAlias = tuple[int, int, int, int]
"""Prompts, texts a prompt, tokens of each prompt and its texts, tokens beside them."""

CAPACITY_STEP = 64
"""Room in fixed memory is a multiple of so many tokens."""
WARM_UPS = 2
"""How often a step is made before it is captured."""
IDLE_BYTES = 2 * 2**30
"""Keys and values, on the device, of captured steps that wait to be used again."""
CAPTURING = Lock()


def capture_on_cuda(step: Step) -> Step:
    """Record the kernels of a step as a CUDA graph."""
    with torch.cuda.device(step().device):
        # In a stream of its own, as libraries choose their kernels and take their memory now.
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the device.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            scores = step()

    def replay() -> Tensor:
        graph.replay()
        return scores

    return replay


class CapturedStep:
    """One captured step and its memory."""

    def __init__(self, key: Key, like: Fixable, capture: Callable[[Step], Step]) -> None:
        prompts, texts, capacity, _ = self.key = key
        device = like.cache.keys.device
        reading = like.fixed(prompts, texts, capacity)
        self.reading = reading
        self.tokens = tokens = torch.zeros(prompts, texts, dtype=torch.int64, device=device)
        self.themselves = torch.arange(texts, device=device).expand(prompts, -1)
        self.parents = parents = self.themselves.clone()
        # No reference to self: memory is to be free as soon as nobody has this.
        self.replay = capture(lambda: reading.step(tokens, parents))


class Graphs:
    """A language model whose texts are written by captured steps; otherwise it is as the one that it is made of.

    Args:
        capture: makes of a step, which it may call a few times, what repeats it.
        idle_bytes: of keys and values that may wait to be used again, beside those used last.
    """

    def __init__(
        self,
        model: OwnLanguageModel,
        capture: Callable[[Step], Step] = capture_on_cuda,
        idle_bytes: int = IDLE_BYTES,
    ) -> None:
        self.model = model
        self.capture = capture
        self.idle_bytes = idle_bytes
        self._idle: list[CapturedStep] = []
        self._lock = Lock()
        # Steps come back from wherever the last reference to their reading ends, amid anything.
        self._returned: SimpleQueue[CapturedStep] = SimpleQueue()

    def __reduce__(self) -> tuple[type[Graphs], tuple[object, ...]]:
        # A copy, in another process perhaps, captures anew.
        return Graphs, (self.model, self.capture, self.idle_bytes)

    @property
    def config(self) -> LanguageConfig:
        return self.model.config

    def embed(self, ids: Tensor) -> Tensor:
        return self.model.embed(ids)

    def hidden_before(self, prompts: Tensor, mask: Tensor | None, labels: Tensor) -> Tensor:
        return self.model.hidden_before(prompts, mask, labels)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.model.logits(hidden)

    def read(self, prompts: Tensor, mask: Tensor | None, new_tokens: int, texts: int = 1) -> tuple[Reading, Tensor]:
        reading, scores = self.model.read(prompts, mask, 0, texts)
        return CapturedReading(self, reading, new_tokens, texts), scores

    def read_prefix(self, embeds: Tensor) -> CapturedPrefix | None:
        prefix = self.model.read_prefix(embeds)
        return None if prefix is None else CapturedPrefix(self, prefix)

    def new_slots(self, texts: int) -> UncapturedSlots:
        """See `LanguageModel.new_slots`. Rows come and go: no step is like another, and none is captured."""
        return UncapturedSlots(self.model.new_slots(texts))

    def lend(self, key: Key, like: Fixable) -> CapturedStep:
        """A captured step, for one reading until it gives it back."""
        with self._lock:
            self._collect()
            for place, step in enumerate(self._idle):
                if step.key == key:
                    return self._idle.pop(place)
        with CAPTURING:
            return CapturedStep(key, like, self.capture)

    def give_back(self, step: CapturedStep) -> None:
        self._returned.put(step)

    @property
    def idle(self) -> tuple[Key, ...]:
        """Steps that wait to be used again, those used last at the end."""
        with self._lock:
            self._collect()
            return tuple(step.key for step in self._idle)

    def _collect(self) -> None:
        while True:
            try:
                self._idle.append(self._returned.get_nowait())
            except Empty:
                break
        while len(self._idle) > 1 and sum(step.reading.cache.nbytes for step in self._idle) > self.idle_bytes:
            del self._idle[0]


class CapturedReading:
    """Prompts that were read, and texts that go on from them by captured steps."""

    def __init__(self, graphs: Graphs, reading: Fixable, new_tokens: int, texts: int) -> None:
        self.graphs = graphs
        self.texts = texts
        self.prompts = reading.cache.batch
        self.room = new_tokens
        self._read: Fixable | None = reading
        self._step: CapturedStep | None = None
        self._give_back: Callable[[], object] | None = None

    def step(self, tokens: Tensor, parents: Tensor | None = None) -> Tensor:
        step = self._step
        if step is None:
            step = self._move(None)
        fixed_cache(step.reading.cache).advance()
        self.room -= 1
        going = tokens.shape[1]  # a captured step goes on with texts that have ended, too
        step.tokens[: self.prompts, :going] = tokens
        own = step.themselves[: self.prompts, :going] if parents is None else parents
        step.parents[: self.prompts, :going] = own
        return step.replay()[: self.prompts, :going].clone()

    def uncaptured(self) -> Reading:
        """What was read, before any text has gone on from it. Raises RuntimeError later."""
        if self._read is None:
            raise RuntimeError("texts go on from this reading already")
        return self._read

    def take_prompts(self, rows: Tensor) -> None:
        self.prompts = len(rows)
        self._move(rows)

    def _move(self, rows: Tensor | None) -> CapturedStep:
        """Go on in the memory of a captured step of the right size."""
        source: Fixable | None = self._read if self._step is None else self._step.reading
        if source is None:
            raise RuntimeError("nothing was read")
        capacity = max(source.cache.length + self.texts * self.room, self.texts * (1 + WARM_UPS))
        key = (
            1 << (self.prompts - 1).bit_length(),
            self.texts,
            -(-capacity // CAPACITY_STEP) * CAPACITY_STEP,
            source.beside,
        )
        step = self.graphs.lend(key, source)
        step.reading.hold(source, rows)
        if self._give_back is not None:
            self._give_back()
        self._read = None
        self._step = step
        self._give_back = finalizer = weakref.finalize(self, self.graphs.give_back, step)
        finalizer.atexit = False
        return step


class UncapturedSlots:
    """Slots that readings join which were to be gone on from by captured steps."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots

    @property
    def nbytes(self) -> int:
        return self.slots.nbytes

    def join(self, reading: Reading) -> None:
        self.slots.join(reading.uncaptured() if isinstance(reading, CapturedReading) else reading)

    def drop(self, rows: Sequence[int]) -> list[int]:
        return self.slots.drop(rows)

    def step(self, tokens: Tensor, parents: Tensor | None = None) -> Tensor:
        return self.slots.step(tokens, parents)


class CapturedPrefix:
    """What prompts begin with, behind which texts are written by captured steps."""

    def __init__(self, graphs: Graphs, prefix: DecoderPrefix) -> None:
        self.graphs = graphs
        self.prefix = prefix

    @property
    def nbytes(self) -> int:
        return self.prefix.nbytes

    def read(self, prompts: Tensor, mask: Tensor | None, new_tokens: int, texts: int = 1) -> tuple[Reading, Tensor]:
        reading, scores = self.prefix.read(prompts, mask, 0, texts)
        return CapturedReading(self.graphs, reading, new_tokens, texts), scores
