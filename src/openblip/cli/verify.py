"""`openblip verify`: official weights against what their authors published."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from openblip.cli import arguments as args
from openblip.cli.report import open_report

EXAMPLES = """[bold]Examples[/bold]
  openblip verify blip2_opt/pretrain_opt2.7b
  openblip verify Salesforce/blip2-itm-vit-g --dtype float32
  openblip verify Salesforce/blip2-opt-2.7b --weights models/blip2-opt-2.7b --images photos/"""

DIFFERENT = 1


def verify(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An official model (openblip models).")],
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The model's files, where they are already here.", show_default=False),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Holds the test photos, which are downloaded otherwise.", show_default=False
        ),
    ] = None,
    device: args.Device = None,
    dtype: args.Dtype = None,
    as_json: args.AsJson = False,
) -> None:
    """Run an official model on the photos that its authors published outputs of, and compare.

    Texts have to be the same word for word; probabilities and cosines may differ by 0.005. Leaves with exit code 1
    when something differs, which a lower precision than float16 can cause.
    """
    import openblip
    from openblip import verification

    published = verification.published_outputs(name)
    with open_report(as_json) as report:
        model = openblip.load(name if weights is None else weights, device=device, dtype=dtype)
        same = True
        for outcome in verification.verify(model, published, images):
            same &= outcome.same
            if as_json:
                report.record(**asdict(outcome))
                continue
            report.line(f"{'same     ' if outcome.same else 'different'}  {outcome.task}: {outcome.found}")
            if not outcome.same:
                report.line(f"{'':<9}  published: {outcome.expected}")
    if not same:
        raise typer.Exit(DIFFERENT)
