"""The results of an evaluation, and its progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from openblip.data.sample import ImageFile
from openblip.evaluation.settings import Task

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the number of finished items and the total."""


CERTAINTY = "certainty"
"""What orders texts that nobody scores: the model's own probability of each."""


def certainty(log_probability: object) -> float:
    """From 0 to 1."""
    return math.exp(min(0.0, float(str(log_probability))))


def silent(done: int, total: int) -> None:
    """Reports no progress."""


@dataclass(frozen=True)
class Row:
    """The prediction for one image or question, with its scores.

    Attributes:
        image: the image's name, as shown; image_file: where it is, for the report.
        references: captions of people, right answers or the right label.
        score: orders the rows of the report from best to worst.
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
    """An image that could not be read and is not scored."""

    image: str
    problem: str


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        metrics: names and values from 0 to 1; CIDEr can be larger.
        rows: the rows, in the order of the data.
        ordered_by: the name of the score in `Row.score`.
        excluded: the images that are not scored.
        notes: sentences that a reader of the metrics must know.
    """

    task: Task
    metrics: dict[str, float]
    rows: Sequence[Row]
    ordered_by: str
    excluded: Sequence[Excluded] = ()
    notes: tuple[str, ...] = ()
