"""`openblip quantize`: a model with 8- or 4-bit weights."""

from __future__ import annotations

from typing import Annotated

import typer

from openblip.cli.arguments import LavisFile, NewFolder
from openblip.cli.report import print_line

EXAMPLES = """[bold]Examples[/bold]
  openblip quantize Salesforce/blip2-opt-2.7b blip2-int8/ --bits 8
  openblip caption photo.jpg --model blip2-int8/
  openblip quantize blip2_opt/pretrain_opt2.7b mine-int4/ --bits 4 --checkpoint checkpoint_best.pth"""


def quantize(
    source: Annotated[
        str, typer.Argument(metavar="NAME", help="A name of `openblip models`, or a model folder.", show_default=False)
    ],
    folder: NewFolder,
    bits: Annotated[
        int, typer.Option(metavar="N", help="8; or 4 for the language model's layers and 8 for the rest.")
    ] = 8,
    checkpoint: LavisFile = None,
) -> None:
    """Write a model with large matrices in 8 or 4 bits: smaller on disk and in memory, on a CPU several times faster.

    `--dtype int8` of the other commands does the same whenever a model is loaded; a folder saves the time for it.
    """
    from openblip.checkpoints.tools.quantize import quantise_model

    path = quantise_model(source, folder, bits, checkpoint=checkpoint)
    print_line(f"{path} ({path.stat().st_size / 1e6:,.1f} MB)")
