"""`openblip evaluate`: run an evaluation recipe."""

from __future__ import annotations

import typer

from openblip.cli.arguments import DryRun, Overrides, RecipePath
from openblip.cli.interrupts import stoppable
from openblip.cli.progress import show_progress
from openblip.cli.report import SOME_FAILED, print_line, print_recipe

EXAMPLES = """[bold]Examples[/bold]
  openblip evaluate recipes/evaluate/mini_captions.yaml data_root=/data
  openblip evaluate recipes/evaluate/mini_captions.yaml limit=100 text.num_beams=1 output=runs/greedy
  openblip evaluate recipes/evaluate/coco_captions_opt2.7b.yaml --dry-run

A recipe can build on another one in the same folder: with base: other.yaml, it gives only the keys that differ.

A run that was stopped goes on when it is started again with the same recipe."""


def evaluate(
    recipe: RecipePath,
    overrides: Overrides = None,
    dry_run: DryRun = False,
) -> None:
    """Evaluate a model with a recipe: print the scores, and write metrics.json, predictions.jsonl and report.html.

    Images that cannot be read do not count in the scores; the report says how many there are, and the exit code is 1.
    """
    from openblip.evaluation.recipe import load_evaluation

    resolved = load_evaluation(recipe, overrides or [])
    if dry_run:
        print_recipe(resolved)
        return
    from openblip.evaluation import run
    from openblip.evaluation.report import measured

    with stoppable(), show_progress("images") as progress:
        done = run.evaluate(resolved, progress)
    for line in measured(done.found, resolved):
        gap = f" ({line.difference})" if line.difference else ""
        beside = f"   published {line.published}{gap}, {line.source}" if line.published else ""
        print_line(f"{line.name:<28}{line.value:>7}{beside}")
    for note in done.found.notes:
        print_line(note)
    for image in done.found.excluded:
        print_line(f"left out: {image.image}: {image.problem}")
    print_line(str(done.output / "report.html"))
    if done.found.excluded:
        raise typer.Exit(SOME_FAILED)
