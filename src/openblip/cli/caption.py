"""`openblip caption`: describe images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import typer

from openblip.checkpoints import DEFAULT_MODEL
from openblip.cli import arguments as args
from openblip.cli.inputs import Image, find_inputs, name_of
from openblip.cli.report import open_report, with_progress
from openblip.generation.options import TextOptions

if TYPE_CHECKING:
    from openblip.results import Captioned

EXAMPLES = """[bold]Examples[/bold]
  openblip caption photo.jpg
  openblip caption photos/ --recursive --output captions.txt
  openblip caption 'photos/*.jpg' --json --num-captions 3 > captions.jsonl
  openblip caption photo.jpg --prompt "a photo of" --num-beams 8 --min-new-tokens 8
  openblip caption photo.jpg --top-p 0.9 --seed 1
  find photos -name '*.jpg' | openblip caption - --output captions.txt"""


@args.with_text_options
def caption(
    context: typer.Context,
    inputs: args.Inputs,
    recursive: args.Recursive = False,
    batch_size: args.BatchSize = 8,
    model: args.Model = DEFAULT_MODEL,
    device: args.Device = None,
    dtype: args.Dtype = None,
    adapter: args.Adapter = None,
    tokenizer: args.Words = None,
    prompt: args.Prompt = None,
    num_captions: args.NumCaptions = 1,
    *,
    options: TextOptions,
    as_json: args.AsJson = False,
    output: args.Output = None,
) -> None:
    """Caption images: print one line for each, with its name, a colon and the caption."""
    images = find_inputs(inputs, recursive=recursive)

    def work(rest: Sequence[Image]) -> Iterator[Captioned]:
        found = args.load_model(context).caption_many(
            rest,
            prompt=prompt,
            num_captions=num_captions,
            batch_size=batch_size,
            **options,
        )
        return with_progress(found, len(rest), to_file=output is not None)

    with open_report(as_json, output, args.command_of(context, images)) as report:
        for image, captioned in report.over(images, work, batch_size):
            if captioned.error is not None:
                report.failure(name_of(image), captioned.error)
            elif as_json:
                captions = [{"text": one.text, "score": one.score} for one in captioned.captions]
                report.record(image=name_of(image), captions=captions)
            else:
                for one in captioned.captions:
                    report.line(f"{captioned.source}: {one.text}")
