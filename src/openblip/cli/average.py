"""`openblip average`: the mean of several models."""

from __future__ import annotations

from typing import Annotated

import typer

from openblip.cli.arguments import NewFolder
from openblip.cli.report import print_line
from openblip.errors import OptionError

EXAMPLES = """[bold]Examples[/bold]
  openblip average runs/mean runs/seed1 runs/seed2 runs/seed3
  openblip average runs/mean runs/before=0.7 runs/after=0.3 --storage int8"""


def average(
    folder: NewFolder,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL[=SHARE]...",
            help="The models, which must have started from the same weights; a SHARE is a weight of the average.",
            show_default=False,
        ),
    ],
    storage: Annotated[
        str, typer.Option(metavar="TYPE", help="The type of the weights: float32, float16 or int8.")
    ] = "float32",
) -> None:
    """Average the weights of models that started from the same weights; the mean is often better than each of them."""
    from openblip.checkpoints.tools.average import average_models

    path = average_models(_shares(models), folder, storage=storage)
    print_line(f"{path} ({path.stat().st_size / 1e6:,.1f} MB)")


def _shares(models: list[str]) -> dict[str, float]:
    shares: dict[str, float] = {}
    parsed = [model.rpartition("=") for model in models]
    if len({bool(equals) for _, equals, _ in parsed}) > 1:
        raise OptionError("give every model a share, as in runs/a=0.7 runs/b=0.3, or none")
    for name, equals, last in parsed:
        try:
            share = float(last) if equals else 1 / len(models)
        except ValueError:
            raise OptionError(f"{last!r} is no share: write {name}=0.5") from None
        shares[name if equals else last] = share
    if len(shares) < len(models):
        raise OptionError("a model is named twice: add its shares up")
    return shares
