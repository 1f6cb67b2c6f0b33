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
  openblip verify blip_image_text_matching/base
  openblip verify Salesforce/blip2-itm-vit-g --dtype float32
  openblip verify Salesforce/blip2-opt-2.7b --weights models/blip2-opt-2.7b --images photos/"""

DIFFERENT = 1


def verify(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An official model (openblip models).")],
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="The folder of the model's files, if you have them already.", show_default=False
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="The folder of the test images. Default: download them.", show_default=False
        ),
    ] = None,
    device: args.Device = None,
    dtype: args.Dtype = None,
    as_json: args.AsJson = False,
) -> None:
    """Compare an official model with outputs that its authors published, on the same images.

    Texts must be the same word for word; probabilities and cosines may differ by 0.005, means of features by 2 percent.
    The exit code is 1 if something differs, which can happen at a lower precision than float16.
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
