"""What a training image has to say: its captions and its questions, gathered over data sets."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from openblip.data.annotations import is_held_out, read_captions, read_questions
from openblip.data.questions import Question, questions_from_caption, statement_from_question
from openblip.data.samples import Picture
from openblip.errors import OptionError
from openblip.text import clean_caption, clean_question


@dataclass(frozen=True)
class ImageText:
    """One image with everything said about it, cleaned.

    Attributes:
        captions: written by people.
        statements: made from questions and their answers; rougher than captions.
        questions: as given, and made from captions.
    """

    image: Picture
    captions: tuple[str, ...] = ()
    statements: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    made_questions: tuple[Question, ...] = ()

    @property
    def descriptions(self) -> tuple[str, ...]:
        """Captions where there are any, statements where not."""
        return self.captions or self.statements


@dataclass
class DataSource:
    """One annotation file of a recipe.

    Attributes:
        captions, questions: paths relative to the recipe's data_root; either may be absent.
        split: the split of a captions file to use; None for all.
        held_out: leave out the `1 / held_out` of the images that evaluation uses (see `is_held_out`).
        statements: make captions of questions (sound for COCO-QA, whose questions were captions).
        make_questions: make questions of captions.
        mirror: whether mirror images may stand for the image.
        augment: whether pictures are cropped and mirrored at random where their features are not cached.
        repeat: how often an epoch shows each image, with other texts and views each time.
    """

    name: str
    captions: str | None = None
    questions: str | None = None
    split: str | None = None
    held_out: int = 0
    statements: bool = False
    make_questions: bool = False
    mirror: bool = True
    views: int = 2
    augment: bool = True
    repeat: int = 1
    min_area: float = 0.6


@dataclass
class _Gathered:
    captions: list[str] = field(default_factory=list)
    statements: list[str] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    made: list[Question] = field(default_factory=list)


def gather(source: DataSource, data_root: Path) -> list[ImageText]:
    """All images of a source, in the order of their file names.

    Raises:
        OptionError: the source names neither captions nor questions.
        OpenBlipError: an annotation file is missing or malformed.
    """
    if source.captions is None and source.questions is None:
        raise OptionError(f"the data source {source.name!r} needs captions, questions or both")
    found: dict[Path, _Gathered] = {}
    if source.captions is not None:
        for row in read_captions(data_root / source.captions, source.split):
            entry = found.setdefault(row.image, _Gathered())
            entry.captions += [clean_caption(caption) for caption in row.captions if caption.strip()]
    if source.questions is not None:
        for asked in read_questions(data_root / source.questions):
            entry = found.setdefault(asked.image, _Gathered())
            question = clean_question(asked.question)
            entry.questions.append(Question(question, asked.answer.lower(), asked.kind))
            if source.statements:
                statement = statement_from_question(question.rstrip("?"), asked.answer.lower())
                if statement is not None:
                    entry.statements.append(clean_caption(statement))
    for entry in found.values():
        if source.make_questions:
            made = [question for caption in entry.captions for question in questions_from_caption(caption)]
            entry.made = [
                Question(clean_question(question.question), question.answer, question.kind)
                for question in dict.fromkeys(made)
            ]
    return [
        ImageText(image, tuple(e.captions), tuple(e.statements), tuple(e.questions), tuple(e.made))
        for image, e in sorted(found.items())
        if not (source.held_out and is_held_out(image, source.held_out))
    ]
