"""What an evaluation between epochs gives, and so by which name the best weights may be chosen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from openblip.evaluation.metrics.recall import DEPTHS
from openblip.evaluation.settings import Task

CAPTIONS = (*(f"bleu_{order}" for order in range(1, 5)), "rouge_l", "cider")
"""METEOR and SPICE need Java, which takes longer to start than a small evaluation."""
ANSWERS = ("accuracy", "exact")
ACCURACY_OF_KIND = "accuracy ({})"
"""The accuracy of the questions of one kind."""
RECALLS = (
    *(
        f"{way}_{what}"
        for way in ("text_to_image", "image_to_text")
        for what in (*(f"at_{depth}" for depth in DEPTHS), "mean")
    ),
    "mean",
)
METRICS: Mapping[Task, tuple[str, ...]] = {
    Task.CAPTIONS: CAPTIONS,
    Task.QUESTIONS: ANSWERS,
    Task.RETRIEVAL: RECALLS,
    Task.CLASSIFICATION: ("accuracy",),
}


def metrics_of(tasks: Iterable[Task]) -> list[str]:
    """The metrics of models that are evaluated in one of these ways, those of kinds of questions aside."""
    return list(dict.fromkeys(metric for task in tasks for metric in METRICS[task]))


def is_possible(metric: str, tasks: Iterable[Task]) -> bool:
    """Whether some data could give it in one of these ways. What the data at hand give is known once they are read."""
    tasks = list(tasks)
    before, _ = ACCURACY_OF_KIND.split("{}")
    return metric in metrics_of(tasks) or (Task.QUESTIONS in tasks and metric.startswith(before))
