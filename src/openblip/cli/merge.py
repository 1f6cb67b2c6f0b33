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
            metavar="ADAPTER",
            help="Low-rank adapters (LoRA) in peft's format: a folder, or a repository on the hub.",
            show_default=False,
        ),
    ],
    folder: NewFolder,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The model to merge into. Default: the one that the adapter names.", show_default=False
        ),
    ] = None,
    storage: Annotated[
        str, typer.Option(metavar="TYPE", help="The type of the weights: float32, float16 or int8.")
    ] = "float32",
    checkpoint: LavisFile = None,
) -> None:
    """Merge low-rank adapters (LoRA) into the weights of a model, and write the result to a new folder.

    With `--adapter`, other commands merge the adapters each time they load the model.
    """
    from openblip.checkpoints.tools.merge import merge_adapter

    path = merge_adapter(adapter, folder, base, storage=storage, checkpoint=checkpoint)
    print_line(f"{path} ({path.stat().st_size / 1e6:,.1f} MB)")
