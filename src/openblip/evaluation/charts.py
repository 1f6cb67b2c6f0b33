"""The data of a report's bar charts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from openblip.evaluation.outcome import Evaluation, Row
from openblip.evaluation.settings import Task

BARS = 20


@dataclass(frozen=True)
class Series:
    """Bars of one colour, with one value for each category."""

    name: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Chart:
    """A bar chart.

    Attributes:
        unit: the unit of the values, such as "images" or "%".
        axis: the label of the categories.
    """

    title: str
    unit: str
    axis: str
    categories: tuple[str, ...]
    series: tuple[Series, ...]

    @property
    def ticks(self) -> list[float]:
        """At most six round numbers from 0 to the largest value or just above it."""
        largest = max((value for one in self.series for value in one.values), default=0) or 1
        size = 10.0 ** math.floor(math.log10(largest))
        step = next(size * part for part in (0.2, 0.5, 1, 2) if largest <= 5 * size * part + 1e-9)
        return [step * number for number in range(math.ceil(largest / step - 1e-9) + 1)]


def charts_of(found: Evaluation) -> list[Chart]:
    """The charts for an evaluation."""
    if not found.metrics:
        return []
    if found.task is Task.CAPTIONS:
        return [_spread(found.rows, "CIDEr"), _lengths(found.rows)]
    if found.task is Task.RETRIEVAL:
        return [_places(found.rows)]
    chart = _shares(found)
    return [chart] if chart is not None else []


def _spread(rows: Sequence[Row], name: str) -> Chart:
    """A histogram of the scores of images."""
    top = max(row.score for row in rows) or 1.0
    width = next(step for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.5, 1, 2, 5, 10) if top / step <= BARS)
    counts = Counter(int(row.score / width) for row in rows)
    last = max(counts)
    return Chart(
        title=f"{name} of each image",
        unit="images",
        axis=f"{name} x 100, from",
        categories=tuple(f"{100 * width * place:.0f}" for place in range(last + 1)),
        series=(Series("images", tuple(float(counts[place]) for place in range(last + 1))),),
    )


def _lengths(rows: Sequence[Row]) -> Chart:
    """A histogram of the lengths of captions, of the model and of people."""
    ours = Counter(len(row.prediction.split()) for row in rows)
    theirs = Counter(len(text.split()) for row in rows for text in row.references)
    longest = min(30, max(*ours, *theirs))

    def share(counts: Counter[int], length: int) -> float:
        some = counts[length] if length < longest else sum(n for words, n in counts.items() if words >= longest)
        return 100 * some / sum(counts.values())

    return Chart(
        title="Length of captions",
        unit="% of captions",
        axis="words",
        categories=tuple(str(length) if length < longest else f"{length}+" for length in range(1, longest + 1)),
        series=tuple(
            Series(name, tuple(share(counts, length) for length in range(1, longest + 1)))
            for name, counts in (("model", ours), ("people", theirs))
        ),
    )


def _places(rows: Sequence[Row]) -> Chart:
    """A histogram of the ranks of the right results, in both directions."""
    names = ("1", "2", "3", "4", "5", "6 to 10", "later")

    def shares(wanted: Callable[[Row], bool]) -> tuple[float, ...]:
        places = [round(1 / row.score) if row.score else 99 for row in rows if wanted(row)]
        counts = Counter(names[place - 1] if place <= 5 else names[5] if place <= 10 else names[6] for place in places)
        return tuple(100 * counts[name] / max(1, len(places)) for name in names)

    return Chart(
        title="Where the right one was found",
        unit="% of queries",
        axis="place",
        categories=names,
        series=(
            Series("text to image", shares(lambda row: bool(row.question))),
            Series("image to text", shares(lambda row: not row.question)),
        ),
    )


def _shares(found: Evaluation) -> Chart | None:
    """Accuracy by kind of question or by label, if there are several."""
    mark = "accuracy ("
    kinds = {name[len(mark) : -1]: value for name, value in found.metrics.items() if name.startswith(mark)}
    if len(kinds) < 2:
        return None
    return Chart(
        title="Accuracy by kind" if found.task is Task.QUESTIONS else "Share found of each label",
        unit="%",
        axis="kind" if found.task is Task.QUESTIONS else "label",
        categories=tuple(kinds),
        series=(Series("accuracy", tuple(100 * value for value in kinds.values())),),
    )
