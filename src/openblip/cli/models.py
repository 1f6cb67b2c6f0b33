"""`openblip models`: what can be loaded or downloaded by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from openblip.cli import arguments as args
from openblip.cli.report import open_report

if TYPE_CHECKING:
    from openblip.checkpoints.model_entry import ModelEntry

EXAMPLES = """[bold]Examples[/bold]
  openblip models
  openblip models opt-2.7b --ability caption
  openblip models --cached --json"""

WIDTH = 120
"""Columns of the table; a narrower terminal breaks the lines, which loses nothing."""

Pattern = Annotated[
    str, typer.Argument(metavar="PATTERN", help="Part of a name, or a pattern with * and ?.", show_default=False)
]
Family = Annotated[str | None, typer.Option("--family", metavar="NAME", help="Only models of this family.")]
Ability = Annotated[str | None, typer.Option("--ability", metavar="NAME", help="Only models that can do this.")]
Cached = Annotated[
    bool | None, typer.Option("--cached/--not-cached", help="Only models whose files are here, or are not.")
]


def models(
    pattern: Pattern = "*",
    family: Family = None,
    ability: Ability = None,
    cached: Cached = None,
    as_json: args.AsJson = False,
) -> None:
    """List the models that you can load by name: ours, and the official ones of BLIP-2 and BLIP.

    Memory is the size of the loaded weights. It is in GB, as the size of the files is; `openblip plan NAME` shows more.
    """
    from openblip.checkpoints.registry import did_you_mean, list_models
    from openblip.errors import OptionError

    found = list_models(pattern, family=family, ability=ability, cached=cached)
    if not found and not list_models(pattern):
        raise OptionError(f"no model has a name like {pattern!r}: {did_you_mean(pattern)}")
    rows = [_row(model) for model in found]
    with open_report(as_json) as report:
        if as_json:
            for row in rows:
                report.record(**row)
        else:
            for line in _table(rows) if rows else ["no model is like that: ask for less"]:
                report.line(line)


def _row(model: ModelEntry) -> dict[str, Any]:
    from openblip.checkpoints.tools.plan import memory_of

    return {
        "name": model.name,
        "aliases": model.aliases,
        "family": model.family,
        "summary": model.summary,
        "abilities": model.abilities,
        "parameters": model.parameters,
        "megabytes": model.megabytes,
        "memory": memory_of(model),
        "image_size": model.image_size,
        "cached": model.cached,
        "terms": model.terms,
        "licence": model.licence,
    }


def _table(rows: list[dict[str, Any]]) -> list[str]:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("name", no_wrap=True)
    table.add_column("can", width=len("match embed"))
    for title in ("weights", "files", *rows[0]["memory"]):
        table.add_column(title.replace("bfloat", "bf"), justify="right", no_wrap=True)
    for title in ("image", "here", "see"):
        table.add_column(title, no_wrap=True)
    terms = list(dict.fromkeys(row["terms"] for row in rows))
    for row in rows:
        table.add_row(
            row["name"],
            " ".join(row["abilities"]),
            f"{row['parameters'] / 1e6:,.0f} M",
            f"{row['megabytes'] / 1e3:.2f}",
            *(f"{megabytes / 1e3:.2f}" for megabytes in row["memory"].values()),
            f"{row['image_size']} px",
            "yes" if row["cached"] else "no",
            f"({terms.index(row['terms']) + 1})",
        )
    console = Console(width=WIDTH)
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines() if line.strip()]
    lines += [f"  ({number}) {text}" for number, text in enumerate(terms, start=1)]
    return lines + [f"  {row['name']} is also {' and '.join(row['aliases'])}" for row in rows if row["aliases"]]
