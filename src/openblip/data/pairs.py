"""Training examples: each image with its captions and questions, collected from all rows about it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from sys import intern

from openblip.data.captions_to_questions import Question, questions_from_caption, statement_from_question
from openblip.data.mirrored_text import swap_sides
from openblip.data.plain_questions import plain_questions
from openblip.data.sample import ImageFile, PackedFile, Sample
from openblip.data.sources.open import DataSource, keep_training_part, read_source
from openblip.errors import OptionError
from openblip.text import clean_caption, clean_question

__all__ = ["DataSource", "ImageText", "are_claims", "load_claims", "load_pairs", "pair_of"]
"""`DataSource` is re-exported: recipes and this module share it."""


JUDGEMENTS = frozenset({"entailment", "neutral", "contradiction"})
TRUTHS = frozenset({"true", "false"})


@dataclass(frozen=True)
class ImageText:
    """An image with all texts about it, cleaned.

    Attributes:
        captions: written by people.
        statements: made from questions and their answers; less natural than captions.
        questions: asked by people.
        made_questions: made from captions by rules.
        second: the second image of a claim, see `load_claims`.
        claim: a sentence that is judged by its images; label: the class that it is in.
    """

    image: ImageFile
    captions: tuple[str, ...] = ()
    statements: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    made_questions: tuple[Question, ...] = ()
    second: ImageFile | None = None
    claim: str = ""
    label: str = ""

    @property
    def images(self) -> tuple[ImageFile, ...]:
        """The image, or both."""
        return (self.image,) if self.second is None else (self.image, self.second)

    @property
    def descriptions(self) -> tuple[str, ...]:
        """The captions; if there are none, the statements."""
        return self.captions or self.statements

    def mirrored(self) -> ImageText:
        """The texts for the mirror image: left and right are swapped."""
        description_lists = (self.captions, self.statements)
        captions, statements = (tuple(map(swap_sides, texts)) for texts in description_lists)
        questions, made = (tuple(map(_mirrored, group)) for group in (self.questions, self.made_questions))
        return replace(
            self,
            captions=captions,
            statements=statements,
            questions=questions,
            made_questions=made,
            claim=swap_sides(self.claim),
        )

    def with_fewer_words(self, share: float, rng: random.Random) -> ImageText:
        """The same, with a share of the words of people's questions left out, but never all of them."""
        if not share:
            return self
        questions = (replace(each, question=_drop_words(each.question, share, rng)) for each in self.questions)
        return replace(self, questions=tuple(questions))


def _drop_words(text: str, share: float, rng: random.Random) -> str:
    words = text.split()
    return " ".join([word for word in words if rng.random() >= share] or words)


def _mirrored(question: Question) -> Question:
    return Question(
        swap_sides(question.question),
        swap_sides(question.answer),
        question.kind,
        tuple(map(swap_sides, question.answers)),
    )


@dataclass
class _PairBuilder:
    captions: list[str] = field(default_factory=list)
    statements: list[str] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    made: list[Question] = field(default_factory=list)

    def add(self, row: Sample, source: DataSource) -> None:
        tidy = clean_caption if source.clean else _in_order
        self.captions += [tidy(caption) for caption in row.captions if caption.strip()]
        if row.question:
            _add_question(self, row, source.statements)

    def build(self, image: ImageFile, source: DataSource) -> ImageText:
        made: list[Question] = []
        if source.make_questions:
            made += [question for caption in self.captions for question in questions_from_caption(caption)]
        if source.plain_questions:
            question_texts = [f"{question.question.rstrip('?')} {question.answer}" for question in self.questions]
            made += plain_questions(self.captions, question_texts)
        self.made = [
            Question(clean_question(question.question), question.answer, question.kind)
            for question in dict.fromkeys(made)
        ]
        return ImageText(image, tuple(self.captions), tuple(self.statements), tuple(self.questions), tuple(self.made))


def load_pairs(source: DataSource, data_root: Path, skipped: list[str] | None = None) -> list[ImageText]:
    """All images of a source with their texts, in the order of the images' paths.

    Args:
        skipped: see `read_source`.

    Raises:
        OptionError: the source names no data, or its rows are not about one image each.
        OpenBlipError: an annotation file is missing or malformed.
    """
    found: dict[ImageFile, _PairBuilder] = {}
    for row in keep_training_part(read_source(source, data_root, skipped), source.held_out):
        _check(row, source)
        found.setdefault(row.image, _PairBuilder()).add(row, source)
    return [entry.build(image, source) for image, entry in sorted(found.items(), key=lambda item: _order(item[0]))]


def are_claims(rows: Sequence[Sample]) -> bool:
    """Whether rows are sentences to be judged: each has a label, and two images or a class of NLVR2 or SNLI-VE."""
    classes = JUDGEMENTS | TRUTHS
    return bool(rows) and all(
        row.label and row.captions and (len(row.images) == 2 or row.label.strip().casefold() in classes) for row in rows
    )


def load_claims(source: DataSource, data_root: Path, skipped: list[str] | None = None) -> list[ImageText]:
    """All sentences of a source that are to be judged, each with its image or both its images and its class.

    They stay as many as the rows of the source, in their order: an epoch has each sentence once.

    Args:
        skipped: see `read_source`.

    Raises:
        OptionError: the source names no data, or a row has no image, no sentence or no label.
        OpenBlipError: an annotation file is missing or malformed.
    """
    tidy = clean_caption if source.clean else _in_order
    found = []
    for number, row in enumerate(keep_training_part(read_source(source, data_root, skipped), source.held_out)):
        claim, label = tidy(" ".join(row.captions)), row.label.strip()
        if len(row.images) not in (1, 2) or not claim or not label:
            raise OptionError(
                f"row {row.sample_id or number} of the data source {source.name!r} has {len(row.images)} "
                f"image{'s' * (len(row.images) != 1)}, the sentence {claim!r} and the label {label!r}: give each one "
                "image or two, a sentence and a label"
            )
        second = row.images[1] if len(row.images) > 1 else None
        found.append(ImageText(row.images[0], second=second, claim=claim, label=intern(label)))
    return found


def pair_of(row: Sample, source: DataSource) -> ImageText:
    """The image and the texts of one row. Raises OptionError if the row is not about one image."""
    _check(row, source)
    entry = _PairBuilder()
    entry.add(row, source)
    return entry.build(row.image, source)


def _in_order(text: str) -> str:
    return " ".join(text.split())


def _check(row: Sample, source: DataSource) -> None:
    if len(row.images) != 1:
        raise OptionError(
            f"the data source {source.name!r} has rows of {len(row.images)} images: training needs one in each, two of "
            "stage nlvr alone"
        )
    if row.label in JUDGEMENTS and row.captions:
        raise OptionError(
            f"the data source {source.name!r} has sentences that are to be judged, not captions: stage classify learns "
            "them"
        )


def _add_question(entry: _PairBuilder, row: Sample, statements: bool) -> None:
    answers = tuple(
        intern(answer.lower()) for answer in row.answers
    )  # there are millions of answers, but few different ones
    if not answers:
        return  # a test set has questions without answers
    # Of equally frequent answers, the first: Counter keeps their order.
    likeliest = Counter(answers).most_common(1)[0][0]
    question = clean_question(row.question)
    entry.questions.append(Question(question, likeliest, row.kind, answers if len(answers) > 1 else ()))
    if statements:
        statement = statement_from_question(question.rstrip("?"), likeliest)
        if statement is not None:
            entry.statements.append(clean_caption(statement))


def _order(image: ImageFile) -> tuple[tuple[str, ...], tuple[int, ...], str]:
    if isinstance(image, Path):
        return image.parts, (), ""
    if isinstance(image, PackedFile):
        return image.archive.parts, (image.offset,), image.name
    return image.archive.parts, (image.row_group, image.row), image.name
