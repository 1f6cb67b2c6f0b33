"""A video from its file to the files of its description, of which nothing that was done is lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any

from openblip.errors import ImageError
from openblip.images.background import in_background
from openblip.images.video import scenes, views_every
from openblip.images.video_decode import VideoFile
from openblip.jobs.kept_output import Command, kept_output
from openblip.jobs.video.description import Description, VideoQuestions, describe
from openblip.jobs.video.output import PAGES, check_outputs, write_outputs
from openblip.jobs.video.segment import Segment
from openblip.jobs.video.thumbnails import Thumbnails
from openblip.saving import locked


def describe_video(
    path: str | os.PathLike[str],
    load: Callable[[], Any],
    questions: VideoQuestions,
    outputs: Sequence[Path] = (),
    *,
    tell: Callable[[str], None] = lambda note: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    closed: Callable[[Segment], None] = lambda segment: None,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> Description:
    """Describe a video and write the files; whatever ends it, what was said is kept, and called again it goes on.

    Args:
        load: gives the model.
        outputs: files that are not there yet; their suffix says what they are. What is done is kept beside the first.
        tell: called with sentences that the user should read, from another thread, too.
        progress: called, from another thread, with the seconds that are decoded and those of the whole video, if it
            says how long it is.
        closed: called with each segment, in order.
        settings: what decides what is said, by the names that the user has for it: what is kept of others is refused.

    Raises:
        ImageError: nothing of the video can be read. A later fault is the `fault` of what is returned.
        OptionError: an output is of no known kind, or is there already.
        OpenBlipError: another process writes to an output; what is kept there is of other settings.
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
        kept = None
        if outputs:
            state = os.stat(path)
            about = {
                "the video": [Path(path).name, state.st_size, state.st_mtime_ns],
                "--output": list(map(str, outputs)),
            }
            kept = stack.enter_context(kept_output(outputs[0], Command({**settings, **about}, None), tell))
        model = load()
        has_page = any(output.suffix.lower() in PAGES for output in outputs)
        thumbnails = stack.enter_context(Thumbnails()) if has_page else None
        found = Description(Path(path).name, video.duration, model.name, questions, notes=notes)
        least = _least_side(model)
        made = scenes(video, least) if questions.every is None else views_every(video, questions.every, least)
        # Frames are decoded while the model computes.
        views = stack.enter_context(in_background(made, questions.batch_size))
        try:
            if kept is None:
                describe(views, model, found, closed=closed)
            else:
                describe(views, model, found, thumbnails, done=kept.records(), keep=kept.add, closed=closed)
        except ImageError as error:
            if not found.segments:
                raise
            found.fault = str(error)
        if kept is not None:
            write_outputs(outputs, found, thumbnails, kept.folder)
            kept.forget()
    return found


def _least_side(model: Any) -> int | None:
    """Pixels of the shorter side below which images are not made smaller before the model's own transform.

    Twice what the model takes: such an image, of the means of whole pixels, gives what the whole one would but for
    rounding, in a third of the time. None of a model that does not say what it takes.
    """
    parts = getattr(model, "parts", None)
    return None if parts is None else 2 * int(parts.transform.image_size)
