"""`openblip run --sidecar`: its options, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from openblip.cli import arguments as args
from openblip.cli.report import print_line, say
from openblip.errors import OptionError

if TYPE_CHECKING:
    from openblip.jobs.job import Outcome
    from openblip.jobs.plan import JobPlan
    from openblip.jobs.sidecars import Sidecars

Sidecar = Annotated[
    Literal["txt", "xmp"] | None,
    typer.Option(
        "--sidecar",
        help="Instead of --output, write a file beside each photo: photo.txt, or photo.jpg.xmp as programs that manage "
        "photos do.",
        rich_help_panel=args.OUTPUT_PANEL,
        show_default=False,
    ),
]
IfExisting = Annotated[
    Literal["skip", "overwrite", "append", "prepend"] | None,
    typer.Option(
        "--existing",
        help="With --sidecar: what to do with photos that have a text already. Default: skip; they are not computed.",
        rich_help_panel=args.OUTPUT_PANEL,
        show_default=False,
    ),
]


def read_sidecars(given: Mapping[str, Any]) -> Sidecars | None:
    """What the options say. Raises OptionError if they do not fit together."""
    from openblip.jobs.sidecars import Sidecars

    kind, existing = given["sidecar"], given["existing"]
    if kind is None:
        if existing is not None:
            raise OptionError("--existing is for files beside photos: give --sidecar txt or xmp with it")
        return None
    if given.get("column") is not None:
        raise OptionError("--column is for tables: leave it out with --sidecar")
    if given.get("num_captions", 1) > 1:
        raise OptionError("a file beside a photo has one caption: leave out --num-captions")
    return Sidecars(kind, existing or "skip")


def output_of(given: Mapping[str, Any], shard: tuple[int, int]) -> Path:
    """The output; of files beside photos or in object storage, what the folder of the job is called after.

    Raises:
        OptionError: there is neither.
    """
    from openblip.jobs.object_storage import is_stored
    from openblip.jobs.sidecars import place_of

    output: str | None = given["output"]
    if output is not None and is_stored(output):
        if given["sidecar"] is not None:
            raise OptionError("--sidecar is for photos on this machine: give -o with the name of a file here")
        return Path.cwd() / PurePosixPath(output).name
    if output is not None:
        return Path(output).expanduser().absolute()
    if given["sidecar"] is None:
        raise OptionError("say where the results go: --output FILE, or --sidecar for files beside the photos")
    if is_stored(given["source"]):
        raise OptionError(f"nothing can lie beside photos at {given['source']}: give --output FILE")
    return place_of(given["source"], shard)


def planned(plan: JobPlan, sidecars: Sidecars) -> str:
    """What would be written, in lines."""
    from openblip.jobs.folder import folder_of

    return (
        f"to write    {plan.total:,} .{sidecars.kind} files\n"
        f"to skip     {plan.skipped:,} photos, which have a text already\n"
        f"kept in     {folder_of(plan.options.output)}, until all is done"
    )


def tell(outcome: Outcome, sidecars: Sidecars, source: str) -> None:
    """Show what was done, and each photo that has no text, as there is no table that could say so."""
    for problem in outcome.problems:
        say(f"error: {problem}")
    written = outcome.rows - outcome.errors
    failed = f", {outcome.errors:,} with an error" if outcome.errors else ""
    print_line(
        f"{source}: {written:,} .{sidecars.kind} {'file' if written == 1 else 'files'} written, "
        f"{outcome.skipped:,} {'photo' if outcome.skipped == 1 else 'photos'} skipped{failed}"
    )
