"""`openblip convert`: a model from one layout to another."""

from __future__ import annotations

from typing import Annotated

import typer

from openblip.cli.arguments import LavisFile, NewFolder
from openblip.cli.report import print_line

EXAMPLES = """[bold]Examples[/bold]
  openblip convert Salesforce/blip2-opt-2.7b blip2/ --to openblip --storage float16
  openblip convert my-model/ for-transformers/ --to transformers
  openblip convert blip2_opt/pretrain_opt2.7b mine/ --checkpoint checkpoint_best.pth --to transformers"""


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A folder, or a name of `openblip models`.", show_default=False)
    ],
    folder: NewFolder,
    to: Annotated[str, typer.Option(metavar="LAYOUT", help="openblip, transformers or lavis.", show_default=False)],
    storage: Annotated[str, typer.Option(metavar="TYPE", help="float32, float16 or int8, for openblip.")] = "float32",
    task: Annotated[
        str | None,
        typer.Option(
            metavar="HALF",
            help="write or match: for transformers, of a model that does both.",
            show_default=False,
        ),
    ] = None,
    checkpoint: LavisFile = None,
) -> None:
    """Write a model in another layout; weights keep their values bit for bit.

    What LAVIS froze in training lies in files of its own, and is written so. Quantised weights become numbers in
    floating point again for transformers and LAVIS.
    """
    from openblip.checkpoints.tools import convert as converting

    for path in converting.convert(source, folder, to, storage=storage, task=task, checkpoint=checkpoint):
        print_line(str(path))
