"""`openblip models`: what can be loaded or downloaded by name."""

from __future__ import annotations

from textwrap import wrap
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

WIDTH = 80
SHOWN = ("float32", "int8", "int4")
"""The number formats whose memory the table shows; bfloat16 takes half of float32, and `--json` has it."""

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
    """List the models that you can load by name: ours, and the official ones of BLIP-2, BLIP and CLIP.

    "files" is the size of the download, and "float32", "int8" and "int4" are the memory of the loaded weights
    (bfloat16 takes half of float32), all in GB. "px" is the side of the square images, and "here" says whether the
    files are on this machine. `openblip plan NAME` shows more.
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
    """Models of a family that can do the same, under the same licence, stand together below a line that says so."""
    wide = max(len(row["name"]) for row in rows)
    lines = [f"{'name':<{wide - 1}} weights files float32  int8  int4  px here"]
    group = None
    for row in rows:
        if group != (row["family"], row["abilities"], row["terms"]):
            group = row["family"], row["abilities"], row["terms"]
            lines += ["", *_wrapped(f"{row['family']}: {', '.join(row['abilities'])}; licence {row['terms']}")]
        float32, int8, int4 = (f"{row['memory'][name] / 1e3:.2f}" for name in SHOWN)
        lines.append(
            f"{row['name']:<{wide}} {row['parameters'] / 1e6:5.0f}M {row['megabytes'] / 1e3:5.2f} {float32:>7}"
            f" {int8:>5} {int4:>5} {row['image_size']:>3} {'yes' if row['cached'] else 'no'}"
        )
    aliases = [f"{row['name']} is also {' and '.join(row['aliases'])}" for row in rows if row["aliases"]]
    return [*lines, *([""] if aliases else []), *(line for text in aliases for line in _wrapped(text))]


def _wrapped(text: str) -> list[str]:
    return wrap(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
