"""`openblip plan`: what a model needs, before it is loaded."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from openblip.cli import arguments as args
from openblip.cli.report import open_report

EXAMPLES = """[bold]Examples[/bold]
  openblip plan Salesforce/blip2-opt-2.7b
  openblip plan blip2_t5/pretrain_flant5xl --dtype int8
  openblip plan mini --dtype bf16 --json"""

VERDICTS = {True: "fits", False: "does not fit", None: "unknown"}


def plan(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name from `openblip models`.", show_default=False)],
    dtype: Annotated[
        str, typer.Option(metavar="NAME", help="The type of the weights in memory: float32, bf16, int8 or int4.")
    ] = "float32",
    as_json: args.AsJson = False,
) -> None:
    """Show how much disk space and memory a model needs, and whether this machine has them now.

    Memory is an estimate for one image and five beams.
    """
    from openblip.checkpoints.tools.plan import make_plan

    made = make_plan(name, dtype)
    with open_report(as_json) as report:
        if as_json:
            report.record(**asdict(made), memory=made.memory, download_fits=made.download_fits)
            return
        report.line(f"{made.name}, {made.parameters / 1e6:,.0f} M weights in {made.dtype}")
        disk = f"{_gb(made.download)} to fetch, {_gb(made.disk_free)} free: {VERDICTS[made.download_fits]}"
        report.line(f"  disk    {disk if made.download else 'nothing to fetch, it is on this machine'}")
        report.line(
            f"  memory  {_gb(made.memory)}: {_gb(made.weights)} weights, {_gb(made.memory - made.weights)} beside"
        )
        for room in made.devices:
            free = "" if room.free is None else f"{_gb(room.free)} free: "
            report.line(f"  {room.device:<6}  {free}{VERDICTS[room.fits]}")


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
