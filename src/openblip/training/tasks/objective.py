"""What the rows of the table of training say; see `openblip.training.tasks.table`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from openblip.checkpoints.model_parts import ModelParts
from openblip.data.pairs import DataSource, ImageText, load_pairs
from openblip.evaluation.settings import Task as EvaluationTask
from openblip.training.recipe_keys import Recipe
from openblip.training.tasks.task import Runtime, Task

Images: TypeAlias = Sequence[ImageText]
AnyParts: TypeAlias = "ModelParts[Any, Any]"


def _unchanged(parts: AnyParts, recipe: Recipe, images: Images) -> AnyParts:
    return parts


@dataclass(frozen=True)
class Finetuning:
    """How `openblip finetune` has models of a family learn from a table.

    Attributes:
        suits: whether a model can learn so, by its sizes; its weights may be on the meta device.
        targets: the parts that adapters go to.
        rate, adapter_rate: learning rates of the parts themselves, and of adapters.
        train_decoder: whether the language model of a model learns, too; of a family where that is a question.
        train_vision: whether the image encoder learns, too.
        batch_size: images of a batch, where there are enough.
    """

    suits: Callable[[AnyParts], bool]
    targets: tuple[str, ...]
    rate: float = 1e-4
    adapter_rate: float = 2e-4
    train_decoder: Callable[[AnyParts], bool] = field(default=lambda parts: False)
    train_vision: bool = False
    batch_size: int = 16


@dataclass(frozen=True)
class Learner:
    """How a family learns by an objective.

    Attributes:
        task: makes the task of a model; it gets the images of the run, too.
        prepare: gives the model that the recipe and the images of the run make of the one that it starts from.
        finetuning: on a table of one's own; None: there is no such way.
    """

    task: Callable[[AnyParts, Recipe, Images, Runtime], Task]
    prepare: Callable[[AnyParts, Recipe, Images], AnyParts] = _unchanged
    finetuning: Finetuning | None = None


@dataclass(frozen=True)
class Objective:
    """What a run learns, and from what.

    Attributes:
        learners: the families that can learn it.
        usable: whether an image has the texts that it needs.
        metrics: as what the model is evaluated during a run, and the metric by which the best weights are chosen then.
        options: the keys that it knows of those that not all objectives know.
        sees: whether it needs images, or their features.
        compares: whether it compares the images of a batch with one another.
        keeps_copies: whether its task keeps slow copies of whole weights.
        load: reads the images of a source with what the objective learns of them.
        caches: whether features of a frozen image encoder may be read from disk instead of images.
        unused_parts: parts of its models that lora.targets may name, and that it does not use.
        needs: what an image has to have, as errors call it.
    """

    learners: Mapping[str, Learner]
    usable: Callable[[ImageText], bool]
    metrics: Mapping[EvaluationTask, str]
    options: frozenset[str]
    sees: bool = True
    compares: bool = False
    keeps_copies: bool = False
    load: Callable[[DataSource, Path, list[str] | None], list[ImageText]] = load_pairs
    caches: bool = True
    unused_parts: tuple[str, ...] = field(default=())
    needs: str = "texts"
