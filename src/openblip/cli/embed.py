"""`openblip embed`: images and texts as vectors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openblip.checkpoints.registry import DEFAULT_MODEL
from openblip.cli import arguments as args
from openblip.cli.report import draft_of, open_report, with_progress
from openblip.errors import ImageError, OptionError

if TYPE_CHECKING:
    from torch import Tensor

    from openblip.models.blip2 import Blip2

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
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT",
            help="Image files, folders, quoted patterns ('photos/*.jpg') or web addresses.",
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
    import openblip
    from openblip.images.sources import find_images

    texts = text or []
    if not inputs and not texts:
        raise OptionError("nothing to embed: give images, or texts with --text")
    if (output is None) == (not as_json):
        raise OptionError("say where the vectors go: --output FILE.npz, --output FILE.safetensors or --json")
    kind = "" if output is None else output.suffix
    if output is not None and kind not in (".npz", ".safetensors"):
        raise OptionError(f"{output} has an unknown ending: use .npz or .safetensors")
    images = find_images(inputs, recursive=recursive) if inputs else []
    vectors: dict[str, Tensor] = {}
    with open_report(as_json) as report:
        with nullcontext() if output is None else draft_of(output) as draft:
            loaded = openblip.load(model, device=device, dtype=dtype, adapter=adapter)
            text_embeds = loaded.embed_texts(texts)
            found = _embed_images(loaded, images, batch_size)
            for path, vector in with_progress(found, len(images), to_file=output is not None):
                if isinstance(vector, ImageError):
                    report.failure(path, vector)
                elif as_json:
                    report.record(image=path, embedding=vector.tolist())
                else:
                    vectors[path] = vector
            if as_json:
                for one, vector in zip(texts, text_embeds, strict=True):
                    report.record(text=one, embedding=vector.tolist())
            if draft is not None:
                _write(draft, loaded, vectors, texts, text_embeds, kind)
        if output is not None:
            report.line(f"{output}: {len(vectors)} images, {len(texts)} texts")


def _embed_images(model: Blip2, images: list[str], batch_size: int) -> Iterator[tuple[str, Tensor | ImageError]]:
    """Each image in order with its vectors [Q, width], or with what is wrong with it."""
    from openblip.images.decode import load_image, squash
    from openblip.images.prefetch import read_ahead

    size = model.parts.transform.image_size
    # Squashed, they take little memory, and are embedded as they are.
    for batch in read_ahead(images, lambda path: squash(load_image(path), size), batch_size):
        good = [image for _, image in batch if not isinstance(image, ImageError)]
        vectors = iter(model.embed_images(good, batch_size=batch_size))
        for path, image in batch:
            yield path, image if isinstance(image, ImageError) else next(vectors)


def _write(
    path: Path,
    model: Blip2,
    vectors: dict[str, Tensor],
    texts: list[str],
    text_embeds: Tensor,
    kind: str,
) -> None:
    import numpy as np
    import torch
    from safetensors.torch import save

    image_embeds = torch.stack(list(vectors.values())) if vectors else model.embed_images([])
    if kind == ".safetensors":
        names = {"images": json.dumps(list(vectors)), "texts": json.dumps(texts)}
        path.write_bytes(save({"image_embeds": image_embeds, "text_embeds": text_embeds}, metadata=names))
        return
    with path.open("wb") as file:  # given a name, NumPy would append its own ending
        np.savez(
            file,
            images=np.array(list(vectors), dtype=np.str_),
            image_embeds=image_embeds.numpy(),
            texts=np.array(texts, dtype=np.str_),
            text_embeds=text_embeds.numpy(),
        )
