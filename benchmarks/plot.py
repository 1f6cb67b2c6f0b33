"""A chart of what `run.py` found: how many times as fast as the peer, and how near to what was to be reached.

    python benchmarks/plot.py runs/bench/full [--output runs/bench/full/bench.png]

On the left are ratios, the peer's time by ours, with a line at 1; bars and goals are marks of their own. On the right
is what has a bar in units of its own, as a share of it: beyond the line is better, of sizes and times as well.
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
BEHIND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5}
"""Of figures, which marks may lie under."""


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
    places = range(len(bars))
    axes.barh(places, [bar.length for bar in bars], color=OURS, height=0.6)
    for place, bar in zip(places, bars, strict=True):
        for length, colour in ((bar.bar, BAR), (bar.goal, GOAL)):
            if length is not None:
                axes.plot([length, length], [place - 0.4, place + 0.4], color=colour, linewidth=2)
        axes.text(bar.length, place, f" {bar.label}", va="center", fontsize=7, bbox=BEHIND)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.plot([], [], color=BAR, label="bar")
    axes.plot([], [], color=GOAL, label="goal")
    axes.set_yticks(places, [bar.name for bar in bars], fontsize=7)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=7, loc="lower right")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows = read_rows(options.folder)
    panels = [("times as fast as the peer", ratios(rows)), ("share of what was to be reached", shares(rows))]
    panels = [(title, bars) for title, bars in panels if bars]
    if not panels:
        raise SystemExit(f"{options.folder} has no figures: run benchmarks/run.py first")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7 * len(panels), 1.5 + 0.3 * max(len(bars) for _, bars in panels)), layout="constrained")
    for place, (title, bars) in enumerate(panels, 1):
        draw(figure.add_subplot(1, len(panels), place), bars, title)
    output = options.output or options.folder / "bench.png"
    figure.savefig(output, dpi=150)
    print(f"\n{output}")


if __name__ == "__main__":
    main()
