"""A part of a video of which the model says the same, and how what is said of an image is kept in a journal."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from openblip.jobs.journal import Record
from openblip.jobs.video.thumbnails import Thumbnail, Thumbnails
from openblip.jobs.words import WordList


@dataclass(frozen=True)
class Segment:
    """A part of a video of which the model says the same.

    Attributes:
        start, end: seconds since the start of the video.
        time: of the first image that was looked at.
        caption: None if none was asked for.
        answers: to each question.
        found: words of each list in the caption.
        thumbnail: of the first image.
    """

    start: float
    end: float
    time: float
    caption: str | None
    answers: Mapping[str, str] = field(default_factory=dict)
    found: Mapping[str, Sequence[str]] = field(default_factory=dict)
    thumbnail: Thumbnail | None = None

    def says_as(self, other: Segment) -> bool:
        return self.caption == other.caption and self.answers == other.answers


def record_of(number: int, said: Segment, first: tuple[Thumbnail, bytes] | None) -> Record:
    """What is kept of an image.

    Args:
        number: of the image.
        first: its thumbnail, if it is the first one of a segment.
    """
    record: Record = {"row": number, "start": said.start, "end": said.end, "time": said.time, "caption": said.caption}
    record["answers"] = dict(said.answers)
    if first is not None:
        thumbnail, jpeg = first
        picture = base64.b64encode(jpeg).decode("ascii")
        record["thumbnail"] = {"jpeg": picture, "width": thumbnail.width, "height": thumbnail.height}
    return record


def said_of(record: Record, word_lists: Sequence[WordList]) -> Segment:
    """What was said of an image that was kept."""
    caption = record["caption"]
    words = {one.name: one.find(caption) for one in word_lists} if caption is not None else {}
    return Segment(record["start"], record["end"], record["time"], caption, record["answers"], words)


def thumbnail_of(record: Record, thumbnails: Thumbnails) -> Thumbnail | None:
    """The thumbnail that was kept, if there is one."""
    kept = record.get("thumbnail")
    return kept and thumbnails.keep_jpeg(base64.b64decode(kept["jpeg"]), kept["width"], kept["height"])
