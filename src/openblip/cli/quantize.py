"""`openblip quantize`: a model with 8- or 4-bit weights."""

from __future__ import annotations

from typing import Annotated

import typer

from openblip.cli.arguments import LavisFile, NewFolder, WordsFrom
from openblip.cli.report import print_line

EXAMPLES = """[bold]Examples[/bold]
  openblip quantize Salesforce/blip2-opt-2.7b blip2-int8/ --bits 8
  openblip caption photo.jpg --model blip2-int8/
  openblip quantize blip2_opt/pretrain_opt2.7b mine-int4/ --bits 4 --checkpoint checkpoint_best.pth"""


def quantize(
    source: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A name from `openblip models`, or a model folder.", show_default=False),
    ],
    folder: NewFolder,
    bits: Annotated[
        int, typer.Option(metavar="N", help="8; or 4, for 4 bits in the language model and 8 bits elsewhere.")
    ] = 8,
    checkpoint: LavisFile = None,
    tokenizer: WordsFrom = None,
) -> None:
    """Quantize a model to 8 or 4 bits: it needs less disk space and memory, and is several times faster on a CPU.

    With `--dtype int8`, other commands quantize a model each time they load it; a quantized folder loads faster.
    """
    from openblip.checkpoints.tools.quantize import quantize_model

    path = quantize_model(source, folder, bits, checkpoint=checkpoint, tokenizer=tokenizer)
    print_line(f"{path} ({path.stat().st_size / 1e6:,.1f} MB)")
