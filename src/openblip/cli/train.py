"""`openblip train`: run a training recipe."""

from __future__ import annotations

from openblip.cli.arguments import DryRun, Overrides, RecipePath
from openblip.cli.interrupts import stoppable
from openblip.cli.report import print_line, print_recipe

EXAMPLES = """[bold]Examples[/bold]
  openblip train recipes/mini/2_stage1.yaml
  openblip train recipes/mini/2_stage1.yaml data_root=/data optimizer.lr=1e-4 epochs=5
  openblip train recipes/mini/2_stage1.yaml batch_size=32 --dry-run

A recipe can build on another one in the same folder: with base: other.yaml, it gives only the keys that differ.

A run that was stopped goes on from its last checkpoint when it is started again with the same recipe."""


def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    dry_run: DryRun = False,
) -> None:
    """Train a model from a recipe, and print the folder of the model."""
    from openblip.training.recipe import load_recipe

    resolved = load_recipe(recipe, overrides or [])
    if dry_run:
        print_recipe(resolved)
        return
    from openblip.training import run
    from openblip.training.parallel.processes import World, leave

    with stoppable():
        folder = run.train(resolved)
    if World.current().rank == 0:
        print_line(str(folder))
    leave()
