"""`python driver.py INPUT OUTPUT [OPTION=JSON ...]`: a job with a verb that needs no model, for tests that kill it.

What the verb says of an image shows with which other images it was computed. An image whose first pixel is 1, 2, 3
kills its process.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import typer

import openblip
from openblip.cli.interrupts import ended_by_signals, stoppable
from openblip.cli.report import complain
from openblip.errors import ImageError, OpenBlipError
from openblip.images.prefetch import read_ahead
from openblip.jobs import worker
from openblip.jobs.job import JobOptions, plan_job, run_job
from openblip.jobs.rows import ColumnType
from openblip.jobs.sidecars import Sidecars
from openblip.models.abilities import Ability

openblip.load = lambda **_: None  # type: ignore[assignment]
worker.BLOCK_BATCHES = 4


@dataclass(frozen=True)
class Shade:
    pause: float = 0.0
    ability: ClassVar[Ability] = "caption"
    columns: ClassVar[Mapping[str, ColumnType]] = {"shade": "int64", "batch": "list<int64>"}
    has_tags: ClassVar[bool] = False

    def check(self, columns: Collection[str]) -> None:
        pass

    def texts(self, values: Mapping[str, str], image: str) -> tuple[str, ...]:
        return ()

    def finish(self, result: dict[str, Any], values: Mapping[str, str], image: str) -> dict[str, Any]:
        return result

    def start(self, model: object, batch_size: int) -> Any:
        def shades(pairs: Any) -> Iterator[dict[str, Any] | ImageError]:
            for batch in read_ahead((image for image, _ in pairs), _shade, batch_size):
                time.sleep(self.pause)
                whole = [found for _, found in batch if isinstance(found, int)]
                for _, found in batch:
                    yield found if isinstance(found, ImageError) else {"shade": found, "batch": whole}

        return shades


@dataclass(frozen=True)
class Told(Shade):
    """In words: a text, and the batch as tags."""

    columns: ClassVar[Mapping[str, ColumnType]] = {"told": "string", "words": "list<string>"}

    def finish(self, result: dict[str, Any], values: Mapping[str, str], image: str) -> dict[str, Any]:
        return {"told": f"a shade of {result['shade']}", "words": [f"with {one}" for one in result["batch"]]}


def _shade(image: bytes) -> int:
    from PIL import Image

    try:
        pixels = Image.open(io.BytesIO(image)).convert("RGB")
    except OSError:
        raise ImageError("it", "no image") from None
    first = pixels.getpixel((0, 0))
    if first == (1, 2, 3):
        os.kill(os.getpid(), signal.SIGKILL)
    return first[0] * 65536 + first[1] * 256 + first[2]


def main(source: str, output: str, **options: Any) -> int:
    sidecar = options.pop("sidecar", None)
    verb = (Told if sidecar else Shade)(options.pop("pause", 0.0))
    batch_size = options.pop("batch_size", 3)
    if sidecar:
        options["sidecars"] = Sidecars(*sidecar)
    settings = {"--batch-size": batch_size} | options.pop("settings", {})
    if "shard" in options:
        options["shard"] = tuple(options["shard"])
    job = JobOptions(source, Path(output).absolute(), verb, settings, {}, batch_size, **options)
    try:
        with ended_by_signals(), stoppable():
            outcome = run_job(plan_job(job))
    except typer.Exit as left:
        return left.exit_code
    except (OpenBlipError, OSError) as error:
        complain(error)
        return 2
    counts = vars(outcome)
    print(json.dumps(counts if sidecar else {name: counts[name] for name in ("rows", "errors", "copies")}))
    return 1 if outcome.errors else 0


if __name__ == "__main__":
    parsed = {name: json.loads(value) for name, _, value in (text.partition("=") for text in sys.argv[3:])}
    sys.exit(main(sys.argv[1], sys.argv[2], **parsed))
