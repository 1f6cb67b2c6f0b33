"""`openblip download`: fetch a model's files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from openblip.checkpoints.hub.progress import download_progress
from openblip.cli.interrupts import stoppable
from openblip.cli.report import print_line

EXAMPLES = """[bold]Examples[/bold]
  openblip download Salesforce/blip2-opt-2.7b
  openblip download blip2_t5/pretrain_flant5xl --local-dir weights/
  openblip download Salesforce/blip2-opt-2.7b --include 'token*' --include '*.txt' --local-dir words/
  openblip download blip2/coco --exclude 'token*' --cache-dir cache/

Started again, a download goes on where it stopped. The cache is Hugging Face's: HF_HOME moves it,
HF_HUB_OFFLINE=1 forbids the network, HF_ENDPOINT names a mirror, HF_TOKEN says who you are."""


def download(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A name from `openblip models`, or a repository on the hub.", show_default=False
        ),
    ],
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Take only files that match; repeat it for more patterns.", show_default=False
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Leave out files that match; repeat it for more patterns.", show_default=False
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="NAME", help="Branch, tag or commit of the repository.", show_default=False)
    ] = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Use this cache folder instead of the default one.", show_default=False),
    ] = None,
    local_dir: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write plain files to this folder instead of a cache.", show_default=False),
    ] = None,
) -> None:
    """Download the files of a model that are not here yet, and print the path of each file.

    Only the files that the model needs are downloaded, and the weights in one format.
    """
    from openblip.checkpoints.hub import download as downloads

    with stoppable(), download_progress() as progress:
        found = downloads.download(
            name,
            include=include or [],
            exclude=exclude or [],
            revision=revision,
            cache_dir=cache_dir,
            local_dir=local_dir,
            progress=progress,
        )
    for file in found:
        print_line(str(file.path))
    if not found:
        print_line(f"{name} is in the package, there is nothing to fetch")
