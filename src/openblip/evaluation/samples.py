"""The rows that an evaluation recipe names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from openblip.data.annotations import is_held_out, read_captions, read_questions
from openblip.data.pairs import DataSource
from openblip.data.samples import Sample
from openblip.errors import OptionError
from openblip.evaluation.recipe import EvaluationRecipe


def read_samples(recipe: EvaluationRecipe) -> list[Sample]:
    """All rows of the recipe's source, or as many as its limit; of a source with `held_out` the held-out ones.

    Raises:
        OptionError: there are none.
        OpenBlipError: an annotation file is missing or malformed.
    """
    source = recipe.data
    rows = read_source(replace(source, held_out=0), Path(recipe.data_root))
    if source.held_out:
        rows = [row for row in rows if row.images and is_held_out(Path(row.images[0].name), source.held_out)]
    if not rows:
        split = f", split {source.split}" if source.split else ""
        raise OptionError(f"the data source {source.name}{split} has no rows: check its files and split")
    return rows[: recipe.limit]


def read_source(source: DataSource, data_root: Path) -> list[Sample]:
    """Rows of JSON-lines files. Raises OptionError when the source names neither captions nor questions."""
    if source.captions is None and source.questions is None:
        raise OptionError(f"the data source {source.name!r} needs captions, questions or both")
    rows = []
    if source.captions is not None:
        for said in read_captions(data_root / source.captions, source.split):
            rows.append(Sample(images=(said.image,), image_id=said.image.stem, captions=said.captions))
    if source.questions is not None:
        for asked in read_questions(data_root / source.questions):
            rows.append(
                Sample(
                    images=(asked.image,),
                    image_id=asked.image.stem,
                    question=asked.question,
                    answers=(asked.answer,),
                    kind=asked.kind,
                )
            )
    return rows
