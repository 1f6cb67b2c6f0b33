"""The rows of a job, computed by many machines: Ray hands out the numbers of blocks, and nothing else.

Reading, batches, the files of blocks and the output are the same as on a single machine, and so are the bytes. First
all images are read once, for those that are there twice: which images are computed together depends on them.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from openblip.errors import OpenBlipError, OptionError
from openblip.jobs.chunks import Block, find_copies
from openblip.jobs.cluster_worker import BlockWorker, ClusterWork, KeyReader
from openblip.jobs.job import Compute, Progress
from openblip.jobs.journal import Journal
from openblip.jobs.plan import JobPlan

WORKER_CPUS = 0.25
"""Of a processor, reserved for a worker: if workers took all, none would be left to hand them their numbers."""


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, and what to take of it.

    Attributes:
        address: of its head; None: that in RAY_ADDRESS, or else a cluster of this machine alone.
        workers: how many have a model; None: one for each GPU, or for each machine if there are no GPUs.
        gpus: of each worker, also 0.5; None: one if there are any.

    Raises:
        OptionError: `workers` is below 1, or `gpus` below 0.
    """

    address: str | None = None
    workers: int | None = None
    gpus: float | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise OptionError(f"--workers is {self.workers}: it must be at least 1")
        if self.gpus is not None and self.gpus < 0:
            raise OptionError(f"--gpus-per-worker is {self.gpus}: it must be 0 or more")


REACH_SECONDS = 20.0

Schedule: TypeAlias = "Callable[[type[KeyReader] | type[BlockWorker], ClusterWork, Sequence[Block]], Iterator[Block]]"


@dataclass(frozen=True)
class Share:
    """What each of a number of workers gets of a cluster."""

    workers: int
    gpus: float
    threads: int | None


def computing_on(cluster: Cluster, say: Callable[[str], None] = lambda text: None) -> Compute:
    """Does rows on a cluster.

    Args:
        say: is told what is done while no row is.

    Raises:
        OptionError: Ray is not installed.
    """

    if find_spec("ray") is None:
        raise OptionError('--engine ray needs Ray: pip install "openblip[ray]"')

    def compute(plan: JobPlan, journal: Journal, progress: Progress) -> None:
        plan.chunks().move_into(journal, plan.blocks(journal.next))
        if journal.next >= plan.stop:
            return
        with _connected(cluster.address) as ray:
            has_device = str(plan.options.loading.get("device") or "auto") != "cpu"
            share = share_of(cluster, ray.cluster_resources(), _machines(ray), has_device)
            readers = max(1, int(ray.cluster_resources().get("CPU", 1)) // 2)

            def schedule(worker: type[Any], shared: ClusterWork, blocks: Sequence[Block]) -> Iterator[Block]:
                if worker is KeyReader:
                    return _receipts(worker, shared, blocks, readers, {"num_cpus": 1})
                wanted = {"num_cpus": WORKER_CPUS} | ({"num_gpus": share.gpus} if share.gpus else {})
                return _receipts(worker, shared, blocks, share.workers, wanted)

            compute_blocks(plan, journal, progress, schedule, share.threads, say)

    return compute


def compute_blocks(
    plan: JobPlan,
    journal: Journal,
    progress: Progress,
    schedule: Schedule,
    threads: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Do the rows that were never tried, block by block, in any order.

    Args:
        schedule: has blocks done by workers of a class, and yields them as they are done.
        threads: of each worker.
        say: is told what is done while no row is.
    """
    chunks, blocks = plan.chunks(), list(plan.blocks(journal.next))
    shared = ClusterWork(plan.work(Path(), plan.start), chunks, uuid.uuid4().hex, os.getcwd(), threads)
    names = set(chunks.store.names())
    done = {block for block in blocks if f"{block.start}.rows" in names and chunks.rows(block) is not None}
    unread = [
        block
        for block in blocks
        if block not in done and (f"{block.start}.keys" not in names or chunks.keys(block) is None)
    ]
    if unread:
        say(
            f"reading {sum(block.stop - block.start for block in unread):,} images once, for those that are there twice"
        )
        for _ in schedule(KeyReader, shared, unread):
            pass
    for block, copies in find_copies(journal.path, chunks, blocks):
        if copies and block not in done:
            chunks.put_copies(block, copies)
    rest = [block for block in blocks if block not in done]
    finished = plan.total - sum(block.stop - block.start for block in rest)
    progress(finished, plan.total)
    for block in schedule(BlockWorker, shared, rest):
        finished += block.stop - block.start
        progress(finished, plan.total)
        chunks.move_into(journal, plan.blocks(journal.next))
    chunks.move_into(journal, plan.blocks(journal.next))
    if journal.next < plan.stop:
        raise OpenBlipError(f"{plan.options.shown_output} lacks rows from {journal.next:,} on: give the command again")


def share_of(cluster: Cluster, resources: dict[str, float], machines: Sequence[int], has_device: bool) -> Share:
    """Who gets what.

    Args:
        resources: of the whole cluster, as Ray names them.
        machines: the processors of each machine.
        has_device: whether models may run on a GPU.

    Raises:
        OptionError: the cluster has not as much as is asked for.
    """
    gpus = resources.get("GPU", 0.0)
    each = cluster.gpus if cluster.gpus is not None else min(gpus, 1.0)
    if not has_device:
        each = 0.0
    if each > gpus:
        raise OptionError(
            f"the cluster has {gpus:g} GPUs, too few for one worker: give --gpus-per-worker, or --device cpu"
        )
    processors = sum(machines)
    if each:
        workers = cluster.workers or int(gpus // each)
        if workers * each > gpus:
            raise OptionError(
                f"{workers} workers with {each:g} GPUs each are more than the {gpus:g} of the cluster: give "
                f"--workers {int(gpus // each)}"
            )
        return Share(workers, each, None)
    workers = cluster.workers or max(1, len(machines))
    if workers > max(1, processors):
        raise OptionError(f"{workers} workers are more than the {processors} processors of the cluster: give --workers")
    return Share(workers, 0.0, max(1, min(processors // workers, max(machines, default=1))))


def _machines(ray: Any) -> list[int]:
    """The processors of each machine that has any for us."""
    found = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return [processors for processors in found if processors]


def _receipts(
    worker: type[Any], shared: ClusterWork, blocks: Sequence[Block], workers: int, wanted: dict[str, Any]
) -> Iterator[Block]:
    """Blocks as they are done, in any order. Raises OpenBlipError, which says what is wrong, at the first failure."""
    from ray import data
    from ray.exceptions import RayError

    if not blocks:
        return
    items = [{"start": block.start, "stop": block.stop} for block in blocks]
    numbers = data.from_items(items, override_num_blocks=len(items))
    pool = data.ActorPoolStrategy(size=min(workers, len(blocks)))
    receipts = numbers.map_batches(
        worker, batch_size=1, compute=pool, fn_constructor_kwargs={"shared": shared}, **wanted
    )
    try:
        for receipt in receipts.iter_rows():
            if receipt["failed"]:
                raise OpenBlipError(receipt["failed"])
            yield Block(receipt["start"], receipt["stop"])
    except RayError as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise OpenBlipError(f"Ray ended the work ({first}): what is done is kept; give the command again") from error


@contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Ray's module, while there is a connection to a cluster. Raises OpenBlipError if there is none at the address."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import logging

    import ray
    from ray import data

    if ray.is_initialized():
        yield ray
        return
    target = address or os.environ.get("RAY_ADDRESS") or None
    alone: dict[str, Any] = {} if target else {"include_dashboard": False}
    before = signal.getsignal(signal.SIGTERM)
    try:
        _reach(target)
        ray.init(address=target or "local", log_to_driver=False, logging_level=logging.ERROR, **alone)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        where = f"at {target}" if target else "of this machine"
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise OpenBlipError(
            f"no Ray cluster {where} ({first}): check --ray-address, or start one with ray start"
        ) from None
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray's own would end this program without a word
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        with redirect_stdout(sys.stderr):  # Ray prints what its processes complain about
            yield ray
    finally:
        with redirect_stdout(sys.stderr):
            ray.shutdown()


def _reach(address: str | None) -> None:
    """Raises OSError if nobody listens at an address: Ray would try for minutes. Names of other kinds are Ray's."""
    host, _, port = (address or "").rpartition(":")
    if host and "/" not in host and port.isdecimal():
        with socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS):
            pass
