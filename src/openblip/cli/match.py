"""`openblip match`: how well texts fit images."""

from __future__ import annotations

from typing import Annotated

import typer

from openblip.checkpoints.registry import DEFAULT_MODEL
from openblip.cli import arguments as args
from openblip.cli.report import open_report, with_progress

EXAMPLES = """[bold]Examples[/bold]
  openblip match photo.jpg "a dog on a beach" "a plate of food"
  openblip match photos/ "a child on a swing"
  openblip match photo.jpg --image photos/one.jpg --image photos/more/ "a dog" "a cat"
  openblip match photo.jpg "a dog" "a cat" --json"""


def match(
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
    recursive: args.Recursive = False,
    batch_size: args.BatchSize = 8,
    model: args.Model = DEFAULT_MODEL,
    device: args.Device = None,
    dtype: args.Dtype = None,
    adapter: args.Adapter = None,
    as_json: args.AsJson = False,
    output: args.Output = None,
) -> None:
    """Score how well texts fit one or more images; the best pair comes first.

    Each image and each text is encoded once.
    itm: the probability that text and image belong together. itc: the cosine of their embeddings.
    """
    import openblip
    from openblip.images.sources import describe_source, find_images

    args.refuse_images(texts)
    images = find_images([image, *(more_images or [])], recursive=recursive)
    with open_report(as_json, output) as report:
        loaded = openblip.load(model, device=device, dtype=dtype, adapter=adapter)
        pairs = []
        found = loaded.match_many(images, texts, batch_size=batch_size)
        shown = with_progress(found, len(images), to_file=output is not None)
        for path, matched in zip(images, shown, strict=True):
            if matched.error is not None:
                report.failure(path, matched.error)
            else:
                pairs += [(path, one) for one in matched.matches]
        pairs.sort(key=lambda pair: pair[1].itm, reverse=True)
        if pairs and not as_json:
            report.line("  itm     itc  text")
        for path, one in pairs:
            if as_json:
                report.record(image=path, text=one.text, itm=one.itm, itc=one.itc)
            else:
                name = f"{describe_source(path)}: " if len(images) > 1 else ""
                report.line(f"{one.itm:.3f}  {one.itc:6.3f}  {name}{one.text}")
