"""A job: from an input to an output file, over any number of interruptions.

Beside OUT lies a folder OUT.openblip while the job is not complete: `job.json` says what job it is, `rows.jsonl` what
is done (see `journal`), `chunks` has what is done out of order (see `chunks`), `images` lists the images of a folder
or a pattern. OUT itself appears when all rows are done. The folder stays while rows have errors, so that they can be
tried again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from openblip.data.sources.cells import shown_columns
from openblip.data.sources.records import known_columns
from openblip.errors import OpenBlipError, OptionError
from openblip.jobs.chosen_rows import ChosenRows, RowSet
from openblip.jobs.chunks import Block, ChunkFiles, blocks_of
from openblip.jobs.folder import (
    FINISHED,
    JOB,
    ROWS,
    begin,
    check_same,
    clear,
    folder_of,
    held_for,
    identity_of,
    read_identity,
)
from openblip.jobs.inputs import find_rows
from openblip.jobs.journal import Journal, Record, count_done
from openblip.jobs.output import ERROR, writer_of
from openblip.jobs.rows import IMAGE, ColumnType, Row, Scan, Table
from openblip.jobs.sidecars import CHOSEN, WRITTEN, Sidecars, SidecarWriter
from openblip.jobs.storage import FolderStore
from openblip.jobs.supervisor import Supervisor
from openblip.jobs.text_tables import ListTable
from openblip.jobs.verbs import Verb
from openblip.jobs.worker import Work, block_rows
from openblip.saving import naming, put_names_on_disk, replacing, write_text

CHUNKS, IMAGES = "chunks", "images"
"""In the folder: blocks that were done out of order, and the list of the images of a folder or a pattern."""
BESIDE = (IMAGES, CHOSEN, WRITTEN)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class JobOptions:
    """What a job reads and writes, and how.

    Attributes:
        source: the input as the user names it; listed: standard input's lines, if that is the input.
        settings: what decides the content of the output, by the names that the user has for it, as JSON.
        loading: keywords of `openblip.load`.
        shard: (3, 16) is the third of sixteen parts, each of neighbouring rows.
        sidecars: write files beside the photos; `output` names the folder of the job alone.
    """

    source: str
    output: Path
    verb: Verb
    settings: Mapping[str, Any]
    loading: Mapping[str, Any]
    batch_size: int = 8
    exclude: Sequence[str] = ()
    image_column: str | None = None
    data_root: Path | None = None
    limit: int | None = None
    shard: tuple[int, int] = (1, 1)
    retry_errors: bool = False
    sidecars: Sidecars | None = None
    listed: Sequence[str] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class JobPlan:
    """A job before it starts.

    Attributes:
        start, stop: its rows.
        images: the list of images to be kept with the job; None of a table.
        done: rows that an earlier run of the same command did.
        skipped: rows that are none of the job, as their photos have a text already.
    """

    options: JobOptions
    table: Table
    scan: Scan
    images: list[str] | None
    start: int
    stop: int
    done: int
    skipped: int = 0

    @property
    def total(self) -> int:
        return self.stop - self.start

    @property
    def rows(self) -> range:
        return range(self.start, self.stop)

    def chunks(self) -> ChunkFiles:
        """Blocks that were done out of order."""
        return ChunkFiles(FolderStore(folder_of(self.options.output) / CHUNKS))

    def blocks(self, start: int) -> Iterator[Block]:
        """The blocks from a row on."""
        return blocks_of(start, self.rows, block_rows(self.options.batch_size))

    def work(self, journal: Path, start: int) -> Work:
        """All rows from one on."""
        options = self.options
        return Work(
            self.table,
            options.verb,
            dict(options.loading),
            options.batch_size,
            journal,
            self.rows,
            start,
            self.stop,
        )


Compute = Callable[[JobPlan, Journal, Progress], None]
"""Does the rows that were never tried: what it leaves to do is an error."""


@dataclass(frozen=True)
class Outcome:
    """What became of a job's rows.

    Attributes:
        rows: all of them; errors: those with an error; copies: those whose image an earlier row had.
        skipped: rows that are none of the job, as their photos have a text already.
        problems: of rows without a sidecar, what is wrong with them.
    """

    rows: int
    errors: int
    copies: int
    skipped: int = 0
    problems: Sequence[str] = ()


def plan_job(options: JobOptions, supervisor: Supervisor | None = None) -> JobPlan:
    """Read the whole input once, and check everything that can be checked without the model.

    Args:
        supervisor: begins to load the model meanwhile, for both may take seconds.

    Raises:
        OpenBlipError: the input cannot be read, or does not fit the options; the output is there, or cannot be.
    """
    output = options.output
    if options.sidecars is None:
        writer_of(output)
    else:
        options.sidecars.check(options.verb)
    if (output.is_dir() and options.sidecars is None) or not output.parent.is_dir():
        raise OptionError(f"{output} cannot be written: give --output the name of a file in an existing folder")
    folder = folder_of(output)
    spool = folder / IMAGES
    is_new = not any((folder / name).exists() for name in (JOB, FINISHED))
    # Where a text may be beside each photo already, there may be nothing to do.
    if supervisor is not None and options.sidecars is None and not (is_new and output.exists()):
        supervisor.start(options.loading)
    table: Table
    images: list[str] | None
    if options.listed is not None:
        table, images = ListTable((spool,), None, IMAGE), list(options.listed)
    else:
        table, images = find_rows(
            options.source,
            spool,
            exclude=options.exclude,
            column=options.image_column,
            data_root=options.data_root,
        )
    if output.exists() and options.sidecars is None:
        if output.resolve() in (file.resolve() for file in table.files):
            raise OptionError(f"{output} is the input itself: give another --output")
        if is_new:
            raise OptionError(f"{output} is there already: give another --output, or delete it")
    scan = table.scan() if images is None else _scan_of(images)
    if not scan.rows:
        raise OptionError(f"{options.source} has no rows: check that it is the right file")
    if table.column and table.column not in scan.columns:
        raise OptionError(f"{table.path} has no column {table.column}: it has {shown_columns(scan.columns)}")
    if not table.column and IMAGE not in known_columns(scan.columns):
        raise OptionError(
            f"{table.path} has no column of images: name it with --image-column; it has {shown_columns(scan.columns)}"
        )
    options.verb.check(scan.columns)
    for name in (*options.verb.columns, ERROR):
        if name in scan.columns and options.sidecars is None:
            fix = "rename it" if name == ERROR else "give another name with --column, or rename it"
            raise OptionError(f"{options.source} has a column {name!r} already: {fix}")
    total = scan.rows if options.limit is None else min(scan.rows, options.limit)
    part, parts = options.shard
    start, stop = total * (part - 1) // parts, total * part // parts
    if options.sidecars is not None:
        return _sidecar_plan(options, options.sidecars, table, scan, images, range(start, stop))
    plan = JobPlan(options, table, scan, images, start, stop, 0)
    if (folder / JOB).exists() and (folder / ROWS).exists():
        plan = replace(plan, done=_count_done(plan, start + count_done(folder / ROWS, start)))
        if plan.done:
            check_same(folder / JOB, output, _identity(options, scan))
    return plan


def _count_done(plan: JobPlan, following: int) -> int:
    """Rows that are done, given the first that is not in the journal."""
    chunks = plan.chunks().done()
    blocks = plan.blocks(following)
    return following - plan.start + sum(block.stop - block.start for block in blocks if block.start in chunks)


def _sidecar_plan(
    options: JobOptions, sidecars: Sidecars, table: Table, scan: Scan, images: list[str] | None, wanted: range
) -> JobPlan:
    """A job of those rows alone whose sidecars are to be written; the choice of a job that was begun stands."""
    folder = folder_of(options.output)
    done = count_done(folder / ROWS, 0) if (folder / JOB).exists() and (folder / ROWS).exists() else 0
    if done:
        check_same(folder / JOB, options.output, _identity(options, scan))
        chosen = RowSet((folder / CHOSEN).read_bytes())
    else:
        rows = table.rows(packed=True) if images is None else (Row(image, {IMAGE: image}) for image in images)
        chosen = sidecars.choose(table, rows, wanted, options.verb)
    some = ChosenRows(table.files, table.folder, table.column, table, chosen)
    return JobPlan(options, some, scan, images, 0, len(chosen), done, len(wanted) - len(chosen))


def run_job(
    plan: JobPlan,
    progress: Progress = lambda done, total: None,
    supervisor: Supervisor | None = None,
    compute: Compute | None = None,
) -> Outcome:
    """Do the rows that are not done, and write the output.

    Args:
        supervisor: that of `plan_job`.
        compute: who does the rows that were never tried; None: a process of this machine. It is the same job, with the
            same results, so that each goes on where another stopped.

    Raises:
        OpenBlipError: another process is at it; the model cannot be loaded, or lacks the ability.
        OSError: something cannot be written. What was done is kept.
    """
    options = plan.options
    folder = folder_of(options.output)
    if not plan.total and not folder.exists():
        return Outcome(0, 0, 0, plan.skipped)
    with held_for(folder, options.output):
        identity = _identity(options, plan.scan)
        if (folder / FINISHED).exists():  # killed while it cleared up
            check_same(folder / FINISHED, options.output, identity)
            outcome = Outcome(**read_identity(folder / FINISHED)["outcome"])
            _clear(plan, folder)
            return outcome
        journal = Journal(folder / ROWS, plan.start)
        chunks = plan.chunks()
        try:
            if (len(journal) or chunks.store.names()) and (folder / JOB).exists():
                check_same(folder / JOB, options.output, identity)
            else:
                chunks.store.clear()
                journal = _begin(plan, journal, folder, identity)
            writer = _sidecar_writer(plan, journal)
            with supervisor or Supervisor() as workers:
                shown = progress if writer is None else writer.writing(progress)
                if compute is None:
                    compute_here(plan, journal, workers, shown)
                else:
                    compute(plan, journal, shown)
                _retry(plan, journal, workers, shown)
            chunks.store.clear()
            if writer is None:
                outcome = Outcome(len(journal), len(journal.errors), _write(plan, journal))
            else:
                writer.finish()
                problems = [problem for _, problem in sorted(writer.problems.items())]
                outcome = Outcome(len(journal), len(problems), 0, plan.skipped, problems)
        finally:
            journal.close()
            if not len(journal) and not chunks.store.names():  # nothing to go on with
                _clear(plan, folder)
        # The next command does rows without sidecars anyway, where those with sidecars are skipped.
        if not outcome.errors or (options.sidecars is not None and options.sidecars.existing == "skip"):
            write_text(folder / JOB, json.dumps(identity | {"outcome": vars(outcome)}, indent=1))
            (folder / JOB).replace(folder / FINISHED)
            put_names_on_disk(folder)
            _clear(plan, folder)
        return outcome


def _begin(plan: JobPlan, journal: Journal, folder: Path, identity: Mapping[str, Any]) -> Journal:
    """A new journal, with what has to lie beside it."""
    journal.close()
    with naming(journal.path):
        journal.path.unlink()
    if plan.images is not None:
        with replacing(folder / IMAGES) as draft:
            draft.write_bytes(_spooled(plan.images))
    if isinstance(plan.table, ChosenRows):
        (folder / WRITTEN).unlink(missing_ok=True)
        with replacing(folder / CHOSEN) as draft:
            draft.write_bytes(plan.table.chosen.bits)
    begin(folder, identity)
    return Journal(journal.path, plan.start)


def _sidecar_writer(plan: JobPlan, journal: Journal) -> SidecarWriter | None:
    options, table = plan.options, plan.table
    if options.sidecars is None or not isinstance(table, ChosenRows):
        return None
    folder = journal.path.parent
    if (folder / CHOSEN).read_bytes() != table.chosen.bits:
        raise OpenBlipError(f"another command wrote beside {options.source} meanwhile: give the command again")
    return SidecarWriter(options.sidecars, options.verb, table, journal, folder / WRITTEN)


def _clear(plan: JobPlan, folder: Path) -> None:
    plan.chunks().store.clear()
    clear(folder, *BESIDE)


def compute_here(plan: JobPlan, journal: Journal, supervisor: Supervisor, progress: Progress) -> None:
    """Do the rows that were never tried, and that no other machine has done, in a process of this machine."""
    chunks = plan.chunks()
    done = sorted(chunks.done())
    progress(len(journal), plan.total)
    while True:
        chunks.move_into(journal, plan.blocks(journal.next))
        if journal.next >= plan.stop:
            return
        stop = next((start for start in done if start > journal.next), plan.stop)
        base = replace(plan.work(journal.path, journal.next), stop=stop)

        def write(records: list[Record], base: Work = base) -> Work:
            journal.add(records)
            progress(len(journal), plan.total)
            return replace(base, start=journal.next)

        supervisor.work_until_done(base, write)


def _retry(plan: JobPlan, journal: Journal, supervisor: Supervisor, progress: Progress) -> None:
    if plan.options.retry_errors and journal.retry is None and journal.errors:
        journal.begin_retry()
    if not journal.retry:
        return
    rest = journal.retry
    progress(0, len(rest))
    base = replace(plan.work(journal.path, plan.start), again=tuple(rest))

    def write(records: list[Record]) -> Work:
        journal.add(records)
        left = tuple(journal.retry or ())
        progress(len(rest) - len(left), len(rest))
        return replace(base, again=left)

    supervisor.work_until_done(base, write)


def _write(plan: JobPlan, journal: Journal) -> int:
    """Write the output; the number of rows whose image an earlier row had."""
    options, copies, writer = plan.options, 0, writer_of(plan.options.output)

    def rows() -> Iterator[tuple[Row, Mapping[str, Any]]]:
        nonlocal copies
        records = journal.records()
        numbers = range(plan.start, plan.stop)
        table_rows = plan.table.rows(plan.start, packed=writer.keeps_images)
        for number, row, record in zip(numbers, table_rows, records, strict=False):
            copies += record["row"] != number
            if "error" in record:
                yield row, {ERROR: record["error"]}
            else:
                yield row, options.verb.finish(record["result"], row.values, plan.table.name_of(row))

    new: dict[str, ColumnType] = {**options.verb.columns, ERROR: "string"}
    with replacing(options.output) as draft:
        writer.write(plan.table, plan.scan.columns, new, rows(), draft)
    return copies


def _identity(options: JobOptions, scan: Scan) -> dict[str, Any]:
    return identity_of(dict(options.settings) | {"the input": scan.digest}, scan.rows)


def _scan_of(images: Sequence[str]) -> Scan:
    return Scan(len(images), {IMAGE: "string"}, hashlib.sha256(_spooled(images)).hexdigest())


def _spooled(images: Sequence[str]) -> bytes:
    # Null characters, for a name may hold a line break; one at least, as it is what tells such lists apart.
    return b"".join(os.fsencode(image) + b"\0" for image in images)
