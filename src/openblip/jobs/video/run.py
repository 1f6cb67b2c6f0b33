"""A video from its file to the files of its description, of which nothing that was done is lost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from openblip.errors import ImageError
from openblip.images.video import scenes, views_every
from openblip.images.video_decode import VideoFile
from openblip.jobs.video.description import Description, Segment, VideoQuestions, describe
from openblip.jobs.video.output import PAGES, check_outputs, write_outputs
from openblip.jobs.video.thumbnails import Thumbnails
from openblip.saving import locked

SAVE_SECONDS = 60.0
"""Between two times at which the files are written: more is not lost when the process is killed."""


def describe_video(
    path: str | os.PathLike[str],
    load: Callable[[], Any],
    questions: VideoQuestions,
    outputs: Sequence[Path] = (),
    *,
    tell: Callable[[str], None] = lambda note: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    closed: Callable[[Segment], None] = lambda segment: None,
    clock: Callable[[], float] = time.monotonic,
) -> Description:
    """Describe a video and write the files; whatever ends it, they hold what was said up to there, and are whole.

    Args:
        load: gives the model.
        outputs: files that are not there yet; their suffix says what they are.
        tell: called with sentences that the user should read.
        progress: called with the seconds that are done and those of the whole video, if it says how long it is.
        closed: called with each segment, in order.

    Raises:
        ImageError: nothing of the video can be read. A later fault is the `fault` of what is returned.
        OptionError: an output is of no known kind, or is there already.
        OpenBlipError: another process writes to an output.
        OSError: an output cannot be written.
    """
    check_outputs(outputs)
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        tell(text)

    def reached(seconds: float) -> None:
        if video.duration is not None:
            progress(min(int(seconds), int(video.duration)), int(video.duration))

    with ExitStack() as stack:
        video = stack.enter_context(VideoFile(path, note, reached))
        for output in outputs:
            lock = output.with_name(output.name + ".lock")
            stack.enter_context(locked(lock, f"another command is writing to {output}: give another --output"))
        model = load()
        has_page = any(output.suffix.lower() in PAGES for output in outputs)
        thumbnails = stack.enter_context(Thumbnails()) if has_page else None
        found = Description(Path(path).name, video.duration, model.name, questions, notes=notes)
        saved = clock()

        def grown() -> None:
            nonlocal saved
            if clock() - saved > SAVE_SECONDS:
                write_outputs(outputs, found, thumbnails)
                saved = clock()

        views = scenes(video) if questions.every is None else views_every(video, questions.every)
        try:
            describe(views, model, found, thumbnails, closed=closed, grown=grown)
        except ImageError as error:
            if not found.segments:
                raise
            found.fault = str(error)
        except BaseException:
            if found.segments:
                write_outputs(outputs, found, thumbnails)
            raise
        write_outputs(outputs, found, thumbnails)
    return found
