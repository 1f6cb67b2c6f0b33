"""Arguments and options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from openblip.errors import OptionError

if TYPE_CHECKING:
    from openblip.options import TextOptions

TEXT_PANEL = "Text generation (by default, each model uses its own settings)"
OUTPUT_PANEL = "Output"


def _argument(metavar: str, explained: str) -> Any:
    return typer.Argument(metavar=metavar, help=explained, show_default=False)


def _about_model(metavar: str, explained: str, *names: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=explained, rich_help_panel="Model")


def _about_text(metavar: str, explained: str) -> Any:
    return typer.Option(metavar=metavar, help=explained, rich_help_panel=TEXT_PANEL)


RecipePath = Annotated[Path, _argument("RECIPE.yaml", "The recipe file.")]
Overrides = Annotated[
    list[str] | None, _argument("KEY=VALUE", "Settings that replace those of the recipe, such as optimizer.lr=1e-4.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the recipe with all its settings, and do nothing else.")]

NewFolder = Annotated[Path, _argument("DST", "The folder to write: a new or an empty one.")]
LavisFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A .pth file that LAVIS saved, to load instead of the official weights.",
        show_default=False,
    ),
]

Inputs = Annotated[
    list[str],
    _argument("INPUT", "Image files, folders, quoted patterns ('photos/*.jpg') or web addresses."),
]
Images = Annotated[
    str,
    _argument("IMAGE", "An image file or web address; a folder or quoted pattern ('photos/*.jpg') for several."),
]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Include images in subfolders.")]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, help="Number of images to process at once.")]

Model = Annotated[str, _about_model("NAME", "A name from `openblip models`, or a model folder.", "--model", "-m")]
Device = Annotated[str | None, _about_model("NAME", "cpu, cuda or cuda:1. Default: CUDA if there is one.")]
Dtype = Annotated[
    str | None, _about_model("NAME", "float32, bfloat16, float16, int8 or int4. Default: what the device runs fast.")
]
Adapter = Annotated[
    str | None,
    _about_model("FOLDER", "Low-rank adapters (LoRA) in peft's format: a folder, or a repository on the hub."),
]

Prompt = Annotated[str | None, _about_text("TEXT", "The words that captions begin with; they are not printed again.")]
NumCaptions = Annotated[int, _about_text("N", "Number of captions for each image, best first.")]
Beams = Annotated[int | None, _about_text("N", "Number of beams; 1 is greedy search.")]
TopP = Annotated[float | None, _about_text("P", "Sample from the most likely tokens with this total probability.")]
TopK = Annotated[int | None, _about_text("N", "Sample from the N most likely tokens.")]
Temperature = Annotated[
    float | None, _about_text("T", "Sample with this temperature: above 1 is more random, below 1 is less.")
]
Seed = Annotated[int | None, _about_text("N", "Seed for sampling; the same seed gives the same text.")]
MinTokens = Annotated[int | None, _about_text("N", "Minimum number of new tokens.")]
MaxTokens = Annotated[int | None, _about_text("N", "Maximum number of new tokens; the prompt does not count.")]
LengthPenalty = Annotated[
    float | None, _about_text("X", "Beam search prefers long texts above 0, short texts below 0.")
]
RepetitionPenalty = Annotated[
    float | None, _about_text("X", "Above 1, words that were already used become less likely.")
]

Stream = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="Show each answer while it is generated; greedy unless you sample.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object per line instead of text.", rich_help_panel=OUTPUT_PANEL)
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Write there, once all is done, instead of to the terminal.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]


def text_options(context: typer.Context) -> TextOptions:
    """What the command line says about generation, without what it leaves out."""
    from openblip.options import TextOptions

    given = {name: context.params.get(name) for name in TextOptions.__annotations__}
    return cast("TextOptions", {name: value for name, value in given.items() if value is not None})


def refuse_images(texts: Sequence[str]) -> None:
    """Stop when a shell has expanded an unquoted pattern into files where words belong.

    Raises:
        OptionError: naming the file.
    """
    from openblip.images.sources import IMAGE_SUFFIXES

    for text in texts:
        if os.path.splitext(text)[1].lower() in IMAGE_SUFFIXES and os.path.isfile(text):
            raise OptionError(f"{text} is an image, not words: for several images quote the pattern or give a folder")
