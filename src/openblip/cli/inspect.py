"""`openblip inspect`: what a file or folder of weights holds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openblip.cli import arguments as args
from openblip.cli.report import open_report

if TYPE_CHECKING:
    from openblip.checkpoints.lora.notes import AdapterNote

EXAMPLES = """[bold]Examples[/bold]
  openblip inspect weights/
  openblip inspect blip2_pretrained_opt2.7b.pth
  openblip inspect blip2_pretrained_opt2.7b.pth --json"""


def inspect(
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="A model folder, or a file of weights.", show_default=False),
    ],
    as_json: args.AsJson = False,
) -> None:
    """Show what is in a model folder or a file of weights, without loading the weights.

    Files that could run code when they are opened are refused.
    """
    from openblip.checkpoints.tools import inspect as contents

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
        if found.adapter is None:
            report.line(f"  most likely: {', '.join(found.guess) or 'no official model'}")
        else:
            report.line(f"  {_described(found.adapter)}")


def _described(adapter: AdapterNote) -> str:
    alpha = "" if adapter.alpha is None else f", alpha {adapter.alpha:g}"
    ranks = f"rank {', '.join(map(str, adapter.ranks))}{alpha}"
    return f"of {adapter.base or 'a model that it does not name'}: {ranks}, on {adapter.layers} layers: " + ", ".join(
        adapter.targets
    )
