"""`openblip chat`: talk about an image."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated

import typer

from openblip.checkpoints import DEFAULT_MODEL
from openblip.cli import arguments as args
from openblip.cli.report import complain, print_line, print_pieces
from openblip.errors import OpenBlipError
from openblip.generation.options import TextOptions

EXAMPLES = """[bold]Examples[/bold]
  openblip chat photo.jpg
  printf 'what is this?\\nwhat color is it?\\n' | openblip chat photo.jpg"""

RESET = "/reset"


@args.with_text_options
def chat(
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="An image file or web address.", show_default=False)],
    model: args.Model = DEFAULT_MODEL,
    device: args.Device = None,
    dtype: args.Dtype = None,
    adapter: args.Adapter = None,
    tokenizer: args.Words = None,
    *,
    options: TextOptions,
) -> None:
    """Have a conversation about an image: each question is asked with the turns before it.

    An empty line or the end of the input (Ctrl-D, on Windows Ctrl-Z) ends the conversation; /reset starts a
    new one. If you pipe questions in, one per line, each answer is printed on a line. On a terminal, you see
    each answer while it is generated; with --num-beams, you see it when the beam search is done.
    """
    import openblip
    from openblip.images.decode import load_image

    opened = load_image(image)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    streams = interactive and options.get("num_beams", 1) == 1
    conversation = openblip.load(model, device=device, dtype=dtype, adapter=adapter, tokenizer=tokenizer).chat(opened)
    for line in _typed() if interactive else sys.stdin:
        question = line.strip()
        if not question:
            break
        if question == RESET:
            conversation.turns.clear()
            continue
        try:
            if streams:
                print_pieces(conversation.ask(question, stream=True, **options))
            else:
                print_line(conversation.ask(question, **options))
        except OpenBlipError as error:
            if not interactive:
                raise
            complain(error)


def _typed() -> Iterator[str]:
    """What a person types, line by line."""
    # Gives input() history and editing; Windows lacks it, but its console has its own.
    with suppress(ImportError):
        import readline  # noqa: F401
    with suppress(EOFError):
        while True:
            yield input("> ")
    print()
