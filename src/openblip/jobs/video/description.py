"""What a model says of a video: segments with the same words, from views of the video in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from openblip.errors import ImageError, OptionError
from openblip.generation.options import TextOptions, read_options
from openblip.images.video import View, checked_interval
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


@dataclass
class Description:
    """What was said of a video so far.

    Attributes:
        video: its name.
        duration: seconds, as far as they are known.
        model: its name.
        notes: what the user should know of the video.
        is_complete: everything that can be read of the video was described.
        fault: what was wrong with the video.
        images: that the model has seen.
    """

    video: str
    duration: float | None
    model: str
    questions: VideoQuestions
    segments: list[Segment] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    is_complete: bool = False
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
    closed: Callable[[Segment], None] = lambda segment: None,
    grown: Callable[[], None] = lambda: None,
) -> None:
    """Describe what is seen in a video. Whatever is raised, `found` holds what was said up to there.

    Args:
        thumbnails: keeps an image of each segment; None keeps none.
        closed: called with each segment when it is known that the next image is not part of it.
        grown: called when `found` has grown by a batch.

    Raises:
        ImageError: the video cannot be read further.
        CheckpointError: the model cannot do what is asked.
        OptionError: an option is out of range.
    """
    if found.questions.captions:
        require(model, "caption")
    if found.questions.questions:
        require(model, "ask")
    try:
        for batch in _batches(views, found.questions.batch_size):
            for view, segment in zip(batch, _segments(batch, model, found.questions), strict=True):
                found.images += 1
                last = found.segments[-1] if found.segments else None
                if last is not None and last.says_as(segment):
                    found.segments[-1] = replace(last, end=segment.end)
                    continue
                if last is not None:
                    closed(last)
                kept = None if thumbnails is None else thumbnails.keep(view.image)
                found.segments.append(replace(segment, thumbnail=kept))
            grown()
        found.is_complete = True
    finally:
        if found.segments:
            closed(found.segments[-1])


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
