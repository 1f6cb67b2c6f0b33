"""`openblip doctor`: what this machine is good for."""

from __future__ import annotations

from dataclasses import asdict

from openblip.cli import arguments as args
from openblip.cli.report import open_report

EXAMPLES = """[bold]Examples[/bold]
  openblip doctor
  openblip doctor --json"""


def doctor(as_json: args.AsJson = False) -> None:
    """Measure this machine for a few seconds: show which device and type OpenBLIP picks, and how long a caption takes.

    A caption is one image and 20 greedy tokens, after the first few; the times come from layers of real models.
    Programs that run at the same time make them longer.
    """
    import torch

    from openblip import __version__
    from openblip.checkpoints.tools.plan import free_memory
    from openblip.machine import measure

    found = measure()
    memory = dict(free_memory())
    with open_report(as_json) as report:
        if as_json:
            fields = asdict(found) | {
                "placement": {"device": str(found.placement.device), "dtype": str(found.placement.dtype)[6:]},
                "free_memory": memory,
                "captions": [asdict(estimate) for estimate in found.estimates()],
            }
            report.record(openblip=__version__, torch=torch.__version__, **fields)
            return
        report.line(f"OpenBLIP {__version__}, PyTorch {torch.__version__}, {found.processor}")
        report.line(f"  cores    {found.cores}, of which PyTorch uses {found.threads} (OMP_NUM_THREADS changes that)")
        for device, free in memory.items():
            report.line(f"  {device:<8} " + ("free memory unknown" if free is None else f"{free / 1e9:.1f} GB free"))
        kind = str(found.placement.dtype).removeprefix("torch.")
        report.line(f"  chosen   {found.placement.device}, {kind}: {found.reason}")
        report.line(f"  reads    {found.reads / 1e9:.1f} GB/s from memory")
        for speed in found.speeds:
            report.line(
                f"  {speed.dtype:<8} {speed.many / 1e9:,.0f} GFLOP/s for an image, {speed.few / 1e9:,.0f} a prompt, "
                f"{speed.row / 1e9:.1f} GB/s of weights for a token"
            )
        if not found.exact_int8:
            report.line("           int8 inputs are a bit shorter here, or computed as floats: no VNNI")
        if found.placement.device.type == "cpu":
            for name in (name for name, computed in found.half_types.items() if not computed):
                report.line(f"           {name} is computed in float32 here, from weights kept in {name}")
        report.line("")
        report.line("seconds a caption, expected    " + "".join(f"{speed.dtype:>10}" for speed in found.speeds))
        for estimate in found.estimates():
            cells = "".join(f"{seconds:>10.1f}" for seconds in estimate.seconds.values())
            report.line(f"{estimate.name:<31}{cells}")
