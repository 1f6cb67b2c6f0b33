"""What a model says of a video: segments with the same words, from views of the video in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from openblip.errors import ImageError, OpenBlipError, OptionError
from openblip.generation.options import TextOptions, read_options
from openblip.images.video import View, checked_interval
from openblip.jobs.journal import Record
from openblip.jobs.video.segment import Segment, record_of, said_of, thumbnail_of
from openblip.jobs.video.thumbnails import Thumbnail, Thumbnails
from openblip.jobs.words import WordList
from openblip.models.abilities import require


@dataclass(frozen=True)
class VideoQuestions:
    """What a model is to say of a video.

    Attributes:
        every: seconds between the images that are looked at; None: one image of each scene.
        captions: whether images are captioned.
        prompt: the words that captions begin with; None: the model's own.
        questions: asked about every image.
        word_lists: looked for in captions.
        batch_size: images that are encoded together.
    """

    every: float | None = 1.0
    captions: bool = True
    prompt: str | None = None
    questions: tuple[str, ...] = ()
    word_lists: tuple[WordList, ...] = ()
    batch_size: int = 8
    options: TextOptions = field(default_factory=lambda: TextOptions())

    def __post_init__(self) -> None:
        if self.every is not None:
            checked_interval(self.every)
        if not self.captions and not self.questions:
            raise OptionError("there is nothing to say: leave out --no-captions, or give a question with --ask")
        if not self.captions and (self.prompt is not None or self.word_lists):
            raise OptionError("--prompt and --find are about captions: leave out --no-captions")
        if any(not question.strip(" \t\r\n?") for question in self.questions):
            raise OptionError("a question is empty: ask something about the video")
        if len(set(self.questions)) < len(self.questions):
            raise OptionError("a question is there twice: ask each once")
        read_options(self.options)

    @property
    def digits(self) -> int:
        """Of seconds behind the point in times that people read."""
        return 0 if self.every is not None and self.every >= 1 else 1


@dataclass
class Description:
    """What was said of a video so far.

    Attributes:
        video: its name.
        duration: seconds, as far as they are known.
        model: its name.
        notes: what the user should know of the video.
        fault: what was wrong with the video.
        images: that the model has seen.
    """

    video: str
    duration: float | None
    model: str
    questions: VideoQuestions
    segments: list[Segment] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    fault: str | None = None
    images: int = 0

    @property
    def end(self) -> float:
        """Seconds up to which the video was described."""
        return self.segments[-1].end if self.segments else 0.0


def describe(
    views: Iterator[View],
    model: Any,
    found: Description,
    thumbnails: Thumbnails | None = None,
    *,
    done: Iterable[Record] = (),
    keep: Callable[[Sequence[Record]], None] = lambda records: None,
    closed: Callable[[Segment], None] = lambda segment: None,
) -> None:
    """Describe what is seen in a video. Whatever is raised, `found` holds what was said up to there.

    Args:
        thumbnails: keeps an image of each segment; None keeps none.
        done: of the first images, what `keep` was called with before.
        keep: called with what is to be kept of each batch.
        closed: called with each segment when it is known that the next image is not part of it.

    Raises:
        ImageError: the video cannot be read further.
        CheckpointError: the model cannot do what is asked.
        OptionError: an option is out of range.
        OpenBlipError: what is done is of other images.
    """
    if found.questions.captions:
        require(model, "caption")
    if found.questions.questions:
        require(model, "ask")
    merging = _Merging(found, thumbnails, closed)
    try:
        for record in done:
            view = next(views, None)  # what comes behind it cannot be decoded without it
            segment = said_of(record, found.questions.word_lists)
            if view is None or (view.start, view.end, view.time) != (segment.start, segment.end, segment.time):
                raise OpenBlipError(
                    f"{found.video} gives other images than when it was begun: delete what is kept beside the output, "
                    "and give the command again"
                )
            merging.add(segment, view, record)
        for batch in _batches(views, found.questions.batch_size):
            records = []
            for view, segment in zip(batch, _segments(batch, model, found.questions), strict=True):
                number, first = found.images, merging.add(segment, view)
                records.append(record_of(number, segment, first))
            keep(records)
    finally:
        if found.segments:
            closed(found.segments[-1])


@dataclass
class _Merging:
    """Puts what is said of each image into segments."""

    found: Description
    thumbnails: Thumbnails | None
    closed: Callable[[Segment], None]

    def add(self, segment: Segment, view: View, record: Record | None = None) -> tuple[Thumbnail, bytes] | None:
        """The next image; its thumbnail if it is the first of a segment.

        Args:
            record: has the thumbnail, if it was kept.
        """
        found, kept = self.found, self.thumbnails
        found.images += 1
        last = found.segments[-1] if found.segments else None
        if last is not None and last.says_as(segment):
            found.segments[-1] = replace(last, end=segment.end)
            return None
        if last is not None:
            self.closed(last)
        thumbnail = None
        if kept is not None:
            thumbnail = None if record is None else thumbnail_of(record, kept)
            thumbnail = thumbnail or kept.keep(view.image)
        found.segments.append(replace(segment, thumbnail=thumbnail))
        return None if kept is None or thumbnail is None else (thumbnail, kept.read(thumbnail))


def _segments(views: Sequence[View], model: Any, questions: VideoQuestions) -> list[Segment]:
    """One for each view."""
    images = [view.image for view in views]
    captions: list[str | None] = [None] * len(images)
    answers: list[dict[str, str]] = [{} for _ in images]
    size = questions.batch_size
    if questions.captions:
        made = model.caption_many(images, prompt=questions.prompt, batch_size=size, **questions.options)
        captions = [one.text for one in made]
    if questions.questions:
        # The model keeps what it has encoded: the images are not encoded again.
        asked = model.ask_many([(image, questions.questions) for image in images], batch_size=size, **questions.options)
        for own, answered in zip(answers, asked, strict=True):
            if answered.error is not None:
                raise answered.error
            own.update(zip(questions.questions, (answer.text for answer in answered.answers), strict=True))
    return [
        Segment(
            start=view.start,
            end=view.end,
            time=view.time,
            caption=caption,
            answers=own,
            found={one.name: one.find(caption) for one in questions.word_lists} if caption is not None else {},
        )
        for view, caption, own in zip(views, captions, answers, strict=True)
    ]


def _batches(views: Iterator[View], size: int) -> Iterator[list[View]]:
    """What is wrong with the video is raised behind the last batch."""
    batch: list[View] = []
    fault: ImageError | None = None
    try:
        for view in views:
            batch.append(view)
            if len(batch) == size:
                yield batch
                batch = []
    except ImageError as error:
        fault = error
    if batch:
        yield batch
    if fault is not None:
        raise fault
