"""`openblip models`: what can be loaded by name."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from openblip.cli import arguments as args
from openblip.cli.report import open_report

if TYPE_CHECKING:
    from openblip.checkpoints.registry import ModelInfo

EXAMPLES = """[bold]Examples[/bold]
  openblip models
  openblip models --json"""

PIPED_WIDTH = 120
"""Columns of the table where no terminal says how many there are."""


def models(as_json: args.AsJson = False) -> None:
    """List the models that --model takes by name."""
    from openblip.checkpoints.registry import list_models

    found = list_models()
    with open_report(as_json) as report:
        if as_json:
            for info in found:
                report.record(**{**asdict(info), "folder": str(info.folder)})
        else:
            for line in _table(found):
                report.line(line)


def _table(found: list[ModelInfo]) -> list[str]:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "can", "parameters", "size", "image", "about", box=box.SIMPLE_HEAD)
    for info in found:
        table.add_row(
            info.name,
            "\n".join(info.abilities),
            f"{info.parameters / 1e6:.1f} M",
            f"{info.megabytes:g} MB",
            f"{info.image_size} px",
            f"{info.kind}\n{info.summary}\nlicence: {info.licence}",
        )
    console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines() if line.strip()]
