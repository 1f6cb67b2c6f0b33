"""When the frames of a video are shown."""

from __future__ import annotations

import bisect
from fractions import Fraction
from typing import Any

AHEAD = 64
"""Packets that are read before one is decoded: more than the frames that a codec puts in another order (at most 32)."""
SNAP = Fraction(1, 50)
"""Seconds between the start of a file's sound and its first frame that count as none."""
TIMES_IN_DECODING_ORDER = frozenset({"avi"})
"""Containers that say when a frame is decoded, not when it is shown."""
BRIEFEST = Fraction(1, 1000)
"""Seconds that a frame lasts at least, where nothing says when the next one comes."""


class Clock:
    """When frames are shown, in seconds since the start of the video.

    The start is that of the container, whose sound may begin before the pictures: subtitles count from there.

    Attributes:
        is_exact: packets say when their frames are shown; False where they say when they are decoded, or nothing.
    """

    def __init__(self, container: Any, stream: Any, microseconds: int) -> None:
        self._sorts = container.format.name in TIMES_IN_DECODING_ORDER
        self.is_exact = not self._sorts
        self._base = Fraction(stream.time_base)
        self._container_start = None if container.start_time is None else Fraction(container.start_time, microseconds)
        self._read: list[int] = []
        self._first: int | None = None
        self._start: Fraction | None = None
        self._next = Fraction(0)
        self._usual = 1 / Fraction(stream.average_rate or 25)

    def add(self, packet: Any) -> None:
        """A packet that was read."""
        if packet.pts is None:
            self.is_exact = False
        elif not packet.is_discard:
            bisect.insort(self._read, packet.pts)

    def span(self, packet: Any) -> tuple[Fraction, Fraction | None] | None:
        """When a packet's frame is shown, and when the next one is, in seconds since the first frame; None: not known.

        Asked for in the order of decoding, when so many packets behind this one are read that the next frame's is
        among them.
        """
        if not self.is_exact or packet.is_discard:
            return None
        if self._first is None:
            self._first = self._read[0]
        if len(self._read) > 4 * AHEAD:
            del self._read[:AHEAD]
        place = bisect.bisect_right(self._read, packet.pts)
        shown = (packet.pts - self._first) * self._base
        return shown, (self._read[place] - self._first) * self._base if place < len(self._read) else None

    def time(self, raw: Any) -> tuple[Fraction, Fraction]:
        """When a decoded frame begins to be shown, and until when it is. Asked for once for each, in order."""
        base = self._base if raw.time_base is None else Fraction(raw.time_base)
        if self._sorts and self._read:
            now = self._read.pop(0) * self._base
        else:
            now = self._next if raw.pts is None else raw.pts * base
        if self._start is None:
            start = self._container_start
            self._start = now if start is None or self._sorts or now - start <= SNAP else start
        lasts = Fraction(raw.duration or 0) * base
        if raw.pts is None and lasts < BRIEFEST:
            lasts = self._usual  # what streams without a container say of it is the tick of a clock, or nothing
        self._next = now + lasts
        return now - self._start, self._next - self._start
