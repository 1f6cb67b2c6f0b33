"""Videos that tests make: every frame shows its number, so that a test knows which one it got."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

SIZE = (160, 96)
BITS = 12
BLOCK = 24
"""Pixels of the side of a block, of which two rows of six stand for a number."""


def numbered(number: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """A frame that shows its number: bright and dark blocks, which survive any codec; the rest is grey."""
    pixels = np.full((size[1], size[0], 3), 128, dtype=np.uint8)
    for bit in range(BITS):
        row, column = divmod(bit, BITS // 2)
        top, left = row * BLOCK, column * BLOCK
        pixels[top : top + BLOCK, left : left + BLOCK] = 230 if number >> bit & 1 else 25
    return Image.fromarray(pixels)


def number_of(image: Image.Image) -> int:
    """The number that an upright frame shows."""
    pixels = np.asarray(image.convert("L"))
    half = BLOCK // 2
    found = 0
    for bit in range(BITS):
        row, column = divmod(bit, BITS // 2)
        found |= int(pixels[row * BLOCK + half, column * BLOCK + half] > 128) << bit
    return found


def write_video(
    path: Path,
    images: Iterable[Image.Image],
    times: Sequence[Fraction | int] | None = None,
    *,
    codec: str = "libx264",
    rate: int = 25,
    pixels: str = "yuv420p",
    ticks: int = 30_000,
    rotation: int = 0,
    options: dict[str, str] | None = None,
    mux: dict[str, str] | None = None,
    colors: dict[str, int] | None = None,
    sound: tuple[float, float] | None = None,
) -> Path:
    """Encode images.

    Args:
        times: of each image, in seconds; by default `rate` images a second.
        ticks: of a second, for the times.
        colors: attributes of the codec that name its colours.
        sound: the second in which a tone begins, and how long it is.
    """
    with av.open(str(path), "w", options=mux or {}) as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options or {})
        stream.pix_fmt = pixels
        stream.codec_context.time_base = Fraction(1, ticks)
        for name, value in (colors or {}).items():
            setattr(stream.codec_context, name, value)
        tone: Any = container.add_stream("aac", rate=48_000) if sound else None
        first = True
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_image(image).reformat(format=pixels)
            if first:
                stream.width, stream.height = image.size
                if rotation:
                    stream.set_display_rotation(rotation)
                first = False
            time = Fraction(index, rate) if times is None else Fraction(times[index])
            frame.pts, frame.time_base = round(time * ticks), Fraction(1, ticks)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            _add_sound(container, tone, *sound)
    return path


def _add_sound(container: Any, stream: Any, start: float, seconds: float) -> None:
    for block in range(int(seconds * 48_000) // 1024):
        wave = np.sin(np.arange(1024) / 20, dtype=np.float32)[None] * 0.1
        frame = av.AudioFrame.from_ndarray(np.repeat(wave, 2, axis=0), format="fltp", layout="stereo")
        frame.sample_rate = 48_000
        frame.pts, frame.time_base = int(start * 48_000) + block * 1024, Fraction(1, 48_000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())
