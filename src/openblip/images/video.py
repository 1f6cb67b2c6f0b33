"""Images of a video with their times: every so many seconds, or one for each scene.

>>> for seconds, image in read_frames("clip.mp4", every=1.0):
...     print(seconds, image.size)
"""

from __future__ import annotations

import math
import os
import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from typing import TYPE_CHECKING

from openblip.errors import ImageError, OptionError
from openblip.images.frame_hash import HASH_SIDE, frame_hash, is_same_view
from openblip.images.scenes import GREY_HEIGHT, GREY_WIDTH, SceneDetector
from openblip.images.video_decode import VideoFile, VideoFrame
from openblip.images.video_frame import upright_image

if TYPE_CHECKING:
    from PIL import Image

SHORTEST = 0.001
LONGEST = 86_400.0


@dataclass(frozen=True, eq=False)
class View:
    """What is seen for a while, as one image stands for it.

    Attributes:
        start, end: seconds since the start of the video.
        time: that of the image.
        image: upright, RGB.
    """

    start: float
    end: float
    time: float
    image: Image.Image


def read_frames(path: str | os.PathLike[str], every: float = 1.0) -> Iterator[tuple[float, Image.Image]]:
    """The images that a player shows at 0, `every`, 2 x `every`, ... seconds after the first one.

    Each is upright, in the shape of its display (pixels of DVDs are not square), RGB, transparency over white. It comes
    with the time at which it begins to be shown, in seconds since the start of the video, which is that of the sound if
    this begins earlier. An image that stays for longer than `every` comes once.

    Frames are decoded one by one and let go of, however long the video is.

    Args:
        path: a file on the disk.
        every: seconds.

    Raises:
        ImageError: the file is no video, or cannot be read. If it is damaged or cut short, this comes behind all
            images that can be read.
        OptionError: `every` is no number of seconds from 0.001 to 86,400.
        OpenBlipError: PyAV is not installed (`pip install "openblip[video]"`).
    """
    interval = checked_interval(every)
    return _times_and_images(path, interval)


def _times_and_images(path: str | os.PathLike[str], interval: Fraction) -> Iterator[tuple[float, Image.Image]]:
    notes: deque[str] = deque()
    with VideoFile(path, notes.append) as video:
        try:
            for frame in sampled(video, interval):
                while notes:
                    warnings.warn(notes.popleft(), stacklevel=2)
                yield float(frame.time), upright_image(frame)
        finally:
            while notes:
                warnings.warn(notes.popleft(), stacklevel=2)


def views_every(video: VideoFile, every: float, least: int | None = None) -> Iterator[View]:
    """The video in parts, each as long as what is seen stays nearly the same; looked at every so many seconds.

    Args:
        least: images are made smaller by a whole factor, if their shorter side is still at least so many pixels then.

    Raises:
        ImageError: behind the last view, as `VideoFile.frames`.
    """
    found = _UpToFault(sampled(video, checked_interval(every)))
    shown: tuple[VideoFrame, bytes] | None = None
    for frame in found:
        seen = frame_hash(video.colors(frame, HASH_SIDE, HASH_SIDE))
        if shown is not None and is_same_view(shown[1], seen):
            continue
        if shown is not None:
            yield _view(shown[0].time, frame.time, shown[0], least)
        shown = frame, seen
    if shown is not None:
        yield _view(shown[0].time, max(video.end, shown[0].time), shown[0], least)
    found.raise_fault()


def scenes(video: VideoFile, least: int | None = None) -> Iterator[View]:
    """The scenes of a video, each with an image from its second quarter; see `openblip.images.scenes`.

    Args:
        least: as of `views_every`.

    Raises:
        ImageError: behind the last scene, as `VideoFile.frames`.
    """
    found = _UpToFault(video.frames())
    detector = SceneDetector()
    scene: _Scene | None = None
    for frame in found:
        start = detector.add(float(frame.time), video.grey(frame, GREY_WIDTH, GREY_HEIGHT))
        if scene is None:
            scene = _Scene(float(frame.time))
        elif start is not None:
            yield scene.view(start, least)
            scene = _Scene(start)
        scene.add(frame)
    if scene is not None:
        yield scene.view(float(video.end), least)
    found.raise_fault()


def sampled(video: VideoFile, every: Fraction) -> Iterator[VideoFrame]:
    """The frames that are shown at 0, every, 2 x every, ... seconds after the first one, each once.

    Raises:
        ImageError: behind the last frame, as `VideoFile.frames`.
    """

    def wanted(time: Fraction, end: Fraction | None) -> bool:
        return end is None or _next_target(time, every) < end

    found = _UpToFault(video.frames(wanted))
    shown: VideoFrame | None = None
    first = Fraction(0)
    for frame in found:
        if shown is None:
            first = frame.time
        elif wanted(shown.time - first, frame.time - first):
            yield shown
        shown = frame
    # The last one lasts as long as it says; one that says nothing is there at its own time.
    if shown is not None and _next_target(shown.time - first, every) < max(
        video.end - first, shown.time - first + Fraction(1, 10**9)
    ):
        yield shown
    found.raise_fault()


def checked_interval(every: object) -> Fraction:
    """Raises OptionError for what is no number of seconds, or too small or large a one."""
    if isinstance(every, bool) or not isinstance(every, Real) or not math.isfinite(every):
        raise OptionError(f"every is {every!r}: it must be a number of seconds")
    seconds = float(every)
    if not SHORTEST <= seconds <= LONGEST:
        raise OptionError(f"every is {every}: it must be from {SHORTEST} to {LONGEST:,.0f} seconds")
    return Fraction(seconds).limit_denominator(10**6)


def _next_target(time: Fraction, every: Fraction) -> Fraction:
    """The first multiple of `every` from `time` on."""
    return -(-time // every) * every


def _view(start: Fraction | float, end: Fraction | float, frame: VideoFrame, least: int | None) -> View:
    image = upright_image(frame)
    if least is not None and (factor := _factor(*image.size, least)) > 1:
        image = image.reduce(factor)
    return View(float(start), float(end), float(frame.time), image)


def _factor(width: int, height: int, least: int) -> int:
    """The greatest that leaves the shorter side at least so long, and of which both sides are multiples."""
    both = math.gcd(width, height)
    return next(one for one in range(max(1, min(width, height) // least), 0, -1) if both % one == 0)


class _Scene:
    """A scene that goes on: frames of it from which the one in its second quarter can be chosen whenever it ends."""

    def __init__(self, start: float) -> None:
        self._start = start
        self._kept: deque[tuple[float, VideoFrame]] = deque(maxlen=5)
        self._due = 0.0

    def add(self, frame: VideoFrame) -> None:
        since = float(frame.time) - self._start
        if since >= self._due:
            self._kept.append((since, frame))
            self._due = max(2 * since, 0.05)

    def view(self, end: float, least: int | None) -> View:
        half = (end - self._start) / 2
        early = [frame for since, frame in self._kept if since <= half]
        frame = early[-1] if early else self._kept[0][1]
        return _view(self._start, end, frame, least)


class _UpToFault:
    """Frames up to the fault of a video, which is raised when their user has made what he can of them."""

    def __init__(self, frames: Iterator[VideoFrame]) -> None:
        self._frames = frames
        self._fault: ImageError | None = None

    def __iter__(self) -> Iterator[VideoFrame]:
        try:
            yield from self._frames
        except ImageError as error:
            self._fault = error

    def raise_fault(self) -> None:
        if self._fault is not None:
            raise self._fault
