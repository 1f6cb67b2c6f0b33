"""`openblip search`: the photos of an index that fit words, or are like a photo."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openblip.cli import arguments as args
from openblip.cli.index import Database, Model, count_photos
from openblip.cli.report import print_line
from openblip.errors import OptionError

if TYPE_CHECKING:
    from openblip.search.found import Found

EXAMPLES = """[bold]Examples[/bold]
  openblip search "a dog on the beach" --db photos.index
  openblip search "a beach" --not people --not dog --db photos.index
  openblip search --image photo.jpg --db photos.index --top 5
  openblip search "a birthday cake" --db photos.index --html cakes.html
  openblip search "a receipt" --db photos.index --top 100 --paths > receipts.txt
  openblip search --duplicates --db photos.index

[bold]Scores[/bold]
  itm: the probability that text and photo belong together, of the photos that were read with the text (--rerank).
  itc: the cosine of their vectors, by which these were chosen."""


def search(
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="What to look for.", show_default=False)] = None,
    *,
    db: Database,
    image: Annotated[
        str | None,
        typer.Option("--image", "-i", metavar="IMAGE", help="Look for photos like this one.", show_default=False),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option("--not", metavar="TEXT", help="What photos should not show; repeatable.", show_default=False),
    ] = None,
    duplicates: Annotated[
        bool,
        typer.Option("--duplicates", help="Show groups of photos that are the same, or nearly (--min-score, 0.95)."),
    ] = False,
    top: Annotated[int, typer.Option("--top", "-n", metavar="N", min=1, help="How many photos at most.")] = 10,
    rerank: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="How many of the best by cosine the model reads together with the text, which is better and slower; 0 "
            "for none. Models that cannot (CLIP) do without.",
        ),
    ] = 20,
    min_score: Annotated[
        float | None,
        typer.Option(metavar="X", help="Leave out photos with a lower score: itm, or itc if there is no itm."),
    ] = None,
    model: Model = None,
    device: args.Device = None,
    dtype: args.Dtype = None,
    adapter: args.Adapter = None,
    tokenizer: args.Words = None,
    paths: Annotated[
        bool, typer.Option("--paths", help="Print paths alone.", rich_help_panel=args.OUTPUT_PANEL)
    ] = False,
    print0: Annotated[
        bool,
        typer.Option(
            "--print0",
            help="Print paths alone, each with a null character behind it.",
            rich_help_panel=args.OUTPUT_PANEL,
        ),
    ] = False,
    as_json: args.AsJson = False,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a page of thumbnails that link to the photos.",
            rich_help_panel=args.OUTPUT_PANEL,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Find photos in an index by a text or a photo, or find duplicates."""
    from openblip.search import Index

    ways = [way for way, chosen in (("--paths", paths), ("--print0", print0), ("--json", as_json)) if chosen]
    if len(ways) > 1:
        raise OptionError(f"{' and '.join(ways)} exclude each other: give one of them")
    if sum((text is not None, image is not None, duplicates)) != 1:
        raise OptionError("say what to look for: a text, --image FILE or --duplicates, one of them")
    if duplicates and without:
        raise OptionError("--not says nothing of duplicates: leave it out")
    opened = Index.open(db, model=model, device=device, dtype=dtype, adapter=adapter, tokenizer=tokenizer)
    if duplicates:
        groups = opened.duplicates() if min_score is None else opened.duplicates(min_score)
        title = "Duplicates"
    else:
        unwanted = without or []
        found = opened.search(text, image=image, without=unwanted, top=top, rerank=rerank, min_score=min_score)
        groups = [found]
        title = " ".join([f"“{text}”" if image is None else f"Like {image}", *(f"not “{word}”" for word in unwanted)])
    if html is not None:
        from openblip.search.contact_sheet import write_sheet

        write_sheet(html, title, groups)
        if not ways:
            print_line(f"{html}: {count_photos(sum(map(len, groups)))}")
    if print0:
        _print_null(groups)
    elif paths:
        _print_groups([[one.path for one in group] for group in groups])
    elif as_json:
        for group in groups:
            records = [_record(one) for one in group]
            for record in [{"duplicates": records}] if duplicates else records:
                print_line(json.dumps(record))
    elif html is None and not any(groups):
        print_line("there are no duplicates" if duplicates else "no photo fits")
    elif html is None:
        _print_groups([_lines(group, duplicates) for group in groups])


def _record(found: Found) -> dict[str, Any]:
    return {"path": found.path, "score": found.score, "itc": found.itc, "itm": found.itm}


def _lines(group: Sequence[Found], duplicates: bool) -> list[str]:
    if not group:
        return []
    if duplicates:
        return [f"{one.score:6.3f}  {_near(one.path)}" for one in group]
    if all(one.itm is None for one in group):
        return ["   itc  photo", *(f"{one.itc:6.3f}  {_near(one.path)}" for one in group)]
    itm = ["     " if one.itm is None else f"{one.itm:.3f}" for one in group]
    return [
        "  itm     itc  photo",
        *(f"{odds}  {one.itc:6.3f}  {_near(one.path)}" for odds, one in zip(itm, group, strict=True)),
    ]


def _near(path: str) -> str:
    """A path as it is shorter: from the current folder, if it lies in it."""
    here = os.path.join(os.getcwd(), "")
    return path.removeprefix(here)


def _print_groups(groups: Sequence[Sequence[str]]) -> None:
    for number, lines in enumerate(groups):
        if number:
            print_line("")
        for line in lines:
            print_line(line)


def _print_null(groups: Sequence[Sequence[Found]]) -> None:
    """Names as they are, also such as are no text."""
    content = b"\0".join(b"".join(os.fsencode(one.path) + b"\0" for one in group) for group in groups)
    sys.stdout.flush()
    if hasattr(sys.stdout, "buffer"):
        sys.stdout.buffer.write(content)
    else:
        sys.stdout.write(os.fsdecode(content))
    sys.stdout.flush()
