"""The command line: one file a command, each a thin layer over what `openblip.load` returns.

Nothing here imports PyTorch before a command needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from openblip import __version__
from openblip.cli.commands import LazyGroup
from openblip.cli.interrupts import Ended, ended_by_signals
from openblip.cli.report import complain, say
from openblip.errors import OpenBlipError, OptionError, printable

WRONG_USAGE = 2
NO_MEMORY = (
    "there is not enough memory: use a smaller --batch-size, --num-beams or --max-new-tokens, a smaller model, or "
    "--dtype int8"
)
ALLOCATION = "can't allocate memory"

EPILOG = """[bold]Start with[/bold]
  openblip caption photo.jpg
  openblip caption --help

[bold]Exit codes[/bold]
  0    all done
  1    some images could not be read; the others are done
  2    wrong usage, nothing found, or the model cannot be loaded
  130  interrupted with Ctrl-C
  143  ended by SIGTERM"""

app = typer.Typer(
    cls=LazyGroup,
    help="BLIP-2 on the command line: captions, answers, image-text matching and features.",
    epilog=EPILOG,
    context_settings={"help_option_names": ["--help", "-h"]},
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code."""
    _speak_utf8()
    try:
        for argument in sys.argv[1:] if arguments is None else arguments:
            if "\0" in argument:
                raise OptionError(f"{argument[:80]!r} holds a character of the code 0, which nothing has: check it")
            if argument.startswith("-") and printable(argument) != argument:
                # A file of such a name, as a pattern gives it; the parser would repeat it as it is.
                raise OptionError(f"{argument} is no option; for a file of this name give ./{argument}")
        with ended_by_signals():
            app(arguments, prog_name="openblip")
    except Ended as ended:
        say(f"stopped by {ended.signal.name}")
        raise
    except (OpenBlipError, OSError) as error:
        complain(error)
        sys.exit(WRONG_USAGE)
    except (MemoryError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        complain(OpenBlipError(NO_MEMORY))
        sys.exit(WRONG_USAGE)
    sys.exit(0)


def _lacks_memory(error: Exception) -> bool:
    """Whether this is Python's or PyTorch's error for memory of the machine or of the GPU."""
    # PyTorch has no class of its own for the machine's.
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or ALLOCATION in str(error)


def _speak_utf8() -> None:
    # Windows pipes speak the local code page, which has no room for many captions and file names. A file name
    # that is no text at all is written as an escape, which JSON readers turn back into the same name.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"openblip {__version__}")
        raise typer.Exit


@app.callback()
def _openblip(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    from openblip.images.decode import silence_decoders

    silence_decoders()
