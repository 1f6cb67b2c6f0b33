"""`openblip merge`: a model with an adapter in its weights."""

from __future__ import annotations

from typing import Annotated

import typer

from openblip.cli.arguments import LavisFile, NewFolder
from openblip.cli.report import print_line

EXAMPLES = """[bold]Examples[/bold]
  openblip merge my-adapter/ merged/
  openblip merge my-adapter/ merged/ --base Salesforce/blip2-opt-2.7b --storage float16
  openblip caption photo.jpg --model merged/"""


def merge(
    adapter: Annotated[
        str,
        typer.Argument(
            metavar="ADAPTER", help="A folder or repository with LoRA as peft writes it.", show_default=False
        ),
    ],
    folder: NewFolder,
    base: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The model; by default the one that it was trained on.", show_default=False),
    ] = None,
    storage: Annotated[str, typer.Option(metavar="TYPE", help="float32, float16 or int8.")] = "float32",
    checkpoint: LavisFile = None,
) -> None:
    """Write a model with low-rank adapters (LoRA) merged into its weights, as a folder of its own.

    `--adapter` of the other commands does the same whenever a model is loaded.
    """
    from openblip.checkpoints.tools.merge import merge_adapter

    path = merge_adapter(adapter, folder, base, storage=storage, checkpoint=checkpoint)
    print_line(f"{path} ({path.stat().st_size / 1e6:,.1f} MB)")
