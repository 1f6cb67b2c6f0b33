"""`openblip judge`: whether statements about images are true, or follow from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from openblip.cli import arguments as args
from openblip.cli.inputs import Image, find_inputs, name_of
from openblip.cli.report import open_report, with_progress
from openblip.errors import OptionError

if TYPE_CHECKING:
    from openblip.results import Judged

MODEL = "blip_nlvr/nlvr"
EXAMPLES = """[bold]Examples[/bold]
  openblip judge left.jpg right.jpg --text "both images show a dog"
  openblip judge photo.jpg --text "two men are talking" --model my-entailment
  openblip judge 'pairs/*.jpg' --text "one of the dogs sleeps" --json --output judged.jsonl"""


def judge(
    context: typer.Context,
    inputs: args.Inputs,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", "-t", metavar="TEXT", help="A statement; repeat it for more.", show_default=False),
    ] = None,
    recursive: args.Recursive = False,
    batch_size: args.BatchSize = 8,
    model: args.Model = MODEL,
    device: args.Device = None,
    dtype: args.Dtype = None,
    adapter: args.Adapter = None,
    tokenizer: args.Words = None,
    as_json: args.AsJson = False,
    output: args.Output = None,
) -> None:
    """Judge statements about images: print a line for each, with the class and its probability.

    A model of NLVR2 says "True" or "False" of two images: images are taken two at a time, in the order given. A model
    of SNLI-VE says of one image whether a statement follows from it ("entailment"), cannot be told ("neutral"), or
    cannot be true ("contradiction").
    """
    from openblip.images.sources import describe_source
    from openblip.models.abilities import judge_of

    statements = text or []
    if not statements:
        raise OptionError("there is nothing to judge: give a statement with --text")
    images = find_inputs(inputs, recursive=recursive, repeats=True)
    loaded = args.load_model(context)
    size = judge_of(loaded).num_images
    if len(images) % size:
        raise OptionError(
            f"{loaded.name} judges statements about two images, and there are {len(images)} of them: give both of each "
            "pair"
        )
    groups = [images[start : start + size] for start in range(0, len(images), size)]

    def work(rest: Sequence[list[Image]]) -> Iterator[Judged]:
        pairs = ((group if size > 1 else group[0], statements) for group in rest)
        return with_progress(loaded.judge_many(pairs, batch_size=batch_size), len(rest), to_file=output is not None)

    with open_report(as_json, output, args.command_of(context, images)) as report:
        for group, judged in report.over(groups, work, batch_size):
            names = [name_of(image) for image in group]
            if judged.error is not None:
                report.failure(", ".join(names), judged.error)
                continue
            shown = f"{', '.join(map(describe_source, names))}: " if len(groups) > 1 else ""
            for one in judged.judgements:
                if as_json:
                    report.record(
                        images=names, statement=one.statement, label=one.label, probabilities=dict(one.probabilities)
                    )
                else:
                    said = f"{one.statement}: " if len(statements) > 1 else ""
                    report.line(f"{shown}{said}{one.label} ({one.probability:.3f})")
