"""Statements about one image or two, put into a class by the head of a model (NLVR2, SNLI-VE)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from openblip.data.sample import ImageFile, Sample
from openblip.errors import ImageError, OptionError
from openblip.evaluation.settings import Settings
from openblip.evaluation.tasks.images import name_of, sources
from openblip.models.abilities import judge_of
from openblip.models.model import Model

Group = tuple[ImageFile, ...]


def by_images(samples: Sequence[Sample]) -> dict[Group, list[int]]:
    """Each image or pair of images with the indices of its samples, in the order of first appearance.

    Raises:
        OptionError: there are no samples, or one has no image or no sentence.
    """
    if not samples:
        raise OptionError("there is nothing to evaluate: check the annotation file, the split and the limit")
    found: dict[Group, list[int]] = {}
    for number, sample in enumerate(samples):
        name = sample.sample_id or sample.image_id or str(number)
        if not sample.images:
            raise OptionError(f"row {name} has no image: a statement is judged with one or two")
        if not statement_of(sample):
            raise OptionError(f"row {name} has no sentence to judge")
        found.setdefault(sample.images, []).append(number)
    return found


def statement_of(sample: Sample) -> str:
    return " ".join(sample.captions).strip()


def judged(
    model: Model, groups: Mapping[Group, Sequence[int]], samples: Sequence[Sample], settings: Settings
) -> Iterator[tuple[Group, list[dict[str, Any]] | ImageError]]:
    """The class of each statement.

    Raises:
        OptionError: the samples have other labels than the model's classes, or another number of images.
        CheckpointError: the model has no head to judge with.
    """
    judge = judge_of(model)
    # Of all, not only of those that a run that was stopped has left over.
    labels = sorted({sample.label for sample in samples})
    classes = {name.casefold() for name in judge.classes}
    if not classes.intersection(label.strip().casefold() for label in labels):
        raise OptionError(
            f"{model.name} chooses among {', '.join(judge.classes)}, and the data has {', '.join(labels[:5])}: give a "
            "model that was trained on such data"
        )
    problems: dict[str, ImageError] = {}

    def pairs() -> Iterator[tuple[Any, list[str]]]:
        for group, rows in groups.items():
            images = list(sources(group, problems))
            yield images if len(images) > 1 else images[0], [statement_of(samples[row]) for row in rows]

    for group, found in zip(groups, model.judge_many(pairs(), batch_size=settings.batch_size), strict=True):
        if found.error is not None:
            unpacked = (problems.get(name_of(image)) for image in group)
            yield group, next((problem for problem in unpacked if problem is not None), found.error)
        else:
            yield (
                group,
                [
                    {"prediction": one.label, "probability": one.probability, "question": one.statement}
                    for one in found.judgements
                ],
            )
