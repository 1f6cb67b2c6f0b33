"""`openblip models`: what can be loaded or downloaded by name."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from openblip.cli import arguments as args
from openblip.cli.report import open_report

if TYPE_CHECKING:
    from openblip.checkpoints.tools.plan import ModelRow

EXAMPLES = """[bold]Examples[/bold]
  openblip models
  openblip models --json"""

WIDTH = 120
"""Columns of the table; a narrower terminal breaks the lines, which loses nothing."""


def models(as_json: args.AsJson = False) -> None:
    """List the models that you can load by name: ours, and every official BLIP-2.

    Memory is the size of the loaded weights. It is in GB, as the download is; `openblip plan NAME` shows more.
    """
    from openblip.checkpoints.tools.plan import list_rows

    rows = list_rows()
    with open_report(as_json) as report:
        if as_json:
            for row in rows:
                report.record(**asdict(row))
        else:
            for line in _table(rows):
                report.line(line)


def _table(rows: list[ModelRow]) -> list[str]:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("name", no_wrap=True)
    table.add_column("can", width=len("match embed"))
    for title in ("weights", "download", *rows[0].memory):
        table.add_column(title.replace("bfloat", "bf"), justify="right", no_wrap=True)
    for title in ("image", "here", "licence"):
        table.add_column(title, no_wrap=True)
    terms = list(dict.fromkeys(row.terms for row in rows))
    for row in rows:
        table.add_row(
            row.name,
            " ".join(row.abilities),
            f"{row.parameters / 1e6:,.0f} M",
            f"{row.megabytes / 1e3:.2f}",
            *(f"{megabytes / 1e3:.2f}" for megabytes in row.memory.values()),
            f"{row.image_size} px",
            "yes" if row.cached else "no",
            f"({terms.index(row.terms) + 1})",
        )
    console = Console(width=WIDTH)
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines() if line.strip()]
    lines += [f"  ({number}) {text}" for number, text in enumerate(terms, start=1)]
    return lines + [f"  {row.name} is also {' and '.join(row.aliases)}" for row in rows if row.aliases]
