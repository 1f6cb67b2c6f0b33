"""`openblip classify`: which of several labels fits each image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openblip.checkpoints import DEFAULT_MODEL
from openblip.cli import arguments as args
from openblip.cli.inputs import Image, find_inputs, name_of
from openblip.cli.report import open_report, with_progress
from openblip.errors import OptionError
from openblip.files import read_text

if TYPE_CHECKING:
    from openblip.results import ClassifiedImage

EXAMPLES = """[bold]Examples[/bold]
  openblip classify photo.jpg --label dog --label cat --label bird
  openblip classify photos/ --label indoors --label outdoors --output classes.txt
  openblip classify photo.jpg -l dog -l cat --template "a photo of a {}" --template "a drawing of a {}" --json"""

Label = Annotated[
    list[str] | None,
    typer.Option("--label", "-l", metavar="TEXT", help="A label; repeat it for more.", show_default=False),
]
LabelFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A text file with one label per line.", show_default=False)
]
Templates = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="A text with {} where a label stands; repeat it to average over several. Default: a photo of a {}",
        show_default=False,
    ),
]


def classify(
    context: typer.Context,
    inputs: args.Inputs,
    label: Label = None,
    labels: LabelFile = None,
    template: Templates = None,
    top: Annotated[int, typer.Option(metavar="N", min=1, help="Number of labels to show for each image.")] = 1,
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
    """Choose among labels: print one line for each image, with its name, a colon and the most probable labels.

    A probability is the share of a label among those that you give.
    """
    candidates = all_labels(label, labels)
    images = find_inputs(inputs, recursive=recursive)

    def work(rest: Sequence[Image]) -> Iterator[ClassifiedImage]:
        loaded = args.load_model(context)
        if template:
            found = loaded.classify_many(rest, candidates, templates=template, batch_size=batch_size)
        else:
            found = loaded.classify_many(rest, candidates, batch_size=batch_size)
        return with_progress(found, len(rest), to_file=output is not None)

    with open_report(as_json, output, args.command_of(context, images)) as report:
        for image, found in report.over(images, work, batch_size):
            best = found.labels[:top]
            if found.error is not None:
                report.failure(name_of(image), found.error)
            elif as_json:
                chosen = [{"label": one.label, "probability": one.probability} for one in best]
                report.record(image=name_of(image), labels=chosen)
            else:
                shown = ", ".join(f"{one.label} ({one.probability:.3f})" for one in best)
                report.line(f"{found.source}: {shown}")


def all_labels(given: Sequence[str] | None, file: Path | None) -> list[str]:
    """Labels to choose among. Raises OptionError if there are none, one is there twice, or the file cannot be read."""
    found = [*(given or ()), *([] if file is None else _read_labels(file))]
    if not found:
        raise OptionError("there are no labels: give some with --label, or a file of them with --labels")
    twice = [name for name, count in Counter(found).items() if count > 1]
    if twice:
        raise OptionError(f"the label {twice[0]!r} is there twice, and would share its probability: give it once")
    return found


def _read_labels(path: Path) -> list[str]:
    """The labels of a file, one a line."""
    try:
        text = read_text(path)
    except OSError as error:
        raise OptionError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise OptionError(f"{path} is no text in UTF-8: save it as such, with one label per line") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
