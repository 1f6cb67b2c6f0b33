"""Key frames behind which nothing needs what came before them.

Not all are: frames that are shown before an H.264 key frame and decoded behind it may refer to older ones, and streams
with a gradual refresh mark frames as key frames that are none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

H264_PICTURES, H264_IDR = range(1, 6), (5,)
HEVC_PICTURES, HEVC_IDR = range(32), (19, 20)
"""Types of NAL units (ITU-T H.264, table 7-1; H.265, table 7-1)."""
START_CODE = b"\0\0\1"
CLEAN_CODECS = frozenset({"vp8", "vp9", "mpeg4", "mpeg2video"})
"""A key frame of these ends all references to what was decoded before."""


def begins_anew(packet: Any, context: Any, following: Iterable[Any]) -> bool:
    """Whether frames before a key frame can be left undecoded for all that are decoded from it on.

    Args:
        packet: of the key frame.
        context: PyAV's, of the decoder.
        following: packets behind it, more than the frames that the codec puts in another order.
    """
    if packet.pts is None or any(one.pts is None or one.pts < packet.pts for one in following):
        return False
    extra = bytes(context.extradata or b"")
    if context.name == "h264":
        length = 1 + (extra[4] & 3) if len(extra) > 4 and extra[0] == 1 else None
        return _first_picture(bytes(packet), length, lambda header: header & 31, H264_PICTURES) in H264_IDR
    if context.name == "hevc":
        length = 1 + (extra[21] & 3) if len(extra) > 21 and extra[0] == 1 else None
        return _first_picture(bytes(packet), length, lambda header: header >> 1 & 63, HEVC_PICTURES) in HEVC_IDR
    return context.name in CLEAN_CODECS


def _first_picture(content: bytes, length: int | None, kind: Callable[[int], int], pictures: range) -> int | None:
    """The type of the first NAL unit of a packet that holds a part of a picture."""
    units = _units_by_start_codes(content) if length is None else _units_by_lengths(content, length)
    return next((kind(header) for header in units if kind(header) in pictures), None)


def _units_by_lengths(content: bytes, length: int) -> Iterator[int]:
    """The first byte of each NAL unit, as MP4 and Matroska store them: behind its size."""
    at = 0
    while at + length < len(content):
        yield content[at + length]
        at += length + int.from_bytes(content[at : at + length], "big")


def _units_by_start_codes(content: bytes) -> Iterator[int]:
    """The first byte of each NAL unit, as transport streams store them: behind a start code."""
    at = content.find(START_CODE)
    while 0 <= at < len(content) - 3:
        yield content[at + 3]
        at = content.find(START_CODE, at + 3)
