"""A chart of what `run.py` found: how many times as fast as the peer, and how near to what was to be reached.

    python benchmarks/plot.py runs/bench/full [--output runs/bench/full/bench.png]

The upper panel shows ratios, the peer's time divided by ours, with a line at 1. The lower panel shows results in other
units as a share of their required value; beyond the line is better, for sizes and times as well. Red marks are required
values (`bar` in the files of figures), green marks are hoped-for values (`goal`). One narrow column with large type
stays legible on a phone.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results import TIMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, BAR, GOAL = "#4878a8", "#c44e52", "#55a868"
BEHIND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
"""Of words, which marks may lie under."""
TYPE, WIDTH = 13, 6.0
"""Size of the type in points, and width of the chart in inches: a phone shows it at a third of its size."""
HEADROOM = 2
"""Rows that the title and the scale of a panel take."""


@dataclass(frozen=True)
class Drawn:
    """One bar of the chart: its length, those of its marks, and what is written beside it."""

    name: str
    length: float
    bar: float | None
    goal: float | None
    label: str


def read_rows(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """(benchmark, row) of every file of figures in a folder."""
    found = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        found += [(path.stem, row) for row in content.get("rows", ())]
    return found


def ratios(rows: list[tuple[str, dict[str, Any]]]) -> list[Drawn]:
    return [
        Drawn(f"{name}: {row['name']}", row["value"], row.get("bar"), row.get("goal"), f"{row['value']:.2f}")
        for name, row in rows
        if row["unit"] == TIMES
    ]


def shares(rows: list[tuple[str, dict[str, Any]]]) -> list[Drawn]:
    """What has a bar in another unit, as a share of it that is more than 1 where it is better."""
    found = []
    for name, row in rows:
        if row["unit"] == TIMES or row.get("bar") is None:
            continue
        value, bar, goal = row["value"], row["bar"], row["goal"]
        better, hoped = (bar / value, bar / goal) if row["less_is_better"] else (value / bar, goal / bar)
        found.append(Drawn(f"{name}: {row['name']}", better, 1.0, hoped, f"{value:.3g} {row['unit']}"))
    return found


def draw(axes: Axes, bars: list[Drawn], title: str) -> None:
    """A row for each bar: its name above it, as wide as it likes, and its value behind it."""
    places = range(len(bars))
    axes.barh(places, [bar.length for bar in bars], color=OURS, height=0.34)
    for place, bar in zip(places, bars, strict=True):
        for length, colour in ((bar.bar, BAR), (bar.goal, GOAL)):
            if length is not None:
                axes.plot([length, length], [place - 0.24, place + 0.24], color=colour, linewidth=3)
        axes.text(0, place - 0.24, bar.name, va="bottom", fontsize=TYPE, bbox=BEHIND)
        axes.text(bar.length, place, f" {bar.label}", va="center", fontsize=TYPE, bbox=BEHIND)
    axes.axvline(1, color="gray", linewidth=1, zorder=0)
    axes.set_yticks([])
    axes.tick_params(axis="x", labelsize=TYPE)
    axes.set_ylim(len(bars) - 0.5, -0.8)
    axes.set_xlim(left=0)
    axes.margins(x=0.2)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.set_title(title, fontsize=TYPE + 2, loc="left", pad=14)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = read_rows(options.folder)
    panels = [
        ("times as fast as the peer", ratios(rows)),
        ("share of the required value", shares(rows)),
    ]
    panels = [(title, bars) for title, bars in panels if bars]
    if not panels:
        raise SystemExit(f"{options.folder} has no figures: run benchmarks/run.py first")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    rows_of = [len(bars) + HEADROOM for _, bars in panels]
    figure = Figure(figsize=(WIDTH, 0.6 * sum(rows_of)), layout="constrained")
    grid = figure.add_gridspec(len(panels), 1, height_ratios=rows_of)
    for place, (title, bars) in enumerate(panels):
        draw(figure.add_subplot(grid[place]), bars, title)
    output = options.output or options.folder / "bench.png"
    figure.savefig(output, dpi=150)
    print(f"\n{output}")


if __name__ == "__main__":
    main()
