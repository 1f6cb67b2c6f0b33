"""`openblip datasets`: the public data sets that are known by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openblip.checkpoints.hub.progress import download_progress
from openblip.cli import arguments as args
from openblip.cli.report import Report, open_report
from openblip.errors import OptionError

if TYPE_CHECKING:
    from openblip.data.sources.open import Missing
    from openblip.data.zoo.downloads import Status

EXAMPLES = """[bold]Examples[/bold]
  openblip datasets
  openblip datasets coco_caption
  openblip datasets download coco_caption --to data/
  openblip datasets nocaps --root data/ --check

Annotations are downloaded, images are not: the page of a data set says how to get them. Data sets lie in
$OPENBLIP_DATA, by default in ~/.cache/lavis, where LAVIS puts them."""

DOWNLOAD = "download"
WIDTH = 120


def datasets(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME | download NAME]", help="The data set. Default: list all of them.", show_default=False
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            "--root",
            "--to",
            metavar="FOLDER",
            help="The folder of the data sets; downloads go there, too.",
            show_default=False,
        ),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Count the rows, and the images that are missing.")] = False,
    as_json: args.AsJson = False,
) -> None:
    """List the public data sets that OpenBLIP knows, show one of them, or download its annotations."""
    from openblip.data.zoo.data_sets import find_entry
    from openblip.data.zoo.downloads import download_annotations, list_status, status_of

    with open_report(as_json) as report:
        match words or []:
            case []:
                _tell_all(report, list_status(root))
            case [name] if name != DOWNLOAD:
                _tell_one(report, status_of(find_entry(name), root), root, check)
            case ["download", name]:
                with download_progress() as progress:
                    paths = download_annotations(name, root, progress)
                for path in paths:
                    report.record(path=str(path)) if as_json else report.line(str(path))
                if not as_json:
                    report.line(f"images: {find_entry(name).media_source}")
            case _:
                raise OptionError("give nothing, the name of a data set, or download and a name")


def _tell_all(report: Report, found: list[Status]) -> None:
    if report.as_json:
        for status in found:
            report.record(**_record(status))
        return
    for line in _table(found):
        report.line(line)


def _record(status: Status) -> dict[str, object]:
    entry = status.entry
    return {
        "name": entry.name,
        "title": entry.title,
        "kind": entry.kind,
        "splits": entry.splits,
        "here": status.splits,
        "layout": status.layout,
        "media": str(status.media),
        "has_media": status.has_media,
        "size": entry.size,
        "licence": entry.licence,
        "page": entry.page,
        "how": entry.media_source,
        "needs_form": entry.needs_form,
        "citation": entry.citation,
    }


def _table(found: list[Status]) -> list[str]:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("name", no_wrap=True)
    table.add_column("rows are", width=16)
    table.add_column("splits", width=10)
    table.add_column("here", width=10)
    table.add_column("size", width=26)
    table.add_column("how to get it", width=13)
    table.add_column("licence", no_wrap=True)
    licences = list(dict.fromkeys(status.entry.licence for status in found))
    for status in found:
        entry = status.entry
        number = licences.index(entry.licence) + 1
        row = (entry.name, entry.kind, " ".join(entry.splits), status.here, entry.size, status.ways, f"({number})")
        table.add_row(*row)
    console = Console(width=WIDTH)
    with console.capture() as captured:
        console.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines() if line.strip()]
    return lines + [f"  ({number}) {text}" for number, text in enumerate(licences, start=1)]


def _tell_one(report: Report, status: Status, root: Path | None, check: bool) -> None:
    from openblip.data.sources.open import find_missing
    from openblip.data.zoo.entries import Place, data_home, open_dataset

    entry, place = status.entry, Place(root or data_home())
    counted: dict[str, tuple[int, Missing]] = {}
    if check:
        for split, dataset in open_dataset(entry, place).items():
            if split in status.splits:
                counted[split] = len(dataset), find_missing(dataset)
    if report.as_json:
        numbers = {
            split: {"rows": rows, "files": found.checked, "missing": found.missing}
            for split, (rows, found) in counted.items()
        }
        report.record(**_record(status), **({"counted": numbers} if check else {}))
        return
    what = "videos" if entry.is_video else "images"
    lines = [f"{entry.name}: {entry.title}", ""]
    facts = {
        "rows are": entry.kind,
        "splits": ", ".join(entry.splits),
        "size": entry.size,
        "licence": entry.licence,
        "page": entry.page,
        "cite": entry.citation,
        "here": status.here,
    }
    lines += [f"{name:<10} {text}" for name, text in facts.items()]
    if entry.note:
        lines += ["", entry.note]
    for layout in entry.layouts:
        files = [(split, file) for split, files in layout.splits.items() for file in files]
        if files:
            lines += ["", f"annotations, {layout.title}"]
        for split, file in files:
            path = place.file(file)
            origin = "is here" if path.is_file() else file.url or "see its page"
            lines.append(f"  {split:<6} {path}  {origin}")
    lines += [
        "",
        f"{what} in {status.media} {'are here' if status.has_media else '(not here)'}",
        f"  {entry.media_source}",
    ]
    split = (status.splits or entry.splits)[0]
    lines += [
        "",
        f"in Python    load_dataset({entry.name!r})[{split!r}]  # from openblip.data.zoo.data_sets import load_dataset",
    ]
    lines += [f"in a recipe  data: [{{name: mine, dataset: {entry.name}, split: {split}}}]"]
    if entry.public_files and not status.splits:
        lines += ["", f"get the annotations with: openblip datasets download {entry.name}"]
    if counted:
        lines.append("")
    for split, (rows, missing) in counted.items():
        first = f", {missing.first[0]} first" if missing.first else ""
        lines.append(f"{split}: {rows} rows, {missing.checked} {what}, of which {missing.missing} are missing{first}")
    for line in lines:
        report.line(line)
