"""`openblip index`: photos into an index that can be searched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openblip.cli import arguments as args
from openblip.cli.inputs import find_inputs
from openblip.cli.interrupts import stoppable
from openblip.cli.progress import show_progress
from openblip.cli.report import SOME_FAILED, complain, print_line
from openblip.errors import OptionError

if TYPE_CHECKING:
    from openblip.search.found import Changes
    from openblip.search.index import Index

EXAMPLES = """[bold]Examples[/bold]
  openblip index photos/ --db photos.index
  openblip index photos/ photo.jpg --db photos.index --model Salesforce/blip2-itm-vit-g
  openblip index --db photos.index
  openblip index --db photos.index --prune

[bold]Again[/bold]
  The same command brings the index up to date: only new and changed photos are encoded. Stop it at any time."""

FOLDERS_SHOWN = 20
Database = Annotated[Path, typer.Option("--db", metavar="FOLDER", help="The folder of the index.", show_default=False)]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="A name from `openblip models`, or a model folder. Default: that of the index; of a new one, mini.",
        rich_help_panel="Model",
        show_default=False,
    ),
]


def index(
    photos: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PHOTOS",
            help="Files, folders (with their subfolders), quoted patterns, lists of paths (.txt), or - for a list from "
            "standard input. Without any: show what is in the index.",
            show_default=False,
        ),
    ] = None,
    *,
    db: Database,
    prune: Annotated[
        bool, typer.Option("--prune", help="Drop all photos whose files are gone, also from folders not named now.")
    ] = False,
    batch_size: args.BatchSize = 8,
    model: Model = None,
    device: args.Device = None,
    dtype: args.Dtype = None,
    adapter: args.Adapter = None,
    tokenizer: args.Words = None,
) -> None:
    """Make photos searchable: put their vectors into an index, or bring it up to date.

    Photos leave the index if their files are gone from a folder that you name; all others stay.
    """
    from openblip.search import Index

    opened = Index.open(db, model=model, device=device, dtype=dtype, adapter=adapter, tokenizer=tokenizer)
    dropped = opened.prune() if prune else 0
    if not photos:
        if prune:
            print_line(f"{db}: {count_photos(len(opened))}, {dropped:,} dropped")
        else:
            _show(opened, db)
        return
    with stoppable(), show_progress("images") as progress:
        changes = opened.add(_paths(photos), batch_size=batch_size, progress=progress)
    changes.gone += dropped
    for error in changes.errors:
        complain(error)
    print_line(f"{db}: {count_photos(len(opened))}{_told(changes)}")
    if changes.errors:
        raise typer.Exit(SOME_FAILED)


def _paths(photos: list[str]) -> list[str]:
    """Folders as they are, for all that is gone from them leaves the index; what lists name, one by one."""
    found: list[str] = []
    for text in photos:
        if Path(text).is_dir():
            found.append(text)
            continue
        for image in find_inputs([text]):
            if not isinstance(image, str):
                raise OptionError(f"{text} holds photos that are no files of their own: an index needs files")
            found.append(image)
    return found


def count_photos(number: int) -> str:
    return f"{number:,} {'photo' if number == 1 else 'photos'}"


def _told(changes: Changes) -> str:
    parts = [
        f"{number:,} {name}"
        for number, name in (
            (changes.new, "new"),
            (changes.changed, "changed"),
            (changes.copied, "copied"),
            (changes.moved, "moved"),
            (changes.gone, "gone"),
            (len(changes.errors), "not readable"),
        )
        if number
    ]
    return f" ({', '.join(parts)})" if parts else " (nothing new)"


def _show(opened: Index, db: Path) -> None:
    status = opened.status()
    each = f", {status.nbytes / status.images:,.0f} bytes a photo" if status.images else ""
    print_line(f"photos   {status.images:,}")
    print_line(f"model    {status.model}: {status.vectors} vectors of {status.width} numbers for each photo")
    print_line(f"on disk  {status.nbytes / 1e6:,.1f} MB{each}")
    for number, (folder, count) in enumerate(status.folders.items()):
        if number == FOLDERS_SHOWN:
            print_line(f"         and {len(status.folders) - FOLDERS_SHOWN:,} more folders")
            break
        print_line(f"{'folders' if number == 0 else '':8} {count:>7,}  {folder}")
