"""`openblip finetune`: a model that has seen one's own images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from openblip.cli.arguments import DryRun, Model
from openblip.cli.interrupts import stoppable
from openblip.cli.report import print_line, print_recipe
from openblip.errors import OptionError

EXAMPLES = """[bold]Examples[/bold]
  openblip finetune --data pairs.csv
  openblip finetune --data pairs.csv --images photos --output my-model --epochs 10
  openblip finetune --model Salesforce/blip2-opt-2.7b --data questions.jsonl --lora
  openblip finetune --model blip_caption/base_coco --data pairs.csv
  openblip finetune --data dataset_flickr8k.json --images photos --split train
  openblip finetune --model openai/clip-vit-base-patch32 --data pairs.csv
  openblip finetune --data pairs.csv --dry-run > recipe.yaml

The table has a column of images (image, path, file, ...) and one of texts (caption, text, ...), or two of questions and
answers, or two of sentences and labels, for a BLIP that is to judge them. Other BLIP models learn what they do: texts,
answers, or which texts belong to which images. A tenth of the images is held out: the weights that do best on it are
kept, and texts for it shown as it goes. A run that was stopped goes on when it is started again."""


FLAGS = {
    "init": "--model",
    "data.0.table": "--data",
    "data.0.images": "--images",
    "data.0.split": "--split",
    "data.0.annotations": "--annotations",
    "data.0.question": "--question",
    "epochs": "--epochs",
    "batch_size": "--batch-size",
    "optimizer.lr": "--lr",
    "lora": "--lora",
    "lora.rank": "--rank",
    "seed": "--seed",
}
"""What the keys of the recipe are called here; the others follow from these and from the data."""


def finetune(
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="TABLE",
            help="Your images and texts: CSV, TSV, JSONL, Parquet, a tar, a folder, or a file of COCO, Karpathy, VQA, "
            "LLaVA or kohya.",
            show_default=False,
        ),
    ],
    model: Model = "mini",
    images: Annotated[
        Path | None, typer.Option("--images", help="The folder that image paths are relative to.", show_default=False)
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="The split to train on, of data that has several.", show_default=False)
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option(help="The answers to VQA's questions, if not beside them by name.", show_default=False),
    ] = None,
    question: Annotated[
        str | None, typer.Option(help="What the texts of a table answer, if it has no questions.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder of the new model.", show_default="TABLE-model")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Number of passes over the images.", show_default="by size")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per step.", show_default="by size")] = None,
    rate: Annotated[float | None, typer.Option("--lr", help="Learning rate.", show_default="by model")] = None,
    lora: Annotated[bool, typer.Option("--lora", help="Train low-rank adapters (LoRA) only.")] = False,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapters.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 42,
    dry_run: DryRun = False,
) -> None:
    """Fine-tune a model on images with captions, or with questions and answers, and print the new folder."""
    from openblip.data.sources.own import OwnData
    from openblip.training.finetune import FinetuneOptions, finetuning_recipe

    # No shell replaces the ~ of --data=~/pairs.csv.
    data, images = data.expanduser(), images and images.expanduser()
    place = _beside(data) if output is None else output.expanduser()
    annotations = annotations and annotations.expanduser()
    source = OwnData(data, images, split, annotations, question)
    recipe = finetuning_recipe(FinetuneOptions(model, source, place, epochs, batch_size, rate, lora, rank, seed))
    if dry_run:
        print_recipe(recipe)
        return
    from openblip.training.loop.checkpoint import OtherRunError
    from openblip.training.parallel.processes import World, leave
    from openblip.training.run import train

    with stoppable():
        try:
            folder = train(recipe)
        except OtherRunError as error:
            raise error.renamed(FLAGS) from error
    if World.current().rank == 0:
        print_line(str(folder))
    leave()


def _beside(data: Path) -> Path:
    """The folder of the new model where none is given. Raises OptionError when the table's path has no name."""
    named = data.resolve() if data.name in ("", "..") else data
    if not named.name:
        raise OptionError(f"{data} has no name to call the model by: give --output")
    return named.with_name(f"{named.stem}-model")
