"""Segments of a video as subtitles: SubRip (.srt) and WebVTT (.vtt).

WebVTT: https://www.w3.org/TR/webvtt1/. SubRip has no standard; what is written here is read alike by all players:
UTF-8, a number, hours in times, a comma before milliseconds, no empty text.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator

from openblip.errors import printable
from openblip.jobs.video.segment import Segment

LONGEST_LINE = 2_000
LOOK_LIKE = str.maketrans("<>{}", "\u2039\u203a()")


def srt_lines(segments: Iterable[Segment]) -> Iterator[str]:
    """The lines of an .srt file, with their line breaks. Segments without a text are left out."""
    number = 0
    for segment in segments:
        text = [_srt_text(line) for line in shown_lines(segment)]
        if text:
            number += 1
            start, end = _times(segment, ",")
            yield f"{number}\n{start} --> {end}\n" + "\n".join(text) + "\n\n"


def vtt_lines(segments: Iterable[Segment], note: str = "") -> Iterator[str]:
    """The lines of a .vtt file, with their line breaks.

    Args:
        note: a sentence for whoever reads the file; players leave it out.
    """
    yield "WEBVTT\n\n"
    if note:
        yield f"NOTE {printable(note, LONGEST_LINE).replace('-->', '->')}\n\n"
    for segment in segments:
        text = [html.escape(line, quote=False) for line in shown_lines(segment)]
        if text:
            start, end = _times(segment, ".")
            yield f"{start} --> {end}\n" + "\n".join(text) + "\n\n"


def shown_lines(segment: Segment) -> list[str]:
    """What a segment says, in lines that are not empty: the caption, then a line for each question."""
    lines = [] if segment.caption is None else [segment.caption]
    lines += [f"{question} {answer}" for question, answer in segment.answers.items() if answer.strip()]
    texts = (printable(" ".join(line.split()), LONGEST_LINE) for line in lines)
    return [text for text in texts if text]


def _srt_text(line: str) -> str:
    """Players take <i> for a style, hide what is in braces, and know no escape: signs that look like these."""
    return line.replace("-->", "\u2192").translate(LOOK_LIKE)


def _times(segment: Segment, point: str) -> tuple[str, str]:
    # Down to the millisecond, not to the nearest: the frame at 0.9677 is not shown again once it is 0.968.
    start, end = (math.floor(1000 * seconds + 1e-6) for seconds in (segment.start, segment.end))
    return _timestamp(start, point), _timestamp(max(end, start + 1), point)


def _timestamp(milliseconds: int, point: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours:02}:{minute:02}:{second:02}{point}{rest:03}"
