"""Loss curves: a CSV that a resumed run continues, and a chart of it."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from openblip.saving import naming

WINDOW = 50
"""Most steps that means and the plotted line average over."""
SHARE = 20
"""The plotted line averages over at most 1 / SHARE of a run, so short runs have curves, too."""


class StepTable:
    """A CSV with one row per recorded step.

    Args:
        columns: the first is "step".
        steps_done: rows beyond this step, written by a run that was killed before its checkpoint, are dropped.
    """

    def __init__(self, path: Path, columns: Sequence[str], steps_done: int) -> None:
        self.path, self.columns = path, columns
        self.pending: list[dict[str, str]] = []
        self.kept = [row for row in _read(path) if int(row["step"]) <= steps_done]
        self.rewrite = True

    def add(self, row: dict[str, str]) -> None:
        self.pending.append(row)

    def write(self) -> None:
        """Append new rows; the first time, rewrite the file without rows beyond `steps_done`."""
        rows = self.kept + self.pending if self.rewrite else self.pending
        if not rows:
            return
        mode = "w" if self.rewrite else "a"
        with naming(self.path), self.path.open(mode, newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=self.columns)
            if self.rewrite:
                writer.writeheader()
            writer.writerows(rows)
        self.pending, self.kept, self.rewrite = [], [], False


class Curves:
    """Collects losses step by step.

    Args:
        folder: where curves.csv and curves.png go.
        steps_done: see `StepTable`.
        names: the losses, one column each; a step may lack some of them.
    """

    def __init__(self, folder: Path, steps_done: int, names: Sequence[str]) -> None:
        self.names = names
        self.table = StepTable(folder / "curves.csv", ["step", "epoch", "lr", *names], steps_done)
        self.chart = folder / "curves.png"
        self.recent: deque[dict[str, float]] = deque(maxlen=WINDOW)

    def add(self, step: int, epoch: int, rate: float, losses: dict[str, float]) -> None:
        self.recent.append(losses)
        shown = {name: f"{value:.5f}" for name, value in losses.items()}
        self.table.add({"step": str(step), "epoch": str(epoch), "lr": f"{rate:.3e}", **shown})

    def means(self) -> dict[str, float]:
        """The mean of each loss over the last steps that have it."""
        values_of = {name: [row[name] for row in self.recent if name in row] for name in self.names}
        return {name: sum(values) / len(values) for name, values in values_of.items() if values}

    def write(self) -> None:
        self.table.write()

    def plot(self) -> None:
        """Draw curves.png, if matplotlib is installed."""
        try:
            import matplotlib
        except ImportError:
            return
        matplotlib.use("agg")
        from matplotlib import pyplot

        rows = _read(self.table.path)
        figure, axes = pyplot.subplots(figsize=(8, 4.5))
        window = max(1, min(WINDOW, len(rows) // SHARE))
        for name in self.names:
            present = [row for row in rows if row[name]]
            steps = [int(row["step"]) for row in present]
            values = [float(row[name]) for row in present]
            (single,) = axes.plot(steps, values, alpha=0.25, linewidth=1)
            axes.plot(steps, _means(values, window), color=single.get_color(), label=name)
        axes.set(xlabel="step", ylabel="loss", title=f"Losses of each step, and means of the last {window}")
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))  # a reward may be below zero
        axes.grid(alpha=0.3)
        axes.legend()
        figure.tight_layout()
        with naming(self.chart):
            figure.savefig(self.chart, dpi=120)
        pyplot.close(figure)


def _means(values: Sequence[float], window: int) -> list[float]:
    """Of each value and those before it, so many together."""
    sums = list(accumulate(values, initial=0.0))
    firsts = (max(0, last - window) for last in range(1, len(sums)))
    return [(sums[last] - sums[first]) / (last - first) for last, first in enumerate(firsts, 1)]


def _read(path: Path) -> list[dict[str, str]]:
    """The complete rows of a file; a killed run may have left half a row."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        lines = [line.replace("\0", "") for line in file if line.endswith("\n")]
    rows = csv.DictReader(lines)
    return [row for row in rows if (row.get("step") or "").isdecimal() and None not in (*row, *row.values())]
