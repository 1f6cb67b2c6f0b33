"""A decoded frame of a video -> the image that a player shows: upright, in its shape and colours, RGB."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openblip.images.rgb import to_rgb
from openblip.images.video_decode import VideoFrame

if TYPE_CHECKING:
    from PIL import Image

UNSPECIFIED = 2
"""FFmpeg's number of a colour matrix that the video does not name (ITU-T H.273)."""
HD_WIDTH, SD_HEIGHT = 1280, 576
"""From this width on, or above this height, videos that do not name their colour matrix have that of HD (BT.709), by
the convention of players; FFmpeg's scaler takes that of SD (BT.601) for all."""
MOST_STRETCHED = 16
"""Pixels that are said to be longer than so many times their height are taken as squares."""


def upright_image(frame: VideoFrame) -> Image.Image:
    """A new RGB image of a frame.

    It is turned as the camera was, transparency is laid over white, of two interlaced fields the first is shown, and
    pixels that are no squares are stretched to their width. HDR is not tone-mapped.
    """
    import numpy as np
    from PIL import Image

    raw = frame.raw
    is_hd = raw.width >= HD_WIDTH or raw.height > SD_HEIGHT
    matrix = {"src_colorspace": "itu709"} if raw.colorspace == UNSPECIFIED and is_hd else {}
    if any(component.is_alpha for component in raw.format.components):
        image = to_rgb(Image.fromarray(raw.to_ndarray(format="rgba", **matrix), "RGBA"), "a frame")
    else:
        image = raw.to_image(**matrix)
    width, height = image.size
    if raw.interlaced_frame and height >= 4:
        # Two moments are woven line by line into such a frame; a player shows one after the other.
        field = Image.fromarray(np.asarray(image)[::2])
        image = field.resize((width, height), Image.Resampling.BICUBIC)
    if frame.pixel_shape != 1 and 1 / MOST_STRETCHED <= frame.pixel_shape <= MOST_STRETCHED:
        image = image.resize((max(1, round(width * frame.pixel_shape)), height), Image.Resampling.BICUBIC)
    return image.rotate(raw.rotation, expand=True) if raw.rotation else image
