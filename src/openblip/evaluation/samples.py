"""The rows that an evaluation recipe names."""

from __future__ import annotations

from pathlib import Path

from openblip.data.sample import Sample
from openblip.data.sources.open import keep_held_out_part, read_source
from openblip.errors import OptionError
from openblip.evaluation.recipe import EvaluationRecipe


def read_samples(recipe: EvaluationRecipe) -> list[Sample]:
    """All rows of the recipe's source, or as many as its limit; of a source with `held_out` the held-out ones.

    Raises:
        OptionError: there are none.
        OpenBlipError: an annotation file is missing or malformed.
    """
    source = recipe.data
    rows = read_source(source, Path(recipe.data_root))
    if source.held_out:
        rows = keep_held_out_part(rows, source.held_out)
    if not rows:
        split = f", split {source.split}" if source.split else ""
        raise OptionError(f"the data source {source.name}{split} has no rows: check its files and split")
    return rows[: recipe.limit]
