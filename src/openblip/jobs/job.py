"""A job: from an input to an output file, over any number of interruptions.

Beside OUT lies a folder OUT.openblip while the job is not complete: `job.json` says what job it is, `rows.jsonl` what
is done (see `journal`), `chunks` has what is done out of order (see `chunks`), `images` lists the images of a folder
or a pattern. OUT itself appears when all rows are done. The folder stays while rows have errors, so that they can be
tried again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from openblip.errors import OpenBlipError
from openblip.jobs.chosen_rows import ChosenRows
from openblip.jobs.folder import (
    FINISHED,
    JOB,
    ROWS,
    begin,
    check_same,
    clear,
    folder_of,
    held_for,
    read_identity,
)
from openblip.jobs.journal import Journal, Record
from openblip.jobs.object_storage import StoredFile
from openblip.jobs.output import ERROR, writer_of
from openblip.jobs.plan import IMAGES, JobPlan, identity_now, spooled
from openblip.jobs.rows import ColumnType, Row
from openblip.jobs.sidecars import CHOSEN, WRITTEN, SidecarWriter
from openblip.jobs.supervisor import Supervisor
from openblip.jobs.worker import Work
from openblip.saving import naming, put_names_on_disk, replacing, write_text

BESIDE = (IMAGES, CHOSEN, WRITTEN)

Progress = Callable[[int, int], None]


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
    options, stored = plan.options, plan.options.stored
    folder = folder_of(options.output)
    if not plan.total and not folder.exists():
        return Outcome(0, 0, 0, plan.skipped)
    with held_for(folder, options.output):
        identity = identity_now(options, plan.scan)
        if (folder / FINISHED).exists():  # killed while it cleared up
            check_same(folder / FINISHED, options.output, identity)
            outcome = Outcome(**read_identity(folder / FINISHED)["outcome"])
            _clear(plan, folder)
            return outcome
        if stored is not None:
            stored.take_over(folder)
        journal = Journal(folder / ROWS, plan.start)
        chunks = plan.chunks()
        try:
            if (len(journal) or chunks.store.names()) and (folder / JOB).exists():
                check_same(folder / JOB, options.output, identity, options.shown_folder)
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
            if stored is None:  # all is in the journal
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
    stored = plan.options.stored
    journal.close()
    with naming(journal.path):
        journal.path.unlink()
    if plan.images is not None:
        with replacing(folder / IMAGES) as draft:
            draft.write_bytes(spooled(plan.images))
        if stored is not None:
            stored.store.write(plan.table.path.name, spooled(plan.images))
    if isinstance(plan.table, ChosenRows):
        (folder / WRITTEN).unlink(missing_ok=True)
        with replacing(folder / CHOSEN) as draft:
            draft.write_bytes(plan.table.chosen.bits)
    begin(folder, identity)
    if stored is not None:
        stored.store.write(JOB, (folder / JOB).read_bytes())
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
    if plan.options.stored is not None:
        plan.options.stored.store.clear()
    clear(folder, *BESIDE)
    for file in plan.table.files:
        if isinstance(file, StoredFile):
            file.forget()


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

    def write(draft: Path) -> None:
        writer.write(plan.table, plan.scan.columns, new, rows(), draft)

    new: dict[str, ColumnType] = {**options.verb.columns, ERROR: "string"}
    if options.stored is not None:
        options.stored.publish(write, journal.path.parent)
    else:
        with replacing(options.output) as draft:
            write(draft)
    return copies
