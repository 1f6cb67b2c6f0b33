"""Where the scenes of a video begin, from small grey frames alone.

The measure is the mean absolute difference of two frames in grey at 64 x 36, in levels of 255. A scene begins

- at a cut: a frame differs from the one before it by 15 at least and three times as much as frames did of late, and
  the frame behind it still does, or else it was a flash, and shows something else, not the same in another light;
- in the middle of a dissolve: within two and a half seconds one picture has become another, and the pixels went
  straight from one value to the other, through the mean of both. Under a moving camera they go up and down, a way
  much longer than the change; where a picture only grows lighter or darker, both ends are alike (they correlate);
- in the middle of what is blank between two scenes: fades out and in.

Scenes shorter than half a second belong to the one before. Noise and motion make no scenes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

GREY_WIDTH, GREY_HEIGHT = 64, 36
CUT = 15.0
"""Levels between two frames that may be a cut."""
CUT_RATIO = 3.0
"""Times the usual difference of late."""
USUAL_FRAMES = 12
DISSOLVED = 15.0
"""Levels between two frames that may be the two ends of a dissolve."""
STRAIGHT = 0.8
"""The change by the way of the pixels; 1 is a dissolve of one still picture into another."""
MIXED = 0.25
"""The part of the change by which the frame in the middle of a dissolve differs from the mean of its ends."""
ALIKE = 0.7
"""The correlation of two frames from which on they show the same, however bright."""
SETTLED = 0.5
"""A dissolve is over when frames differ by less than this part of what they did at most."""
LONGEST_DISSOLVE = 2.5
STEP = 0.1
"""Seconds between the frames that are compared for dissolves: noise would lengthen the way of the pixels in each."""
MOST_NOISE = 3.0
"""Levels by which frames of a still picture differ at most; more is motion."""
SHORTEST_SCENE = 0.5
BLANK = 8.0
"""Levels between the 5th and the 95th percentile of a frame that shows nothing."""
SHORTEST_BLANK = 0.12
"""Seconds; what is blank for less is a flash."""


@dataclass(frozen=True, eq=False)
class _Seen:
    """A frame: its time in seconds, its levels [36, 64] as int16, and its difference from the one before."""

    time: float
    levels: np.ndarray[Any, Any]
    difference: float

    @cached_property
    def spread(self) -> float:
        import numpy as np

        low, high = np.percentile(self.levels, (5, 95))
        return float(high - low)


class SceneDetector:
    """Finds scenes in frames that are given to it one by one. It keeps less than three seconds of them."""

    def __init__(self) -> None:
        self._start: float | None = None
        self._last: _Seen | None = None
        self._usual: deque[float] = deque(maxlen=USUAL_FRAMES)
        self._cut: tuple[_Seen, _Seen] | None = None
        self._blank_since: float | None = None
        self._steps: deque[_Seen] = deque()

    def add(self, time: float, grey: np.ndarray[Any, Any]) -> float | None:
        """The start of a new scene, in seconds, if this frame shows that there is one.

        It is that of the frame before for a cut, and earlier for dissolves and fades.

        Args:
            time: seconds, later than the frame before.
            grey: uint8 [36, 64].
        """
        import numpy as np

        levels = grey.astype(np.int16)
        before = self._last
        seen = self._last = _Seen(time, levels, 0.0 if before is None else _difference(levels, before.levels))
        if self._start is None:
            self._start = time
        if self._cut is not None:
            return self._judged_cut(seen)
        usual = sum(self._usual) / len(self._usual) if self._usual else 0.0
        if before is not None and seen.difference >= max(CUT, CUT_RATIO * usual):
            self._cut = before, seen
            return None
        self._usual.append(seen.difference)
        is_blank, start = self._blank(seen)
        if is_blank:
            self._steps.clear()
            return None
        return start if start is not None else self._dissolve(seen)

    def _judged_cut(self, seen: _Seen) -> float | None:
        if self._cut is None:
            return None
        before, suspect = self._cut
        self._cut = None
        if _difference(seen.levels, before.levels) < CUT / 2 or _correlation(seen.levels, before.levels) > ALIKE:
            self._usual.append(suspect.difference)
            return None
        self._usual.clear()
        return self._begin(suspect.time)

    def _blank(self, seen: _Seen) -> tuple[bool, float | None]:
        """Whether a frame shows nothing; and the start of a scene that comes behind such frames."""
        if seen.spread < BLANK:
            if self._blank_since is None:
                self._blank_since = seen.time
            return True, None
        since, self._blank_since = self._blank_since, None
        # A video may begin with black: what follows is its first scene.
        if since is None or since == self._start or seen.time - since < SHORTEST_BLANK:
            return False, None
        return False, self._begin((since + seen.time) / 2)

    def _dissolve(self, seen: _Seen) -> float | None:
        """The middle of a dissolve that has ended."""
        steps = self._steps
        if steps and seen.time - steps[-1].time < STEP * 0.999:
            return None
        steps.append(_Seen(seen.time, seen.levels, _difference(seen.levels, steps[-1].levels) if steps else 0.0))
        while seen.time - steps[0].time > LONGEST_DISSOLVE:
            steps.popleft()
        frames = list(steps)
        differences = [one.difference for one in frames[1:]]
        if len(frames) < 4 or differences[-1] > SETTLED * max(differences):
            return None
        noise = min(MOST_NOISE, *differences)
        best: tuple[float, int] = (0.0, 0)
        way = 0.0
        for index in range(len(frames) - 2, -1, -1):
            way += frames[index + 1].difference - noise
            if way < DISSOLVED:
                continue
            change = _difference(seen.levels, frames[index].levels) - noise
            if change >= max(DISSOLVED, STRAIGHT * way, best[0]):
                best = change, index
        change, index = best
        if not change or frames[index].spread < 2 * BLANK or _correlation(frames[index].levels, seen.levels) > ALIKE:
            return None
        half = next(one for one in frames[index:] if _difference(one.levels, frames[index].levels) >= change / 2)
        if _difference(half.levels, (frames[index].levels + seen.levels) / 2) > MIXED * change:
            return None
        return self._begin(half.time)

    def _begin(self, time: float) -> float | None:
        """A scene begins: nothing before counts any more."""
        self._steps.clear()
        if self._start is not None and time - self._start < SHORTEST_SCENE:
            return None
        self._start = time
        return time


def _difference(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    return float(abs(one - other).mean())


def _correlation(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    first, second = one - one.mean(), other - other.mean()
    scale = float((first**2).sum() * (second**2).sum()) ** 0.5
    return float((first * second).sum()) / scale if scale else 1.0
