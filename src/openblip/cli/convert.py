"""`openblip convert`: a model from one layout to another."""

from __future__ import annotations

from typing import Annotated

import typer

from openblip.cli.arguments import LavisFile, NewFolder, WordsFrom
from openblip.cli.report import print_line

EXAMPLES = """[bold]Examples[/bold]
  openblip convert Salesforce/blip2-opt-2.7b blip2/ --to openblip --storage float16
  openblip convert my-model/ for-transformers/ --to transformers
  openblip convert both/ for-transformers/ --to transformers --task write
  openblip convert blip2_opt/pretrain_opt2.7b mine/ --checkpoint checkpoint_best.pth --to transformers"""


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A model folder, or a name from `openblip models`.", show_default=False)
    ],
    folder: NewFolder,
    to: Annotated[
        str,
        typer.Option(
            metavar="LAYOUT", help="The layout to write: openblip, transformers or lavis.", show_default=False
        ),
    ],
    storage: Annotated[
        str,
        typer.Option(metavar="TYPE", help="The type of the weights in the openblip layout: float32, float16 or int8."),
    ] = "float32",
    task: Annotated[
        str | None,
        typer.Option(
            metavar="HALF",
            help="For transformers: write (captions and answers) or match, if the model can do both.",
            show_default=False,
        ),
    ] = None,
    checkpoint: LavisFile = None,
    tokenizer: WordsFrom = None,
) -> None:
    """Convert a model to the layout of OpenBLIP, transformers or LAVIS; the weights stay the same, bit for bit.

    LAVIS keeps the parts that were frozen in training in files of their own, and so does this command.

    For transformers and LAVIS, quantized weights become floating-point numbers again.
    """
    from openblip.checkpoints.tools import convert as converting

    paths = converting.convert(
        source, folder, to, storage=storage, task=task, checkpoint=checkpoint, tokenizer=tokenizer
    )
    for path in paths:
        print_line(str(path))
