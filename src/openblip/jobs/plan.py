"""A job before it starts: what it reads and writes, and whether it can."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from openblip.data.sources.cells import shown_columns
from openblip.data.sources.records import known_columns
from openblip.errors import OptionError
from openblip.jobs.chosen_rows import ChosenRows, RowSet
from openblip.jobs.chunks import Block, ChunkFiles, blocks_of
from openblip.jobs.folder import FINISHED, JOB, ROWS, check_same, folder_of, identity_of
from openblip.jobs.inputs import find_rows
from openblip.jobs.journal import count_done
from openblip.jobs.object_storage import StoredFile, StoredOutput
from openblip.jobs.output import ERROR, writer_of
from openblip.jobs.rows import IMAGE, Row, Scan, Table
from openblip.jobs.sidecars import CHOSEN, Sidecars
from openblip.jobs.storage import FolderStore
from openblip.jobs.supervisor import Supervisor
from openblip.jobs.text_tables import ListTable
from openblip.jobs.verbs import Verb
from openblip.jobs.worker import Work, block_rows

CHUNKS, IMAGES = "chunks", "images"
"""In the folder: blocks that were done out of order, and the list of the images of a folder or a pattern."""


@dataclass(frozen=True)
class JobOptions:
    """What a job reads and writes, and how.

    Attributes:
        source: the input as the user names it; listed: standard input's lines, if that is the input.
        settings: what decides the content of the output, by the names that the user has for it, as JSON.
        loading: keywords of `openblip.load`.
        shard: (3, 16) is the third of sixteen parts, each of neighbouring rows.
        sidecars: write files beside the photos; `output` names the folder of the job alone.
        stored: the output is in object storage; `output` names the folder of the job alone.
    """

    source: str
    output: Path
    verb: Verb
    settings: Mapping[str, Any]
    loading: Mapping[str, Any]
    batch_size: int = 8
    exclude: Sequence[str] = ()
    image_column: str | None = None
    data_root: Path | str | None = None
    limit: int | None = None
    shard: tuple[int, int] = (1, 1)
    retry_errors: bool = False
    sidecars: Sidecars | None = None
    stored: StoredOutput | None = None
    listed: Sequence[str] | None = field(default=None, repr=False)

    @property
    def shown_output(self) -> str:
        return str(self.output) if self.stored is None else self.stored.address

    @property
    def shown_folder(self) -> str:
        """Where what is done is kept."""
        folder = str(folder_of(self.output))
        return folder if self.stored is None else f"{self.stored.store.folder} (and {folder})"


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
        if self.options.stored is not None:
            return ChunkFiles(self.options.stored.chunks)
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


def plan_job(options: JobOptions, supervisor: Supervisor | None = None) -> JobPlan:
    """Read the whole input once, and check everything that can be checked without the model.

    Args:
        supervisor: begins to load the model meanwhile, for both may take seconds.

    Raises:
        OpenBlipError: the input cannot be read, or does not fit the options; the output is there, or cannot be.
    """
    output, stored = options.output, options.stored
    if options.sidecars is None:
        writer_of(output)
    else:
        options.sidecars.check(options.verb)
    if (output.is_dir() and options.sidecars is None) or not output.parent.is_dir():
        raise OptionError(f"{output} cannot be written: give --output the name of a file in an existing folder")
    folder = folder_of(output)
    spool = folder / IMAGES
    is_new = not any((folder / name).exists() for name in (JOB, FINISHED)) and (stored is None or not stored.is_begun())
    is_there = output.exists() if stored is None else stored.exists()
    # Where a text may be beside each photo already, there may be nothing to do.
    if supervisor is not None and options.sidecars is None and not (is_new and is_there):
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
    if is_there and options.sidecars is None:
        if stored is None and output.resolve() in (file.resolve() for file in table.files):
            raise OptionError(f"{output} is the input itself: give another --output")
        if is_new:
            raise OptionError(f"{options.shown_output} is there already: give another --output, or delete it")
    scan = table.scan() if images is None else _scan_of(images)
    if images is not None and stored is not None:  # other machines have to read it
        table = ListTable((StoredFile(f"{stored.store.folder}/{IMAGES}-{scan.digest[:16]}", ""),), None, IMAGE)
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
            check_same(folder / JOB, output, identity_now(options, scan), options.shown_folder)
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
        check_same(folder / JOB, options.output, identity_now(options, scan))
        chosen = RowSet((folder / CHOSEN).read_bytes())
    else:
        rows = table.rows(packed=True) if images is None else (Row(image, {IMAGE: image}) for image in images)
        chosen = sidecars.choose(table, rows, wanted, options.verb)
    some = ChosenRows(table.files, table.folder, table.column, table, chosen)
    return JobPlan(options, some, scan, images, 0, len(chosen), done, len(wanted) - len(chosen))


def identity_now(options: JobOptions, scan: Scan) -> dict[str, Any]:
    """What decides the content of the output."""
    place = {} if options.stored is None else {"--output": options.stored.address}
    return identity_of(dict(options.settings) | place | {"the input": scan.digest}, scan.rows)


def _scan_of(images: Sequence[str]) -> Scan:
    return Scan(len(images), {IMAGE: "string"}, hashlib.sha256(spooled(images)).hexdigest())


def spooled(images: Sequence[str]) -> bytes:
    """The list of images as a file."""
    # Null characters, for a name may hold a line break; one at least, as it is what tells such lists apart.
    return b"".join(os.fsencode(image) + b"\0" for image in images)
