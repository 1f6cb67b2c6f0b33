"""The types of the rows of `openblip.training.tasks.table`."""

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
    """How `openblip finetune` trains models of a family on a table.

    Attributes:
        suits: whether a model can be trained this way, judged by its config; its weights may be on the meta device.
        targets: the parts that get adapters.
        rate, adapter_rate: learning rates of the parts themselves, and of adapters.
        train_decoder: whether the language model is trained as well, in families that leave this open.
        train_vision: whether the image encoder is trained as well.
        batch_size: images per batch, if there are as many.
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
    """How a family is trained with an objective.

    Attributes:
        task: builds the task of a model; it also gets the images of the run.
        prepare: changes the initial model as the recipe and the images of the run require.
        finetuning: how `openblip finetune` does it; None: it cannot.
        begin: builds a new model of the pretrained parts that a recipe without `init` names; it gets the images of the
            run and the model's name. None: it cannot.
    """

    task: Callable[[AnyParts, Recipe, Images, Runtime], Task]
    prepare: Callable[[AnyParts, Recipe, Images], AnyParts] = _unchanged
    finetuning: Finetuning | None = None
    begin: Callable[[Recipe, Images, str], AnyParts] | None = None


@dataclass(frozen=True)
class Objective:
    """What a run trains a model to do, and with which data.

    Attributes:
        learners: the families that can be trained with it.
        usable: whether an image has the texts that it needs.
        metrics: the tasks that a run can evaluate the model on, each with the metric that chooses the best weights.
        options: the recipe keys that it supports, among those that not all objectives support.
        sees: whether it needs images, or their features.
        compares: whether it compares the images of a batch with one another.
        keeps_copies: whether its task keeps momentum copies of weights.
        load: reads the images of a source, with the texts that the objective needs.
        caches: whether the features of a frozen image encoder may be read from disk.
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
