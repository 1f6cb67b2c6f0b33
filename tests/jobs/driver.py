"""`python driver.py INPUT OUTPUT [OPTION=JSON ...]`: a job with a verb that needs no model, for tests that kill it.

With `hang_at` it never comes to its end: it stands still at the batch that has this shade. What the verb says of an
image shows with which other images it was computed. An image whose first pixel is 1, 2, 3 kills its process; one whose
first pixel is 1, 2, 5 kills the parent of its process.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import typer

import openblip
from openblip.cli.interrupts import ended_by_signals, stoppable
from openblip.cli.report import complain
from openblip.errors import ImageError, OpenBlipError
from openblip.images.prefetch import read_ahead
from openblip.jobs import worker
from openblip.jobs.chunks import Block
from openblip.jobs.cluster import Cluster, compute_blocks, computing_on
from openblip.jobs.cluster_worker import BlockWorker, ClusterWork
from openblip.jobs.job import Progress, run_job
from openblip.jobs.journal import Journal
from openblip.jobs.object_storage import StoredOutput, is_stored
from openblip.jobs.plan import JobOptions, JobPlan, plan_job
from openblip.jobs.rows import ColumnType
from openblip.jobs.sidecars import Sidecars
from openblip.models.abilities import Ability

openblip.load = lambda **_: None  # type: ignore[assignment]
worker.BLOCK_BATCHES = 4


@dataclass(frozen=True)
class Shade:
    pause: float = 0.0
    hang_at: int | None = None
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
                if self.hang_at in whole:
                    time.sleep(3600)
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
    assert isinstance(first, tuple)
    if first == (1, 2, 3):
        os.kill(os.getpid(), signal.SIGKILL)
    if first == (1, 2, 5):
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)
    return first[0] * 65536 + first[1] * 256 + first[2]


def compute_backwards(stop_after: int, name: str | None, plan: JobPlan, journal: Journal, progress: Progress) -> None:
    """What a cluster does, from the last block to the first, and none after so many; `name` is the run's."""

    def schedule(worker: Any, shared: ClusterWork, blocks: Sequence[Block]) -> Iterator[Block]:
        work = worker(shared if name is None else replace(shared, run=name))
        for done, block in enumerate(reversed(blocks)):
            if worker is BlockWorker and done == stop_after:
                raise OpenBlipError("enough")
            receipt = work({"start": np.array([block.start]), "stop": np.array([block.stop])})
            if receipt["failed"] != [""]:
                raise OpenBlipError(receipt["failed"][0])
            yield block

    compute_blocks(plan, journal, progress, schedule)


def main(source: str, output: str, **options: Any) -> int:
    sidecar = options.pop("sidecar", None)
    verb = (Told if sidecar else Shade)(options.pop("pause", 0.0), options.pop("hang_at", None))
    batch_size = options.pop("batch_size", 3)
    if sidecar:
        options["sidecars"] = Sidecars(*sidecar)
    settings = {"--batch-size": batch_size} | options.pop("settings", {})
    if "shard" in options:
        options["shard"] = tuple(options["shard"])
    compute = computing_on(Cluster(**options.pop("ray"))) if "ray" in options else None
    if "backwards" in options:
        compute = partial(compute_backwards, options.pop("backwards"), options.pop("run", None))
    if is_stored(output):
        options["stored"], output = StoredOutput(output), Path(output).name
    job = JobOptions(source, Path(output).absolute(), verb, settings, {}, batch_size, **options)
    try:
        with ended_by_signals(), stoppable():
            outcome = run_job(plan_job(job), compute=compute)
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
    # By its name, so that the verb is found in the processes of a cluster, too.
    sys.exit(importlib.import_module("driver").main(sys.argv[1], sys.argv[2], **parsed))
