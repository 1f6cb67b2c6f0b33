"""`openblip ask`: answer questions about images."""

from __future__ import annotations

from typing import Annotated

import typer

from openblip.checkpoints.registry import DEFAULT_MODEL
from openblip.cli import arguments as args
from openblip.cli.report import attempt, open_report, print_line, print_pieces, with_progress
from openblip.errors import ImageError, OptionError

EXAMPLES = """[bold]Examples[/bold]
  openblip ask photo.jpg "what is the dog doing?"
  openblip ask photo.jpg "how many people are there?" "what color is the car?"
  openblip ask photos/ "is it raining?"
  openblip ask 'photos/*.jpg' "what is shown?" --json --output answers.jsonl"""


def ask(
    context: typer.Context,
    image: args.Images,
    questions: Annotated[
        list[str],
        typer.Argument(
            metavar="QUESTION",
            help="One or more questions; each image is encoded once for all of them.",
            show_default=False,
        ),
    ],
    recursive: args.Recursive = False,
    model: args.Model = DEFAULT_MODEL,
    device: args.Device = None,
    dtype: args.Dtype = None,
    adapter: args.Adapter = None,
    beams: args.Beams = None,
    top_p: args.TopP = None,
    top_k: args.TopK = None,
    temperature: args.Temperature = None,
    seed: args.Seed = None,
    min_tokens: args.MinTokens = None,
    max_tokens: args.MaxTokens = None,
    length_penalty: args.LengthPenalty = None,
    repetition_penalty: args.RepetitionPenalty = None,
    stream: args.Stream = False,
    as_json: args.AsJson = False,
    output: args.Output = None,
) -> None:
    """Answer questions about one or more images.

    One question about one image prints the answer alone; otherwise each line begins with the image or the question.
    """
    import openblip
    from openblip.images.sources import describe_source, find_images

    args.refuse_images(questions)
    images = find_images([image], recursive=recursive)
    options = args.text_options(context)
    if stream and (as_json or output is not None):
        raise OptionError("--stream shows answers as they are written: leave out --json and --output")

    def name_of(path: str, question: str) -> str:
        name = f"{describe_source(path)}: " if len(images) > 1 else ""
        return name + (f"{question} " if len(questions) > 1 else "")

    with open_report(as_json, output) as report:
        loaded = openblip.load(model, device=device, dtype=dtype, adapter=adapter)

        def show(path: str) -> None:
            for question in questions:
                pieces = loaded.ask(path, question, stream=True, **options)
                print_line(name_of(path, question), end="")
                print_pieces(pieces)

        if stream:
            for path, shown in attempt(images, show):
                if isinstance(shown, ImageError):
                    report.failure(path, shown)
            return
        found = attempt(images, lambda path: loaded.answer(path, questions, **options))
        for path, answers in with_progress(found, len(images), to_file=output is not None):
            if isinstance(answers, ImageError):
                report.failure(path, answers)
                continue
            for question, answer in zip(questions, answers, strict=True):
                if as_json:
                    report.record(image=path, question=question, answer=answer.text, score=answer.score)
                else:
                    report.line(name_of(path, question) + answer.text)
