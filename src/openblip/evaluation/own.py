"""Evaluate a model on your own images and texts, or on a test set, without writing a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from openblip.data.pairs import are_claims
from openblip.data.sample import Sample
from openblip.data.sources.own import OwnData
from openblip.errors import OptionError
from openblip.evaluation.recipe import EvaluationRecipe
from openblip.evaluation.settings import (
    Accuracy,
    CaptionSettings,
    ClassificationSettings,
    Decision,
    QuestionSettings,
    Task,
)

PEOPLE = 3
"""VQA's accuracy compares with so many people."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of an evaluation; None: chosen by the data.

    Attributes:
        results: a file for an evaluation server.
    """

    model: str
    data: OwnData
    output: Path
    task: Task | None = None
    results: Path | None = None


def evaluation_recipe(options: EvaluateOptions) -> EvaluationRecipe:
    """A recipe for a table: its task and how answers are compared follow from what the table has.

    Raises:
        OpenBlipError: the table is missing, empty or not understood, none of its images is there, or it has
            captions and questions and no task says which are meant.
    """
    rows = options.data.read([])  # what is left out, the run says
    task = options.task or _task(rows, options.data.table)
    questions = QuestionSettings(accuracy=_accuracy(rows)) if task is Task.QUESTIONS else QuestionSettings()
    hidden = task is Task.CAPTIONS and not any(row.captions for row in rows)
    by = Decision.JUDGE if are_claims(rows) else Decision.CONTRAST
    return EvaluationRecipe(
        task=task,
        data=options.data.source(),
        data_root="",
        model=options.model,
        output=str(options.output),
        results=None if options.results is None else str(options.results),
        questions=questions,
        captions=CaptionSettings(hidden=hidden),
        classification=ClassificationSettings(by=by),
    )


def _task(rows: list[Sample], table: Path) -> Task:
    if are_claims(rows):
        return Task.CLASSIFICATION
    asked, said = (any(getattr(row, name) for row in rows) for name in ("question", "captions"))
    if asked and said:
        raise OptionError(f"{table} has captions and questions: choose one with --task captions or --task questions")
    if not said and not asked and any(row.label for row in rows):
        return Task.CLASSIFICATION
    return Task.QUESTIONS if asked else Task.CAPTIONS


def _accuracy(rows: list[Sample]) -> Accuracy:
    people = [len(row.answers) for row in rows if row.question]
    if not any(people):
        return Accuracy.HIDDEN
    return Accuracy.VQA if min(people) >= PEOPLE else Accuracy.EXACT
