"""`openblip evaluate`: run an evaluation recipe, or one that is made of a file of data."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openblip.cli.arguments import DryRun, Overrides
from openblip.cli.interrupts import stoppable
from openblip.cli.progress import show_progress
from openblip.cli.report import SOME_FAILED, print_line, print_recipe
from openblip.errors import OptionError

if TYPE_CHECKING:
    from openblip.evaluation.recipe import EvaluationRecipe

EXAMPLES = """[bold]Examples[/bold]
  openblip evaluate recipes/evaluate/mini_captions.yaml data_root=/data
  openblip evaluate recipes/evaluate/mini_captions.yaml limit=100 text.num_beams=1 output=runs/greedy
  openblip evaluate recipes/evaluate/coco_captions_opt2.7b.yaml --dry-run
  openblip evaluate --data pairs.csv --images photos text.num_beams=3
  openblip evaluate --model mini --data dataset_flickr8k.json --images photos --split train limit=100

A recipe can build on another one in the same folder: with base: other.yaml, it gives only the keys that differ.

Without a recipe, the data says what is done: captions, questions, or labels. For a test set without answers or
captions, --results FILE is what the evaluation server takes.

A run that was stopped goes on when it is started again with the same recipe."""


class TaskName(str, Enum):
    """The tasks, for help that needs no heavy library."""

    CAPTIONS = "captions"
    QUESTIONS = "questions"
    RETRIEVAL = "retrieval"
    CLASSIFICATION = "classification"


def _own(explained: str, *names: str, metavar: str | None = None) -> object:
    return typer.Option(*names, metavar=metavar, help=explained, rich_help_panel="Your own data", show_default=False)


def evaluate(
    recipe: Annotated[str | None, typer.Argument(metavar="RECIPE.yaml", help="The recipe file.")] = None,
    overrides: Overrides = None,
    data: Annotated[
        Path | None, _own("Your images and texts, or a test set, instead of a recipe.", "--data", metavar="TABLE")
    ] = None,
    model: Annotated[
        str | None,
        _own("A name from `openblip models`, or a model folder. Default: mini.", "--model", "-m", metavar="NAME"),
    ] = None,
    images: Annotated[Path | None, _own("The folder that image paths are relative to.")] = None,
    split: Annotated[str | None, _own("The split, of data that has several.")] = None,
    annotations: Annotated[Path | None, _own("The answers to VQA's questions, if not beside them by name.")] = None,
    question: Annotated[str | None, _own("What the texts of a table answer, if it has no questions.")] = None,
    task: Annotated[TaskName | None, _own("The task, if the data has texts for several.")] = None,
    output: Annotated[
        Path | None, _own("The folder of scores and report. Default: TABLE-evaluation.", "--output", "-o")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A file of answers or captions for an evaluation server.", show_default=False
        ),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Evaluate a model with a recipe or on your own data: print the scores, and write metrics.json, predictions.jsonl
    and report.html.

    Images that cannot be read do not count in the scores; the report says how many there are, and the exit code is 1.
    """
    own = {"--model": model, "--images": images, "--split": split, "--annotations": annotations}
    own |= {"--question": question, "--task": task, "--output": output}
    results = results and results.expanduser()
    if data is None:
        given = [name for name, value in own.items() if value is not None]
        if given:
            raise OptionError(f"{given[0]} goes with --data: in a recipe, write KEY=VALUE, such as model=NAME")
        if recipe is None:
            raise OptionError("nothing to evaluate: give RECIPE.yaml, or --data TABLE")
        resolved = _of_recipe(Path(recipe), overrides or [], results)
    else:
        changes = [*([] if recipe is None else [recipe]), *(overrides or [])]
        if recipe is not None and "=" not in recipe:
            raise OptionError(f"{recipe} is no KEY=VALUE: give a recipe or --data, not both")
        from openblip.data.sources.own import OwnData
        from openblip.evaluation.own import EvaluateOptions, evaluation_recipe
        from openblip.evaluation.recipe import PURPOSE, checked
        from openblip.evaluation.settings import Task
        from openblip.recipes import change_recipe

        data, images = data.expanduser(), images and images.expanduser()
        source = OwnData(data, images, split, annotations and annotations.expanduser(), question)
        place = output or data.resolve().with_name(f"{data.resolve().stem}-evaluation")
        chosen = None if task is None else Task(task.value)
        made = evaluation_recipe(EvaluateOptions(model or "mini", source, place.expanduser(), chosen, results))
        resolved = checked(change_recipe(made, data, changes, *PURPOSE), data)
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
    if done.results is not None:
        print_line(str(done.results))
    print_line(str(done.output / "report.html"))
    if done.found.excluded:
        raise typer.Exit(SOME_FAILED)


def _of_recipe(path: Path, overrides: list[str], results: Path | None) -> EvaluationRecipe:
    from openblip.evaluation.recipe import load_evaluation

    resolved = load_evaluation(path, overrides)
    if results is not None:
        resolved.results = str(results)
    return resolved
