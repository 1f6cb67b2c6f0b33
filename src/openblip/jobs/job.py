"""A job: from an input to an output file, over any number of interruptions.

Beside OUT lies a folder OUT.openblip while the job is not complete: `job.json` says what job it is, `rows.jsonl` what
is done (see `journal`), `images` lists the images of a folder or a pattern. OUT itself appears when all rows are done.
The folder stays while rows have errors, so that they can be tried again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from openblip.data.sources.cells import shown_columns
from openblip.data.sources.records import known_columns
from openblip.errors import OpenBlipError, OptionError
from openblip.jobs.inputs import find_rows
from openblip.jobs.journal import Journal, Record, count_done
from openblip.jobs.output import ERROR, writer_of
from openblip.jobs.rows import IMAGE, ColumnType, Row, Scan, Table
from openblip.jobs.supervisor import Supervisor
from openblip.jobs.text_tables import ListTable
from openblip.jobs.verbs import Verb
from openblip.jobs.worker import Work
from openblip.saving import locked, naming, put_names_on_disk, replacing, write_text

FOLDER = ".openblip"
JOB, FINISHED, ROWS, IMAGES, LOCK, PID = "job.json", "finished.json", "rows.jsonl", "images", "lock", "pid"
FORMAT = 1
FILES = "the files of "
"""Begins the settings that are states of files; None where they were not on this machine yet."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class JobOptions:
    """What a job reads and writes, and how.

    Attributes:
        source: the input as the user names it; listed: standard input's lines, if that is the input.
        settings: what decides the content of the output, by the names that the user has for it, as JSON.
        loading: keywords of `openblip.load`.
        shard: (3, 16) is the third of sixteen parts, each of neighbouring rows.
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
    listed: Sequence[str] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class JobPlan:
    """A job before it starts.

    Attributes:
        start, stop: its rows.
        images: the list of images to be kept with the job; None of a table.
        done: rows that an earlier run of the same command did.
    """

    options: JobOptions
    table: Table
    scan: Scan
    images: list[str] | None
    start: int
    stop: int
    done: int

    @property
    def total(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Outcome:
    """What became of a job's rows.

    Attributes:
        rows: all of them; errors: those with an error; copies: those whose image an earlier row had.
    """

    rows: int
    errors: int
    copies: int


def plan_job(options: JobOptions) -> JobPlan:
    """Read the whole input once, and check everything that can be checked without the model.

    Raises:
        OpenBlipError: the input cannot be read, or does not fit the options; the output is there, or cannot be.
    """
    output = options.output
    writer_of(output)
    if output.is_dir() or not output.parent.is_dir():
        raise OptionError(f"{output} cannot be written: give --output the name of a file in an existing folder")
    folder = folder_of(output)
    spool = folder / IMAGES
    table: Table
    images: list[str] | None
    if options.listed is not None:
        table, images = ListTable(spool, None, IMAGE), list(options.listed)
    else:
        table, images = find_rows(
            options.source,
            spool,
            exclude=options.exclude,
            column=options.image_column,
            data_root=options.data_root,
        )
    if output.exists() and output.resolve() in (file.resolve() for file in table.files):
        raise OptionError(f"{output} is the input itself: give another --output")
    if output.exists() and not any((folder / name).exists() for name in (JOB, FINISHED)):
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
        if name in scan.columns:
            fix = "rename it" if name == ERROR else "give another name with --column, or rename it"
            raise OptionError(f"{options.source} has a column {name!r} already: {fix}")
    total = scan.rows if options.limit is None else min(scan.rows, options.limit)
    part, parts = options.shard
    start, stop = total * (part - 1) // parts, total * part // parts
    done = count_done(folder / ROWS, start) if (folder / JOB).exists() and (folder / ROWS).exists() else 0
    if done:
        _check_same(folder / JOB, output, _identity(options, scan))
    return JobPlan(options, table, scan, images, start, stop, done)


def run_job(plan: JobPlan, progress: Progress = lambda done, total: None) -> Outcome:
    """Do the rows that are not done, and write the output.

    Raises:
        OpenBlipError: another process is at it; the model cannot be loaded, or lacks the ability.
        OSError: something cannot be written. What was done is kept.
    """
    options = plan.options
    with _held(options.output) as folder:
        identity = _identity(options, plan.scan)
        if (folder / FINISHED).exists():  # killed while it cleared up
            _check_same(folder / FINISHED, options.output, identity)
            outcome = Outcome(**_read(folder / FINISHED)["outcome"])
            _remove(folder)
            return outcome
        journal = Journal(folder / ROWS, plan.start)
        try:
            if len(journal) and (folder / JOB).exists():
                _check_same(folder / JOB, options.output, identity)
            else:
                journal = _begin(plan, journal, folder, identity)
            _compute(plan, journal, progress)
            copies = _write(plan, journal)
        finally:
            journal.close()
            if not len(journal):  # nothing to go on with
                _remove(folder)
        outcome = Outcome(len(journal), len(journal.errors), copies)
        if not journal.errors:
            write_text(folder / JOB, json.dumps(identity | {"outcome": vars(outcome)}, indent=1))
            (folder / JOB).replace(folder / FINISHED)
            put_names_on_disk(folder)
            _remove(folder)
        return outcome


def _begin(plan: JobPlan, journal: Journal, folder: Path, identity: Mapping[str, Any]) -> Journal:
    """A new journal, with what has to lie beside it."""
    journal.close()
    with naming(journal.path):
        journal.path.unlink()
    if plan.images is not None:
        with replacing(folder / IMAGES) as draft:
            draft.write_bytes(_spooled(plan.images))
    write_text(folder / JOB, json.dumps(identity, indent=1))
    put_names_on_disk(folder.parent)
    return Journal(journal.path, plan.start)


def folder_of(output: Path) -> Path:
    """Where a job keeps what it has done."""
    return output.with_name(output.name + FOLDER)


def _compute(plan: JobPlan, journal: Journal, progress: Progress) -> None:
    with Supervisor() as supervisor:
        if journal.next < plan.stop:
            _first_try(plan, journal, supervisor, progress)
        if plan.options.retry_errors and journal.retry is None and journal.errors:
            journal.begin_retry()
        if journal.retry:
            _second_try(plan, journal, supervisor, progress)


def _first_try(plan: JobPlan, journal: Journal, supervisor: Supervisor, progress: Progress) -> None:
    progress(len(journal), plan.total)
    base = _work(plan, journal)

    def write(records: list[Record]) -> Work:
        journal.add(records)
        progress(len(journal), plan.total)
        return replace(base, start=journal.next)

    supervisor.work_until_done(base, write)


def _second_try(plan: JobPlan, journal: Journal, supervisor: Supervisor, progress: Progress) -> None:
    rest = journal.retry or []
    progress(0, len(rest))
    base = replace(_work(plan, journal), start=plan.start, again=tuple(rest))

    def write(records: list[Record]) -> Work:
        journal.add(records)
        left = tuple(journal.retry or ())
        progress(len(rest) - len(left), len(rest))
        return replace(base, again=left)

    supervisor.work_until_done(base, write)


def _work(plan: JobPlan, journal: Journal) -> Work:
    options = plan.options
    return Work(
        plan.table,
        options.verb,
        dict(options.loading),
        options.batch_size,
        journal.path,
        range(plan.start, plan.stop),
        journal.next,
        plan.stop,
    )


def _write(plan: JobPlan, journal: Journal) -> int:
    """Write the output; the number of rows whose image an earlier row had."""
    options, copies = plan.options, 0

    def rows() -> Iterator[tuple[Row, Mapping[str, Any]]]:
        nonlocal copies
        records = journal.records()
        numbers = range(plan.start, plan.stop)
        for number, row, record in zip(numbers, plan.table.rows(plan.start), records, strict=False):
            copies += record["row"] != number
            if "error" in record:
                yield row, {ERROR: record["error"]}
            else:
                yield row, options.verb.finish(record["result"], row.values, plan.table.name_of(row))

    new: dict[str, ColumnType] = {**options.verb.columns, ERROR: "string"}
    with replacing(options.output) as draft:
        writer_of(options.output)(plan.table, plan.scan.columns, new, rows(), draft)
    return copies


def _identity(options: JobOptions, scan: Scan) -> dict[str, Any]:
    settings = dict(options.settings) | {"the input": scan.digest}
    return json.loads(json.dumps({"format": FORMAT, "rows": scan.rows, "settings": settings}))  # type: ignore[no-any-return]


def _check_same(path: Path, output: Path, now: Mapping[str, Any]) -> None:
    """Raises OpenBlipError, which names what differs, if the job that was begun is another one."""
    then = _read(path)
    if then.get("format") != FORMAT:
        raise OpenBlipError(f"{path} is not of this version: delete the folder {path.parent} to begin anew")
    changed = changes(then["settings"], now["settings"])
    if then["rows"] != now["rows"]:
        changed.append(f"it had {then['rows']:,} rows, now {now['rows']:,}")
    if changed:
        raise OpenBlipError(
            f"{path.parent} holds the work of another command ({'; '.join(changed)}): give that command to go on, "
            f"delete this folder to begin anew, or give another --output than {output.name}"
        )


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between the settings of two commands, in the user's words."""
    found = []
    for name in dict.fromkeys([*now, *then]):
        before, after = then.get(name), now.get(name)
        if before == after or (name.startswith(FILES) and None in (before, after)):
            continue
        shown = name.startswith("-") and all(len(json.dumps(value)) < 80 for value in (before, after))
        was, is_now = ("left out" if value is None else str(value) for value in (before, after))
        found.append(f"{name} was {was}, now {is_now}" if shown else f"{name} changed")
    return found


@contextmanager
def _held(output: Path) -> Iterator[Path]:
    """The folder of a job, which no other process has. Raises OpenBlipError, which names the process that has it."""
    folder = folder_of(output)
    with naming(folder):
        folder.mkdir(exist_ok=True)
    pid = ""
    with suppress(OSError):
        pid = (folder / PID).read_text(encoding="utf-8").strip()
    whose = f" (process {pid})" if pid else ""
    refusal = f"another command is writing to {output}{whose}: wait for it, or give another --output"
    try:
        with locked(folder / LOCK, refusal):
            write_text(folder / PID, str(os.getpid()))
            try:
                yield folder
            finally:
                with suppress(OSError):
                    (folder / PID).unlink()
    finally:
        with suppress(OSError):
            folder.rmdir()  # unless something is kept in it


def _remove(folder: Path) -> None:
    """Clear up after a complete job; what says so goes last."""
    for name in (JOB, ROWS, IMAGES, FINISHED):
        (folder / name).unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise OpenBlipError(f"{path} cannot be read ({error}): delete the folder {path.parent} to begin anew") from None


def _scan_of(images: Sequence[str]) -> Scan:
    return Scan(len(images), {IMAGE: "string"}, hashlib.sha256(_spooled(images)).hexdigest())


def _spooled(images: Sequence[str]) -> bytes:
    # Null characters, for a name may hold a line break; one at least, as it is what tells such lists apart.
    return b"".join(os.fsencode(image) + b"\0" for image in images)
