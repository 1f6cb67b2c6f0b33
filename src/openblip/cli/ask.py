"""`openblip ask`: answer questions about images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from openblip.checkpoints import DEFAULT_MODEL
from openblip.cli import arguments as args
from openblip.cli.inputs import Image, find_inputs, name_of
from openblip.cli.report import attempt, open_report, print_line, print_pieces, with_progress
from openblip.errors import ImageError, OptionError
from openblip.generation.options import TextOptions

if TYPE_CHECKING:
    from openblip.results import GeneratedText

EXAMPLES = """[bold]Examples[/bold]
  openblip ask photo.jpg "what is the dog doing?"
  openblip ask photo.jpg "how many people are there?" "what color is the car?"
  openblip ask photos/ "is it raining?"
  openblip ask 'photos/*.jpg' "what is shown?" --json --output answers.jsonl"""


@args.with_text_options
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
    tokenizer: args.Words = None,
    *,
    options: TextOptions,
    stream: args.Stream = False,
    as_json: args.AsJson = False,
    output: args.Output = None,
) -> None:
    """Answer questions about one or more images.

    One question about one image prints the answer alone; otherwise each line begins with the image or the question.
    """
    from openblip.images.sources import describe_source

    args.refuse_images(questions)
    images = find_inputs([image], recursive=recursive)
    if stream and (as_json or output is not None):
        raise OptionError("--stream shows answers as they are written: leave out --json and --output")

    def beginning(path: Image, question: str) -> str:
        name = f"{describe_source(path)}: " if len(images) > 1 else ""
        return name + (f"{question} " if len(questions) > 1 else "")

    def streamed(rest: Sequence[Image]) -> Iterator[list[GeneratedText] | ImageError]:
        loaded = args.load_model(context)

        def show(path: Image) -> list[GeneratedText]:
            for question in questions:
                pieces = loaded.ask(path, question, stream=True, **options)
                print_line(beginning(path, question), end="")
                print_pieces(pieces)
            return []

        return attempt(rest, show)

    def work(rest: Sequence[Image]) -> Iterator[list[GeneratedText] | ImageError]:
        loaded = args.load_model(context)
        found = attempt(rest, lambda path: loaded.ask(path, questions, details=True, **options))
        return with_progress(found, len(rest), to_file=output is not None)

    with open_report(as_json, output, args.command_of(context, images)) as report:
        for path, answers in report.over(images, streamed if stream else work):
            if isinstance(answers, ImageError):
                report.failure(name_of(path), answers)
                continue
            for question, answer in zip(questions, answers, strict=not stream):
                if as_json:
                    report.record(image=name_of(path), question=question, answer=answer.text, score=answer.score)
                else:
                    report.line(beginning(path, question) + answer.text)
