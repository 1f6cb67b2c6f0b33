"""The files that a video's description is written to: subtitles, JSON or a page, whole at every moment."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from openblip.errors import OptionError
from openblip.jobs.video.description import Description, Segment
from openblip.jobs.video.page import page
from openblip.jobs.video.subtitles import srt_lines, vtt_lines
from openblip.jobs.video.thumbnails import Thumbnails
from openblip.saving import replacing

SUFFIXES = (".srt", ".vtt", ".json", ".html", ".htm")
PAGES = (".html", ".htm")


def check_outputs(paths: Sequence[Path]) -> None:
    """Raises OptionError for a file that cannot or must not be written."""
    for path in paths:
        if path.suffix.lower() not in SUFFIXES:
            raise OptionError(f"{path} has an unknown ending: a video is described in .srt, .vtt, .json or .html")
        if not path.parent.is_dir():
            raise OptionError(f"{path} lies in a folder that does not exist: make {path.parent} first")
        if path.exists() or path.is_symlink():
            raise OptionError(f"{path} is there already: delete it, or give another --output")
    if len(set(paths)) < len(paths):
        raise OptionError("an --output is there twice: give each once")


def write_outputs(paths: Sequence[Path], found: Description, thumbnails: Thumbnails | None) -> None:
    """Write each file anew, whole or not at all.

    Raises:
        OSError: a file cannot be written; `filename` is set.
    """
    for path in paths:
        with (
            replacing(path) as draft,
            draft.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file,
        ):
            file.writelines(_parts(path, found, thumbnails))


def _parts(path: Path, found: Description, thumbnails: Thumbnails | None) -> Iterator[str]:
    kind = path.suffix.lower()
    if kind == ".srt":
        return srt_lines(found.segments)
    if kind == ".vtt":
        stopped = "" if found.is_complete else "the end of the video was not described"
        return vtt_lines(found.segments, found.fault or stopped)
    if kind == ".json":
        return _json(found)
    if thumbnails is None:
        raise ValueError("a page needs thumbnails")
    return page(found, thumbnails)


def _json(found: Description) -> Iterator[str]:
    """A segment a line: easy to read, also for a program that looks for a line."""
    questions = found.questions
    head = {
        "video": found.video,
        "duration": found.duration,
        "model": found.model,
        "every": questions.every,
        "scenes": questions.every is None,
        "prompt": questions.prompt,
        "questions": list(questions.questions),
        "images": found.images,
        "complete": found.is_complete,
        "error": found.fault,
        "notes": found.notes,
    }
    for name, value in head.items():
        yield f"{'{' if name == 'video' else ''}{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)},\n"
    yield '"segments": ['
    for number, segment in enumerate(found.segments):
        yield f"{',' if number else ''}\n{json.dumps(_segment(segment), ensure_ascii=False)}"
    yield "\n]}\n"


def _segment(segment: Segment) -> dict[str, Any]:
    start, end, time = (round(seconds, 6) for seconds in (segment.start, segment.end, segment.time))
    fields: dict[str, Any] = {"start": start, "end": end, "time": time}
    if segment.caption is not None:
        fields["caption"] = segment.caption
    if segment.answers:
        fields["answers"] = dict(segment.answers)
    if segment.found:
        fields["found"] = {name: list(words) for name, words in segment.found.items()}
    return fields
