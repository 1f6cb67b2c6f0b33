"""The files that a video's description is written to: subtitles, JSON or a page, whole at every moment."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from openblip.errors import OptionError
from openblip.jobs.folder import JOB, OUTPUTS, folder_of
from openblip.jobs.video.description import Description
from openblip.jobs.video.page import page
from openblip.jobs.video.segment import Segment
from openblip.jobs.video.subtitles import srt_lines, vtt_lines
from openblip.jobs.video.thumbnails import Thumbnails
from openblip.saving import replacing, write_text

SUFFIXES = (".srt", ".vtt", ".json", ".html", ".htm")
PAGES = (".html", ".htm")


def check_outputs(paths: Sequence[Path]) -> None:
    """Raises OptionError for a file that cannot or must not be written."""
    for path in paths:
        if path.suffix.lower() not in SUFFIXES:
            raise OptionError(f"{path} has an unknown ending: a video is described in .srt, .vtt, .json or .html")
        if not path.parent.is_dir():
            raise OptionError(f"{path} lies in a folder that does not exist: make {path.parent} first")
    if len(set(paths)) < len(paths):
        raise OptionError("an --output is there twice: give each once")
    ours = _taking_their_places(folder_of(paths[0])) if paths else {}
    for path in paths:
        if path.is_symlink() or (path.exists() and not _is(path, ours.get(str(path)))):
            raise OptionError(f"{path} is there already: delete it, or give another --output")


def write_outputs(paths: Sequence[Path], found: Description, thumbnails: Thumbnails | None, folder: Path) -> None:
    """Write all files; each is whole or not there, whenever this ends.

    Args:
        folder: where it is noted which files are ours, until all are there.

    Raises:
        OSError: a file cannot be written; `filename` is set.
    """
    with ExitStack() as stack:
        digests = {}
        for path in paths:
            digest = hashlib.sha256()
            draft = stack.enter_context(replacing(path))
            with draft.open("wb") as file:
                for part in _parts(path, found, thumbnails):
                    content = part.encode("utf-8", "backslashreplace")
                    digest.update(content)
                    file.write(content)
            digests[str(path)] = digest.hexdigest()
        write_text(folder / OUTPUTS, json.dumps(digests))


def _taking_their_places(folder: Path) -> dict[str, str]:
    """Outputs of a command that was killed when it had nothing left to do but to put them there."""
    if not (folder / JOB).exists():
        return {}
    try:
        return dict(json.loads((folder / OUTPUTS).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _is(path: Path, digest: str | None) -> bool:
    if digest is None or not path.is_file():
        return False
    with path.open("rb") as file:
        found = hashlib.sha256()
        while piece := file.read(1 << 20):
            found.update(piece)
    return found.hexdigest() == digest


def _parts(path: Path, found: Description, thumbnails: Thumbnails | None) -> Iterator[str]:
    kind = path.suffix.lower()
    if kind == ".srt":
        return srt_lines(found.segments)
    if kind == ".vtt":
        return vtt_lines(found.segments, found.fault or "")
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
        "complete": found.fault is None,
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
