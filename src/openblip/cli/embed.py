"""`openblip embed`: images and texts as vectors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from openblip.checkpoints import DEFAULT_MODEL
from openblip.cli import arguments as args
from openblip.cli.inputs import Image, find_inputs, name_of
from openblip.cli.report import open_report, with_progress
from openblip.errors import OptionError

if TYPE_CHECKING:
    import numpy as np

    from openblip.results import Embedded

    Rows: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]

EXAMPLES = """[bold]Examples[/bold]
  openblip embed photos/ --output features.npz
  openblip embed photo.jpg --text "a dog" --text "a cat" --output features.safetensors
  openblip embed --text "a dog on a beach" --json

[bold]In the file[/bold]
  image_embeds  \\[images, queries, width] float32, unit vectors
  text_embeds   \\[texts, width] float32, unit vectors
  images, texts  their names (in safetensors: JSON lists in the metadata)
  The similarity of an image and a text is the largest of the dot products over the queries."""


def embed(
    context: typer.Context,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT",
            help=args.INPUT_HELP,
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", "-t", metavar="TEXT", help="A text to embed; repeat it for more.", show_default=False),
    ] = None,
    recursive: args.Recursive = False,
    batch_size: args.BatchSize = 8,
    model: args.Model = DEFAULT_MODEL,
    device: args.Device = None,
    dtype: args.Dtype = None,
    adapter: args.Adapter = None,
    tokenizer: args.Words = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the vectors, one JSON object per line.", rich_help_panel=args.OUTPUT_PANEL),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The .npz or .safetensors file to write.",
            rich_help_panel=args.OUTPUT_PANEL,
        ),
    ] = None,
) -> None:
    """Embed images and texts: write unit vectors that you can compare and search."""
    import numpy as np

    texts = text or []
    if not inputs and not texts:
        raise OptionError("nothing to embed: give images, or texts with --text")
    if (output is None) == (not as_json):
        raise OptionError("say where the vectors go: --output FILE.npz, --output FILE.safetensors or --json")
    kind = "" if output is None else output.suffix
    if output is not None and kind not in (".npz", ".safetensors"):
        raise OptionError(f"{output} has an unknown ending: use .npz or .safetensors")
    images = find_inputs(inputs, recursive=recursive) if inputs else []
    with open_report(as_json, output, args.command_of(context, images)) as report:
        loaded = args.load_model(context)
        text_embeds = loaded.embed_texts(texts)

        def work(rest: Sequence[Image]) -> Iterator[Embedded]:
            found = loaded.embed_images_many(rest, batch_size=batch_size)
            return with_progress(found, len(rest), to_file=output is not None)

        for image, embedded in report.over(images, work, batch_size):
            if embedded.error is not None:
                report.failure(name_of(image), embedded.error)
            elif embedded.embeds is None:
                continue  # it has either
            elif as_json:
                report.record(image=name_of(image), embedding=embedded.embeds.tolist())
            else:
                report.keep(embedded.embeds.numpy().tobytes())
        if as_json:
            for one, vector in zip(texts, text_embeds, strict=True):
                report.record(text=one, embedding=vector.tolist())
            return
        bad = set(report.bad)
        names = [name_of(image) for number, image in enumerate(images) if number not in bad]
        shape = (len(names), *loaded.embed_images([]).shape[1:])
        report.finish = partial(
            _write,
            names=names,
            image_embeds=np.frombuffer(report.kept_bytes(), np.float32).reshape(shape),
            texts=texts,
            text_embeds=text_embeds.numpy(),
            kind=kind,
        )
        report.summary = f"{output}: {len(names)} images, {len(texts)} texts"


def _write(
    path: Path,
    names: list[str],
    image_embeds: Rows,
    texts: list[str],
    text_embeds: Rows,
    kind: str,
) -> None:
    import numpy as np
    from safetensors.numpy import save

    if kind == ".safetensors":
        metadata = {"images": json.dumps(names), "texts": json.dumps(texts)}
        path.write_bytes(save({"image_embeds": image_embeds, "text_embeds": text_embeds}, metadata=metadata))
        return
    with path.open("wb") as file:  # given a name, NumPy would append its own ending
        np.savez(
            file,
            images=np.array(names, dtype=np.str_),
            image_embeds=image_embeds,
            texts=np.array(texts, dtype=np.str_),
            text_embeds=text_embeds,
        )
