"""Arguments and options that several commands share."""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from openblip import __version__
from openblip.cli.inputs import Image, name_of
from openblip.errors import OptionError
from openblip.generation.options import USER_OPTIONS, GenerationOptions
from openblip.jobs.folder import FILES
from openblip.jobs.kept_output import Command

if TYPE_CHECKING:
    from openblip.models.model import Model as LoadedModel

HTTP_PANEL = "HTTP"
TEXT_PANEL = "Text generation (by default, each model uses its own settings)"
OUTPUT_PANEL = "Output"
INPUT_HELP = (
    "Image files, folders, quoted patterns ('photos/*.jpg'), web addresses, lists of paths (.txt), tables with a "
    "column of images (.csv, .tsv, .jsonl, .parquet) or tars. With -, an image or a list of paths from standard input."
)
NO_CONTENT = frozenset({"inputs", "image", "more_images", "recursive", "stream", "output"})
"""Parameters that change nothing of an output file but what its images are."""


def _argument(metavar: str, explained: str) -> Any:
    return typer.Argument(metavar=metavar, help=explained, show_default=False)


def _about_model(metavar: str, explained: str, *names: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=explained, rich_help_panel="Model")


def about_text(metavar: str | None, explained: str, *names: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=explained, rich_help_panel=TEXT_PANEL)


RecipePath = Annotated[Path, _argument("RECIPE.yaml", "The recipe file.")]
Overrides = Annotated[
    list[str] | None, _argument("KEY=VALUE", "Settings that replace those of the recipe, such as optimizer.lr=1e-4.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the recipe with all its settings, and do nothing else.")]

NewFolder = Annotated[Path, _argument("DST", "The folder to write: a new or an empty one.")]
LavisFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A .pth file that LAVIS saved, to load instead of the official weights.",
        show_default=False,
    ),
]
WordsFrom = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        metavar="FOLDER",
        help="A model whose tokenizer to use, if the source has none (as the checkpoints of transformers' Trainer).",
        show_default=False,
    ),
]

Inputs = Annotated[list[str], _argument("INPUT", INPUT_HELP)]
Images = Annotated[
    str,
    _argument(
        "IMAGE", "An image file or web address. For several images: a folder, quoted pattern, list, table, tar or -."
    ),
]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Include images in subfolders.")]
BatchSize = Annotated[int, typer.Option(metavar="N", min=1, help="Number of images to process at once.")]

Model = Annotated[str, _about_model("NAME", "A name from `openblip models`, or a model folder.", "--model", "-m")]
Device = Annotated[str | None, _about_model("NAME", "cpu, cuda, cuda:1 or mps. Default: CUDA if there is one.")]
Dtype = Annotated[
    str | None, _about_model("NAME", "float32, bfloat16, float16, int8 or int4. Default: what the device runs fast.")
]
Adapter = Annotated[
    str | None,
    _about_model("FOLDER", "Low-rank adapters (LoRA) in peft's format: a folder, or a repository on the hub."),
]
AllowUrl = Annotated[
    list[str] | None,
    typer.Option(
        metavar="HOST",
        help="Fetch images from this server, such as images.example.org or '*.example.org'; repeatable. Default: "
        "from none.",
        show_default=False,
    ),
]
Host = Annotated[
    str,
    typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0 is all networks.", rich_help_panel=HTTP_PANEL),
]
Port = Annotated[
    int,
    typer.Option(metavar="N", min=0, max=65535, help="The port; 0 is any that is free.", rich_help_panel=HTTP_PANEL),
]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Keys, one a line, of which clients send one as Authorization: Bearer KEY. Needed to listen at other "
        "addresses than this machine's own.",
        rich_help_panel=HTTP_PANEL,
        show_default=False,
    ),
]
AllowedHost = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="A name that clients of the tools call this server by, as behind a proxy: tools.example.org; repeatable.",
        rich_help_panel=HTTP_PANEL,
        show_default=False,
    ),
]
Words = Annotated[
    str | None,
    _about_model(
        "FOLDER",
        "A model whose tokenizer to use, if the folder has none (as the checkpoints of transformers' Trainer).",
        "--tokenizer",
    ),
]

Prompt = Annotated[str | None, about_text("TEXT", "The words that captions begin with; they are not printed again.")]
NumCaptions = Annotated[int, about_text("N", "Number of captions for each image, best first.")]
Stream = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="Show each answer while it is generated; greedy unless you sample.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object per line instead of text.", rich_help_panel=OUTPUT_PANEL)
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Write to this file. If the command is stopped, give it again, and it continues.",
        rich_help_panel=OUTPUT_PANEL,
    ),
]


def with_text_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command a flag for every option of generation; its parameter `options` gets those that were given."""
    signature = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        options = {name: arguments.pop(name) for name in USER_OPTIONS}
        if options["bad_words"]:
            options["bad_words"] = forms_to_avoid(options["bad_words"])
        command(**arguments, options={name: value for name, value in options.items() if value not in (None, [])})

    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        parameters += _text_flags() if name == "options" else [parameter]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return run


@functools.cache
def _text_flags() -> list[inspect.Parameter]:
    kinds = get_type_hints(GenerationOptions) | {"bad_words": list[str] | None}
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[kinds[name], about_text(about["metavar"], about["help"], *about["flags"])],
        )
        for name, about in USER_OPTIONS.items()
    ]


def forms_to_avoid(given: Sequence[str]) -> list[str]:
    """The words of --avoid, some of which may be in files, in all forms that they have."""
    from openblip.jobs.words import forms_to_avoid

    return forms_to_avoid(given)


def command_of(context: typer.Context, images: Sequence[Image]) -> Command | None:
    """What decides the content of the command's --output, if there is one: options, images, and the model's files."""
    if context.params.get("output") is None:
        return None
    import hashlib

    settings = settings_of(context, NO_CONTENT)
    digest = hashlib.sha256()
    for image in images:
        digest.update(name_of(image).encode("utf-8", "backslashreplace") + b"\n")
    settings["the list of images"] = digest.hexdigest()
    return Command(json.loads(json.dumps(settings)), len(images))


def settings_of(context: typer.Context, ignored: Collection[str]) -> dict[str, Any]:
    """What decides the texts of a command, by the names that the user has for it: options, and the model's files.

    Args:
        ignored: parameters that decide nothing.
    """
    from openblip.checkpoints.origin import origin_of

    settings: dict[str, Any] = {}
    for parameter in context.command.params:
        if parameter.name is not None and parameter.name not in ignored:
            value = context.params.get(parameter.name)
            settings[max(parameter.opts, key=len)] = str(value) if isinstance(value, Path) else value
    if context.params.get("bad_words"):
        settings["the words of --avoid"] = forms_to_avoid(context.params["bad_words"])
    for name in ("model", "adapter"):
        if context.params.get(name) is not None:
            settings[f"{FILES}--{name}"] = origin_of(context.params[name])
    settings["--version"] = __version__
    return settings


def load_model(context: typer.Context) -> LoadedModel:
    """The model of the command's options.

    With --output no image is looked up in the cache: what an earlier batch gave for a copy of an image has other last
    digits than its own batch gives, so a command that is stopped and goes on would write other bytes.
    """
    import openblip

    given = {name: context.params[name] for name in ("device", "dtype", "adapter", "tokenizer")}
    if context.params.get("output") is not None:
        given["image_cache"] = 0
    return openblip.load(context.params["model"], **given)


def refuse_images(texts: Sequence[str]) -> None:
    """Stop when a shell has expanded an unquoted pattern into files where words belong.

    Raises:
        OptionError: naming the file.
    """
    from openblip.images.sources import IMAGE_SUFFIXES

    for text in texts:
        if os.path.splitext(text)[1].lower() in IMAGE_SUFFIXES and os.path.isfile(text):
            raise OptionError(f"{text} is an image, not words: for several images quote the pattern or give a folder")
