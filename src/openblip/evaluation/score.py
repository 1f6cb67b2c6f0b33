"""Let a model do a task and score it: from Python, from a recipe, or during training."""

from __future__ import annotations

from collections.abc import Sequence

from openblip.data.sample import Sample
from openblip.evaluation.journal import Journal
from openblip.evaluation.outcome import Evaluation, Progress, silent
from openblip.evaluation.settings import Settings, Task
from openblip.evaluation.tasks.captions import check_captioned, evaluate_captions
from openblip.evaluation.tasks.classification import check_labelled, evaluate_labels
from openblip.evaluation.tasks.questions import check_questioned, evaluate_answers
from openblip.evaluation.tasks.retrieval import evaluate_retrieval
from openblip.models.model import Model

WORK = {
    Task.CAPTIONS: evaluate_captions,
    Task.QUESTIONS: evaluate_answers,
    Task.RETRIEVAL: evaluate_retrieval,
    Task.CLASSIFICATION: evaluate_labels,
}


def check(samples: Sequence[Sample], settings: Settings) -> None:
    """Check samples and settings before a model is loaded. Raises OptionError if they do not fit the task."""
    settings.check()
    if settings.task is Task.QUESTIONS:
        check_questioned(samples, settings)
    elif settings.task is Task.CLASSIFICATION:
        check_labelled(samples, settings)
    else:
        check_captioned(samples, settings)


def score_model(
    model: Model,
    samples: Sequence[Sample],
    settings: Settings,
    progress: Progress = silent,
    journal: Journal | None = None,
) -> Evaluation:
    """Let a model do a task on samples, and score it.

    Args:
        model: from `openblip.load`, or a `Model` of a copy of the network in training: a `Model` makes its network
            unable to learn.
        progress: called with the number of finished images and the total.
        journal: stores predictions; those that it has already are not made again.

    Raises:
        OpenBlipError: the samples or settings do not fit the task, or packages are missing.
        ImageError: an image cannot be read, and `on_bad_image` is to stop.
    """
    check(samples, settings)
    journal = Journal() if journal is None else journal
    return WORK[settings.task](model, samples, settings, journal, progress)
