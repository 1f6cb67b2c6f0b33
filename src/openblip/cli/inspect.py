"""`openblip inspect`: what a file or folder of weights holds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from openblip.cli import arguments as args
from openblip.cli.report import open_report

EXAMPLES = """[bold]Examples[/bold]
  openblip inspect weights/
  openblip inspect blip2_pretrained_opt2.7b.pth
  openblip inspect blip2_pretrained_opt2.7b.pth --json"""


def inspect(
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="A model folder, or a file of weights of any kind.", show_default=False),
    ],
    as_json: args.AsJson = False,
) -> None:
    """Tell what is in a file or folder of weights, without reading the weights.

    Files that could run code when they are opened are refused.
    """
    from openblip.checkpoints import contents

    found = contents.inspect(path)
    with open_report(as_json) as report:
        if as_json:
            report.record(**{**asdict(found), "path": str(found.path), "parameters": found.parameters})
            return
        report.line(
            f"{found.path}: {found.format}, {found.size / 1e6:,.1f} MB, {found.parameters / 1e6:,.1f} M weights"
        )
        for name, part in found.parts.items():
            report.line(f"  {name:<14}  {part.parameters / 1e6:>9,.1f} M  {', '.join(part.types)}")
        for name, source in found.elsewhere.items():
            report.line(f"  {name:<14}  not in here: {source} has it")
        for note in found.notes:
            report.line(f"  {note}")
        report.line(f"  most likely: {', '.join(found.guess) or 'no official model'}")
