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

TEXT_PANEL = "Text generation (what is left out is the model's own choice)"
OUTPUT_PANEL = "Output"


def _argument(metavar: str, explained: str) -> Any:
    return typer.Argument(metavar=metavar, help=explained, show_default=False)


def _about_model(metavar: str, explained: str, *names: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=explained, rich_help_panel="Model")


def _about_text(metavar: str, explained: str) -> Any:
    return typer.Option(metavar=metavar, help=explained, rich_help_panel=TEXT_PANEL)


RecipePath = Annotated[Path, _argument("RECIPE.yaml", "The recipe.")]
Overrides = Annotated[list[str] | None, _argument("KEY=VALUE", "Settings that replace the recipe's, with dots.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the recipe as it stands, and leave.")]

NewFolder = Annotated[Path, _argument("DST", "A new folder.")]
LavisFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A .pth of LAVIS, read instead of the official one.", show_default=False),
]

Inputs = Annotated[
    list[str],
    _argument("INPUT", "Image files, folders, quoted patterns ('photos/*.jpg') or web addresses."),
]
Images = Annotated[
    str,
    _argument("IMAGE", "An image file or web address; a folder or quoted pattern ('photos/*.jpg') for several."),
]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Look into subfolders, too.")]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, help="Images looked at together.")]

Model = Annotated[str, _about_model("NAME", "A name of `openblip models`, or a model folder.", "--model", "-m")]
Device = Annotated[str | None, _about_model("NAME", "cpu, cuda or cuda:1; by default CUDA where there is one.")]
Dtype = Annotated[
    str | None, _about_model("NAME", "float32, bfloat16, float16, int8 or int4; by default what the device runs fast.")
]
Adapter = Annotated[
    str | None,
    _about_model("FOLDER", "Low-rank adapters (LoRA) for the model: a folder or repository, as peft writes."),
]

Prompt = Annotated[str | None, _about_text("TEXT", "How captions begin; not repeated in the result.")]
NumCaptions = Annotated[int, _about_text("N", "Captions an image, best first.")]
Beams = Annotated[int | None, _about_text("N", "Width of the beam search; 1 is greedy.")]
TopP = Annotated[float | None, _about_text("P", "Draw from the likeliest tokens of this total probability.")]
TopK = Annotated[int | None, _about_text("N", "Draw from the N likeliest tokens.")]
Temperature = Annotated[float | None, _about_text("T", "Draw more boldly above 1, less below.")]
Seed = Annotated[int | None, _about_text("N", "Make random draws repeatable.")]
MinTokens = Annotated[int | None, _about_text("N", "Shortest new text.")]
MaxTokens = Annotated[int | None, _about_text("N", "Longest new text; the prompt does not count.")]
LengthPenalty = Annotated[float | None, _about_text("X", "Above 0 beam search favours long texts, below 0 short ones.")]
RepetitionPenalty = Annotated[float | None, _about_text("X", "Above 1 discourages words already used.")]

Stream = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="Show answers as they are written, greedily unless drawn at random.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON object a line instead of text.", rich_help_panel=OUTPUT_PANEL)
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
