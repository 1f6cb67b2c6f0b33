"""A report that is written to a file: what is done of its pages is kept, and the same command goes on behind it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from openblip.analysis.pages import PageToRead
from openblip.analysis.question_sets import QuestionSet
from openblip.analysis.reports import Record
from openblip.errors import OpenBlipError
from openblip.jobs.kept_output import Command, KeptOutput, kept_output
from openblip.saving import naming

Find: TypeAlias = "Callable[[int], Iterable[Record]]"
"""The pages of a plan from one on."""


def command_of(settings: Mapping[str, Any], asked: QuestionSet, plan: Sequence[PageToRead]) -> Command:
    """What decides the content of a report: settings, questions, and the files by name, size and time."""
    digest = hashlib.sha256()
    for document in {id(page.document): page.document for page in plan}.values():
        state: object = None
        if isinstance(document.source, bytes):
            state = hashlib.sha256(document.source).hexdigest()
        elif isinstance(document.source, str) and os.path.exists(document.source):
            about = os.stat(document.source)
            state = about.st_size, about.st_mtime_ns
        digest.update(json.dumps([document.label, state]).encode())
    found = {**settings, "the set of questions": asked.identity(), "the files": digest.hexdigest()}
    return Command(json.loads(json.dumps(found)), len(plan))


def write_to_file(
    output: Path,
    command: Command,
    find: Find,
    write: Callable[[Iterable[Record]], Iterator[str]],
    batch_size: int,
    say: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> int:
    """Write a report, whatever was done of it before.

    Args:
        find: called once, if pages are left to do.
        write: the pieces of a report of pages.
        batch_size: pages that are kept together.
        say, progress: as for `kept_output` and commands.

    Returns:
        Pages with errors.

    Raises:
        OpenBlipError: the place cannot be written, or holds something else; see `kept_output`.
    """
    path = output.expanduser().resolve()  # through links: what they point to is replaced, not they
    if path.is_dir() or not path.parent.is_dir():
        raise OpenBlipError(f"{path} cannot be written: give --output the name of a file in an existing folder")
    if path.exists() and not path.is_file():  # a pipe or /dev/null is written to, never replaced
        failed = 0

        def counted() -> Iterator[Record]:
            nonlocal failed
            for record in find(0):
                failed += "error" in record
                yield record

        _write(path, write(counted()))
        return failed
    with kept_output(path, command, say) as kept:
        _compute(kept, command.total or 0, find, batch_size, progress)
        failed = len(kept.failed)
        kept.finish(lambda draft: _write(draft, write(record["page"] for record in kept.records())))
    return failed


def _compute(kept: KeptOutput, total: int, find: Find, batch_size: int, progress: Callable[[int, int], None]) -> None:
    progress(kept.done, total)
    if kept.done == total:
        return
    batch: list[dict[str, Any]] = []
    for number, page in enumerate(find(kept.done), start=kept.done):
        batch.append({"row": number, "page": page} | ({"error": page["error"]} if "error" in page else {}))
        if (number + 1) % batch_size == 0 or number + 1 == total:
            kept.add(batch)
            batch = []
            progress(kept.done, total)


def _write(path: Path, pieces: Iterable[str]) -> None:
    with naming(path), path.open("wb") as file:
        for piece in pieces:
            file.write(piece.encode("utf-8", "backslashreplace"))  # names of files that are no text
