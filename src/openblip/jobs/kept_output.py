"""An output of a command that works in its own process: each batch is kept, and the same command goes on behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openblip.jobs.folder import FINISHED, JOB, ROWS, begin, check_same, clear, folder_of, held_for, identity_of
from openblip.jobs.journal import Journal, Record, count_done
from openblip.saving import replacing


@dataclass(frozen=True)
class Command:
    """What decides the content of an output.

    Attributes:
        settings: options by the names that the user has for them, with their values as JSON.
        total: images in all; None: not known before the last one.
    """

    settings: Mapping[str, Any]
    total: int | None


class KeptOutput:
    """What is done of an output so far.

    Attributes:
        folder: where it is kept.
    """

    def __init__(self, path: Path, journal: Journal) -> None:
        self.path = path
        self.folder = folder_of(path)
        self._journal = journal

    @property
    def done(self) -> int:
        """Images, those that could not be used among them."""
        return len(self._journal)

    @property
    def failed(self) -> list[int]:
        """Numbers of the images that could not be used."""
        return sorted(self._journal.errors)

    def add(self, records: Sequence[Record]) -> None:
        """Keep a batch. Raises OSError, with the name of the file, when it cannot be written."""
        self._journal.add(records)

    def records(self) -> Iterator[Record]:
        """The records of all images that are done, in order."""
        return self._journal.records()

    def finish(self, write: Callable[[Path], None]) -> None:
        """Let what `write` writes to a draft take the output's place; nothing is kept any more."""
        with replacing(self.path) as draft:
            write(draft)
        self.forget()

    def forget(self) -> None:
        """The output is there: nothing is kept any more."""
        clear(self.folder)


@contextmanager
def kept_output(path: Path, command: Command, say: Callable[[str], None]) -> Iterator[KeptOutput]:
    """What is written to `path`, an ordinary file; whatever ends the command, what was kept stays.

    Args:
        say: tells the user in a sentence what is kept, and how to go on.

    Raises:
        OpenBlipError: another command is writing there, or what is kept there is of another command.
    """
    folder = folder_of(path)
    identity = identity_of(command.settings, command.total or 0)
    of_all = "" if command.total is None else f" of {command.total:,}"
    with held_for(folder, path):
        if not (folder / JOB).exists() or (folder / FINISHED).exists():  # of a command that was clearing up
            clear(folder)
        journal = Journal(folder / ROWS)
        try:
            if len(journal):
                check_same(folder / JOB, path, identity)
            else:
                begin(folder, identity)
            kept = KeptOutput(path, journal)
            if kept.done:
                bad = f", {len(kept.failed):,} of which could not be read" if kept.failed else ""
                say(f"going on in {folder}: {kept.done:,}{of_all} images are done{bad}")
            try:
                yield kept
            except BaseException:
                done = _on_disk(folder)
                if done:
                    say(f"{done:,}{of_all} images are done and kept in {folder}: the same command goes on from there")
                raise
        finally:
            journal.close()
            if not _on_disk(folder):  # nothing to go on with
                with suppress(OSError):
                    clear(folder)


def _on_disk(folder: Path) -> int:
    """Images that are done; Ctrl-C may come when a batch is written, but not yet counted."""
    try:
        return count_done(folder / ROWS, 0)
    except OSError:
        return 0
