"""`openblip match`: how well texts fit images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openblip.checkpoints import DEFAULT_MODEL
from openblip.cli import arguments as args
from openblip.cli.inputs import Image, find_inputs, name_of
from openblip.cli.report import open_report, with_progress

if TYPE_CHECKING:
    from openblip.results import Matched

EXAMPLES = """[bold]Examples[/bold]
  openblip match photo.jpg "a dog on a beach" "a plate of food"
  openblip match photos/ "a child on a swing"
  openblip match photo.jpg --image photos/one.jpg --image photos/more/ "a dog" "a cat"
  openblip match photo.jpg "a dog" --heatmap where.png
  openblip match photo.jpg "a dog" "a cat" --json"""


def match(
    context: typer.Context,
    image: args.Images,
    texts: Annotated[list[str], typer.Argument(metavar="TEXT", help="The texts to compare.", show_default=False)],
    more_images: Annotated[
        list[str] | None,
        typer.Option(
            "--image",
            "-i",
            metavar="IMAGE",
            help="Another image, folder or pattern; repeat it for more.",
            show_default=False,
        ),
    ] = None,
    heatmap: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw where the model looks for one text in one image (a BLIP or BLIP-2 that matches).",
            rich_help_panel=args.OUTPUT_PANEL,
            show_default=False,
        ),
    ] = None,
    recursive: args.Recursive = False,
    batch_size: args.BatchSize = 8,
    model: args.Model = DEFAULT_MODEL,
    device: args.Device = None,
    dtype: args.Dtype = None,
    adapter: args.Adapter = None,
    tokenizer: args.Words = None,
    as_json: args.AsJson = False,
    output: args.Output = None,
) -> None:
    """Score how well texts fit one or more images; the best pair comes first.

    Each image and each text is encoded once.
    itm: the probability that text and image belong together; a model that compares by contrast alone has none.
    itc: the cosine of their embeddings.
    """
    from openblip.errors import OptionError
    from openblip.images.heatmap import save_heatmap
    from openblip.images.sources import describe_source

    args.refuse_images(texts)
    images = find_inputs([image, *(more_images or [])], recursive=recursive)
    if heatmap is not None and (len(images), len(texts)) != (1, 1):
        raise OptionError("a heatmap is of one image and one text: give one of each with --heatmap")

    def work(rest: Sequence[Image]) -> Iterator[Matched]:
        loaded = args.load_model(context)
        if heatmap is not None:
            save_heatmap(rest[0], loaded.heatmap(rest[0], texts[0]), heatmap)
        found = loaded.match_many(rest, texts, batch_size=batch_size)
        return with_progress(found, len(rest), to_file=output is not None)

    with open_report(as_json, output, args.command_of(context, images)) as report:
        for path, matched in report.over(images, work, batch_size):
            if matched.error is not None:
                report.failed(matched.error)
                report.note(image=name_of(path), error=matched.error.problem)
            for one in matched.matches:
                report.note(image=name_of(path), text=one.text, itm=one.itm, itc=one.itc)
        notes = report.notes()
        pairs = [note for note in notes if "error" not in note]
        by = "itc" if any(pair["itm"] is None for pair in pairs) else "itm"
        pairs.sort(key=lambda pair: pair[by], reverse=True)
        if as_json:
            for fields in [*(note for note in notes if "error" in note), *pairs]:
                report.record(**fields)
            return
        if pairs:
            report.line("  itm     itc  text" if by == "itm" else "   itc  text")
        for pair in pairs:
            name = f"{describe_source(pair['image'])}: " if len(images) > 1 else ""
            itm = "" if by == "itc" else f"{pair['itm']:.3f}  "
            report.line(f"{itm}{pair['itc']:6.3f}  {name}{pair['text']}")
