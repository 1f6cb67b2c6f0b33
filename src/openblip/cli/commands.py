"""All commands, each built when it is called.

`--help` of the program reads this table alone. To build a command takes its module and an object for each of its
options, a millisecond or more, which all of them together would cost every start.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

SUMMARIES = {
    "caption": "Caption images: print one line for each, with its name, a colon and the caption.",
    "ask": "Answer questions about one or more images.",
    "chat": "Have a conversation about an image: each question is asked with the turns before it.",
    "match": "Score how well texts fit one or more images; the best pair comes first.",
    "classify": "Choose among labels: print one line for each image, with its name, a colon and the most probable "
    "labels.",
    "judge": "Judge statements about images: print a line for each, with the class and its probability.",
    "embed": "Embed images and texts: write unit vectors that you can compare and search.",
    "run": "Caption, ask, match, embed or classify all rows of a table or a folder; never loses work.",
    "index": "Make photos searchable: put their vectors into an index, or bring it up to date.",
    "search": "Find photos in an index by a text or a photo, or find duplicates.",
    "video": "Describe a video: print one line for each part, with its times and what is seen; or write subtitles or a "
    "page.",
    "analyze": "Ask a set of questions about each page of PDFs, TIFFs and images; each page is encoded once for all of "
    "them.",
    "serve": "Serve a model over HTTP: captions, answers, matching and features; also as OpenAI's API.",
    "mcp": "Serve the model to assistants and editors as tools of the Model Context Protocol (MCP).",
    "models": "List the models that you can load by name: ours, and the official ones of BLIP-2, BLIP and CLIP.",
    "download": "Download the files of a model that are not here yet, and print the path of each file.",
    "inspect": "Show what is in a model folder or a file of weights, without loading the weights.",
    "plan": "Show how much disk space and memory a model needs, and whether this machine has them now.",
    "convert": "Convert a model to the layout of OpenBLIP, transformers or LAVIS; the weights stay the same, bit for "
    "bit.",
    "quantize": "Quantize a model to 8 or 4 bits: it needs less disk space and memory, and is several times faster "
    "on a CPU.",
    "merge": "Merge low-rank adapters (LoRA) into the weights of a model, and write the result to a new folder.",
    "average": "Average the weights of models that started from the same weights; the mean is often better than each "
    "of them.",
    "doctor": "Measure this machine for a few seconds: show which device and type OpenBLIP picks, and how long a "
    "caption takes.",
    "verify": "Compare an official model with outputs that its authors published, on the same images.",
    "datasets": "List the public data sets that OpenBLIP knows, show one of them, or download its annotations.",
    "train": "Train a model from a recipe, and print the folder of the model.",
    "finetune": "Fine-tune a model on images with captions, or with questions and answers, and print the new folder.",
    "evaluate": "Evaluate a model with a recipe or on your own data: print the scores, and write metrics.json, "
    "predictions.jsonl and report.html.",
}
"""Commands in the order of `--help`, with the first paragraph of their help, as a test makes sure.

The module openblip.cli.NAME has the function NAME and its EXAMPLES, or an app with commands of its own.
"""


class Commands(Mapping[str, Any]):
    """Commands by name. A command is built when it is asked for."""

    def __init__(self) -> None:
        self.built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self.built:
            if name not in SUMMARIES:
                raise KeyError(name)
            self.built[name] = _build(name)
        return self.built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(SUMMARIES)

    def __len__(self) -> int:
        return len(SUMMARIES)


class LazyGroup(TyperGroup):
    """The program: it lists commands without building them."""

    # Contexts and formatters are of classes that Typer keeps for itself.
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings | {"commands": {}})
        self.commands: Any = Commands()
        self.listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        return list(SUMMARIES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if self.listing:
            return TyperCommand(cmd_name, help=SUMMARIES[cmd_name])
        return self.commands.get(cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self.listing = False


def _build(name: str) -> Any:
    module = importlib.import_module(f"openblip.cli.{name}")
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
        app.command(name, epilog=module.EXAMPLES)(getattr(module, name))
    command = typer.main.get_command(app)
    command.name = name
    return command
