"""The report of an evaluation: a self-contained HTML page without scripts."""

from __future__ import annotations

import base64
import hashlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openblip.data.sample import ImageFile
from openblip.errors import ImageError, OpenBlipError
from openblip.evaluation.charts import Chart, charts_of
from openblip.evaluation.outcome import Evaluation, Row
from openblip.evaluation.recipe import EvaluationRecipe
from openblip.evaluation.settings import Task
from openblip.images.decode import load_image
from openblip.recipes import write_recipe
from openblip.saving import replacing

THUMBNAIL = 320
"""The longest side of a thumbnail, in pixels."""
BASE, HEIGHT = 170.0, 150.0
"""The base line of the bars of a chart, and the height of the tallest."""
TEMPLATE = Path(__file__).with_name("report.html")

NAMES = {
    **{f"bleu_{order}": f"BLEU-{order}" for order in range(1, 5)},
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
    "spice": "SPICE",
    "accuracy": "Accuracy",
    "exact": "Exact match",
    "balanced accuracy": "Mean over labels",
    "without label": "Answers without label",
    "mean": "Mean of all recalls",
    **{
        f"{way.lower().replace(' ', '_')}_{name}": f"{way}, {shown}"
        for way in ("Text to image", "Image to text")
        for name, shown in (("at_1", "R@1"), ("at_5", "R@5"), ("at_10", "R@10"), ("mean", "mean"))
    },
}


@dataclass(frozen=True)
class Measured:
    """One line of the table of metrics; numbers are times 100, as in papers."""

    name: str
    value: str
    published: str = ""
    difference: str = ""
    source: str = ""


@dataclass(frozen=True)
class Shown:
    """One image of the contact sheet.

    Attributes:
        image: a JPEG as a data URL; "" if the image cannot be read.
        alt: the alternative text: a caption, if there is one.
        references: each text once, with the number of people who gave it if there were several.
    """

    row: Row
    image: str
    alt: str
    score: str
    references: tuple[str, ...]


def write_report(path: Path, recipe: EvaluationRecipe, found: Evaluation, about: Mapping[str, Any]) -> None:
    """Write the page.

    Raises:
        OpenBlipError: jinja2 is not installed.
    """
    text = render_report(recipe, found, about)
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8", errors="xmlcharrefreplace")


def render_report(recipe: EvaluationRecipe, found: Evaluation, about: Mapping[str, Any]) -> str:
    """The page as text. Raises OpenBlipError if jinja2 is not installed."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError:
        raise OpenBlipError('the report needs more packages: pip install "openblip[eval]"') from None
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=recipe.title or f"{found.task.value.capitalize()}: {recipe.model} on {recipe.data.name}",
        task=found.task.value,
        table=measured(found, recipe),
        found=found,
        names=NAMES,
        order=NAMES.get(found.ordered_by, found.ordered_by),
        about=about,
        recipe=write_recipe(recipe),
        charts=charts_of(found),
        bars=bars,
        lines=lines,
        place=lambda image: image.replace("\\", "/").rpartition("/")[2],
        sheets=[(name, [show(row, found) for row in rows]) for name, rows in chosen_rows(found.rows, recipe.examples)],
    )


def measured(found: Evaluation, recipe: EvaluationRecipe) -> list[Measured]:
    """The metrics, each with the published numbers for it."""
    lines = []
    for name, value in found.metrics.items():
        shown, ours = NAMES.get(name, name[:1].upper() + name[1:]), f"{100 * value:.1f}"
        figures = [figure for figure in recipe.published if figure.metric == name]
        if not figures:
            lines.append(Measured(shown, ours))
        for figure in figures:
            gap = f"{100 * (value - figure.value):+.1f}"
            lines.append(Measured(shown, ours, f"{100 * figure.value:.1f}", gap, figure.source))
            shown = ours = ""  # shown once
    # What cannot be computed here, as the accuracy of hidden answers.
    for name in dict.fromkeys(figure.metric for figure in recipe.published if figure.metric not in found.metrics):
        for figure in (figure for figure in recipe.published if figure.metric == name):
            shown = NAMES.get(name, name[:1].upper() + name[1:])
            lines.append(Measured(shown, "", f"{100 * figure.value:.1f}", "", figure.source))
    return lines


def chosen_rows(rows: Sequence[Row], count: int) -> list[tuple[str, list[Row]]]:
    """The best, median and worst rows, none twice; equal rows are spread over the data."""

    def order(row: Row) -> tuple[float, bytes]:
        name = f"{row.image} {row.question} {row.sample_id}"
        return -row.score, hashlib.md5(name.encode(errors="surrogatepass")).digest()

    ordered = sorted(rows, key=order)
    count = min(count, max(1, len(ordered) // 3)) if count else 0
    start = (len(ordered) - count) // 2
    parts = [("Best", ordered[:count]), ("Middle", ordered[start : start + count])]
    parts.append(("Worst", ordered[max(0, len(ordered) - count) :][::-1]))
    shown: set[int] = set()
    sheets = []
    for name, part in parts if count else []:
        fresh = [row for row in part if id(row) not in shown]
        shown.update(id(row) for row in fresh)
        if fresh:
            sheets.append((name, fresh))
    return sheets


def show(row: Row, found: Evaluation) -> Shown:
    caption = row.references[0] if found.task is Task.CAPTIONS and row.references else ""
    return Shown(
        row=row,
        image="" if row.image_file is None else thumbnail(row.image_file),
        alt=caption or f"the image {Path(row.image).name}",
        score=f"{100 * row.score:.0f}",
        references=tuple(
            text if count == 1 else f"{text} ({count} people)" for text, count in Counter(row.references).most_common()
        ),
    )


def thumbnail(image: ImageFile) -> str:
    """A small JPEG of the image as a data URL, without metadata; "" if the image cannot be read."""
    try:
        small = load_image(image if isinstance(image, Path) else image.read_bytes())
    except ImageError:
        return ""
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=72, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def lines(chart: Chart) -> list[tuple[float, str]]:
    """The ticks of a chart: the position and the label of each."""
    return [(round(BASE - HEIGHT * tick / chart.ticks[-1], 2), f"{tick:.4g}") for tick in chart.ticks]


@dataclass(frozen=True)
class Bar:
    """A rectangle in a chart of 640 x 206 units."""

    x: float
    y: float
    width: float
    height: float
    series: int
    tooltip: str


def bars(chart: Chart) -> list[Bar]:
    """The bars of a chart, from left to right."""
    left, base, height, top = 46.0, BASE, HEIGHT, chart.ticks[-1]
    slot = (640 - left) / len(chart.categories)
    width = slot * 0.8 / len(chart.series)
    return [
        Bar(
            x=round(left + slot * (place + 0.1) + width * number, 2),
            y=round(base - height * series.values[place] / top, 2),
            width=round(width, 2),
            height=round(height * series.values[place] / top, 2),
            series=number,
            tooltip=f"{category} ({series.name}): {series.values[place]:.4g} {chart.unit}",
        )
        for number, series in enumerate(chart.series)
        for place, category in enumerate(chart.categories)
    ]
