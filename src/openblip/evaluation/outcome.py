"""What an evaluation reports: how far it is, and what it found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from openblip.data.sample import ImageFile
from openblip.evaluation.settings import Task

Progress: TypeAlias = Callable[[int, int], None]
"""Called with how many are done, and how many there are in all."""


def silent(done: int, total: int) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class Row:
    """One image, or one question about it, with what the model said and what it is worth.

    Attributes:
        image: the image's name, as shown; image_file: where it is, for the report.
        references: captions of people, right answers, or the right label.
        score: by which rows are ordered from best to worst.
        scores: all scores of this row.
    """

    image: str
    prediction: str
    references: tuple[str, ...]
    score: float
    question: str = ""
    image_id: str = ""
    sample_id: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    image_file: ImageFile | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Excluded:
    """An image that could not be read, and so counts in no score."""

    image: str
    problem: str


@dataclass(frozen=True)
class Evaluation:
    """The outcome.

    Attributes:
        metrics: names and values, shares from 0 to 1 but for CIDEr, which can be larger.
        rows: in the order of the data.
        ordered_by: name of the score that `Row.score` is.
        excluded: images left out.
        notes: what a reader of the metrics must know, a sentence each.
    """

    task: Task
    metrics: dict[str, float]
    rows: Sequence[Row]
    ordered_by: str
    excluded: Sequence[Excluded] = ()
    notes: tuple[str, ...] = ()
