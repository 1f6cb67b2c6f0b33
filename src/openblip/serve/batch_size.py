"""How many items of a kind a model takes at once, so that a batch takes no longer than it should."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

KEPT = 0.9
"""What a measurement weighs once the next one comes."""
MOST_KINDS = 64


class BatchSizes:
    """Sizes of batches, learnt from how long batches took.

    The time of a batch is taken as a part that every batch takes and a part for each item, fitted to a moving average.
    A batch is at most twice as large as the largest one of its kind so far.

    Args:
        most: items of a batch at most.
        seconds: that a batch may take.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self.most = most
        self.seconds = seconds
        self._kinds: OrderedDict[Hashable, _Timed] = OrderedDict()

    def size(self, kind: Hashable) -> int:
        """How many items the next batch of a kind may have; at least one."""
        timed = self._kinds.get(kind)
        return 4 if timed is None else max(1, min(self.most, 2 * timed.largest, timed.fitting(self.seconds)))

    def took(self, kind: Hashable, items: int, seconds: float) -> None:
        """A batch of so many items took so long."""
        timed = self._kinds.setdefault(kind, _Timed())
        self._kinds.move_to_end(kind)
        timed.add(items, seconds)
        while len(self._kinds) > MOST_KINDS:
            self._kinds.popitem(last=False)


class _Timed:
    """Moving sums of a straight line through sizes and seconds."""

    def __init__(self) -> None:
        self.largest = 1
        self.weight = self.sizes = self.times = self.squares = self.products = 0.0

    def add(self, size: int, seconds: float) -> None:
        self.largest = max(self.largest, size)
        self.weight = KEPT * self.weight + 1
        self.sizes = KEPT * self.sizes + size
        self.times = KEPT * self.times + seconds
        self.squares = KEPT * self.squares + size * size
        self.products = KEPT * self.products + size * seconds

    def fitting(self, seconds: float) -> int:
        """The largest size whose time is within these seconds."""
        size, time = self.sizes / self.weight, self.times / self.weight
        spread = self.squares / self.weight - size * size
        each = time / size
        if spread > 0.05:
            # A slope below zero, or a line that starts below zero, is noise.
            slope = (self.products / self.weight - size * time) / spread
            each = min(each, max(slope, 0.02 * each))
        start = time - each * size
        return int((seconds - start) / each) if each > 0 else 2**31
