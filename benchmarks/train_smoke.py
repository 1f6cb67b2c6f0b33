"""Whether training works on this machine: both stages and adapters, on ten photos, in minutes.

    python benchmarks/train_smoke.py [--output runs/smoke] [--epochs 12]

The bundled model learns the captions of examples/captions.csv: first stage 1 (contrast, matching, generation), then
stage 2 from there, then low-rank adapters from the bundled model. What is checked: every loss falls, the caption of a
photo changes, and the exit code is 1 where one does not.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
from pathlib import Path

import openblip
from openblip.data.pairs import DataSource
from openblip.training.lora.adapters import LoraSection
from openblip.training.recipe import MonitorSection, OptimizerSection, Recipe, Stage
from openblip.training.run import train

EXAMPLES = Path(__file__).parents[1] / "examples"
PHOTO = EXAMPLES / "000000165518.jpg"


def recipe(stage: Stage, init: str, output: Path, epochs: int, rate: float, lora: bool = False) -> Recipe:
    return Recipe(
        stage=stage,
        init=init,
        output=str(output),
        data=[DataSource("examples", table=str(EXAMPLES / "captions.csv"))],
        data_root="",
        cache=str(output.parent / "features"),
        epochs=epochs,
        batch_size=5,
        optimizer=OptimizerSection(lr=rate, min_lr=rate / 10, warmup_steps=4),
        log_every=2,
        monitor=MonitorSection(tensorboard=False),
        lora=LoraSection(targets=["language_model", "qformer"]) if lora else None,
    )


def fall(folder: Path) -> tuple[float, float]:
    """The sum of losses in the first steps and in the last."""
    with (folder / "curves.csv").open(newline="") as file:
        rows = [
            sum(float(value) for name, value in row.items() if value and name not in ("step", "epoch", "lr"))
            for row in csv.DictReader(file)
        ]
    part = max(1, len(rows) // 5)
    return sum(rows[:part]) / part, sum(rows[-part:]) / part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/smoke"))
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    shutil.rmtree(options.output, ignore_errors=True)
    stages = [
        recipe(Stage.STAGE1, "mini", options.output / "stage1", options.epochs, 2e-4),
        recipe(Stage.STAGE2, str(options.output / "stage1"), options.output / "stage2", options.epochs, 5e-4),
        recipe(Stage.STAGE2, "mini", options.output / "lora", options.epochs, 2e-3, lora=True),
    ]
    before = openblip.load("mini").caption(PHOTO)
    lines, wrong = [f"{'before':8} {'':18} {before}"], []
    for each in stages:
        folder = train(each)
        first, last = fall(folder)
        said = openblip.load(folder).caption(PHOTO) if each.stage is Stage.STAGE2 else ""
        lines.append(f"{folder.name:8} loss {first:5.2f} to {last:5.2f} {said}")
        if not last < 0.9 * first:
            wrong.append(f"the loss of {folder.name} does not fall")
        if said == before:
            wrong.append(f"{folder.name} changes no caption")
    print("\n".join(lines))
    sys.exit("; ".join(wrong) or None)


if __name__ == "__main__":
    main()
