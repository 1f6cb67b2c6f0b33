"""The recipe of an evaluation: a YAML file, of which every key is checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from openblip.data.sources.open import DataSource
from openblip.errors import OptionError
from openblip.evaluation.settings import Settings
from openblip.recipes import read_recipe

PURPOSE = ("evaluation", "eval")
"""What needs which extra of the package."""


@dataclass
class Published:
    """A published number to compare with.

    Attributes:
        metric: the name of the metric in the evaluation.
        value: from 0 to 1, as in the evaluation.
        source: where it was published.
    """

    metric: str
    value: float
    source: str


@dataclass(kw_only=True)
class EvaluationRecipe(Settings):
    """One evaluation.

    Attributes:
        data: the data set. If the source has `held_out`, only the held-out images are used.
        output: folder for metrics.json, predictions.jsonl and report.html.
        title: the title of the report.
        model: a name of `openblip models`, or a model folder.
        checkpoint: a `.pth` file that LAVIS saved, instead of the official one.
        results: a file for an evaluation server, of answers or of captions; by default, test sets without answers or
            captions give answers.json or captions.json in the output folder.
        limit: use only this many rows of the data, from the first.
        examples: how many of the best, the median and the worst rows the report shows.
        published: published numbers that the report shows beside ours.
    """

    data: DataSource
    output: str
    title: str | None = None
    data_root: str = "data"
    model: str = "mini"
    checkpoint: str | None = None
    results: str | None = None
    dtype: str | None = None
    device: str | None = None
    limit: int | None = None
    examples: int = 8
    published: list[Published] = field(default_factory=list)


def load_evaluation(path: Path, overrides: Sequence[str] = ()) -> EvaluationRecipe:
    """Read a YAML recipe and apply `key=value` overrides.

    Raises:
        OpenBlipError: omegaconf is not installed, the file is missing, or a key or value is wrong.
    """
    return checked(read_recipe(EvaluationRecipe, path, overrides, *PURPOSE), path)


def checked(recipe: EvaluationRecipe, path: Path) -> EvaluationRecipe:
    """The recipe, which is of the file at `path`. Raises OptionError for values that make no sense."""
    recipe.check()
    if not recipe.output.strip():
        raise OptionError(f"{path}: output is empty: name a folder for the scores")
    if recipe.results is not None and not recipe.results.strip():
        raise OptionError(f"{path}: results is empty: name a file, or leave it out")
    if recipe.data.stream:
        raise OptionError(f"{path}: an evaluation reads its data as a whole: leave stream out of data")
    if recipe.limit is not None and recipe.limit < 1:
        raise OptionError(f"{path}: limit is {recipe.limit}: it must be at least 1, or null for all")
    for figure in recipe.published:
        if not math.isfinite(figure.value):
            raise OptionError(f"{path}: the published {figure.metric} is {figure.value}: write a number such as 0.785")
    if recipe.examples < 0:
        raise OptionError(f"{path}: examples is {recipe.examples}: it must be 0 or more")
    return recipe
