"""How commands tell: results on standard output or into a file, problems on standard error."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import typer

from openblip.cli.output import Command, Kept, kept_output, write_all
from openblip.errors import ImageError, OpenBlipError, printable
from openblip.saving import NO_ROOM

SOME_FAILED = 1
STDOUT = "standard output"
LONGEST_LINE = 10_000
NOT_ASCII = re.compile(r"[^\x20-\x7e]")
READER_GONE = 141
"""What shells report of a program that a closed pipe has stopped (128 + SIGPIPE)."""

Source = TypeVar("Source")
Result = TypeVar("Result")


class Report:
    """The lines of one command.

    Attributes:
        as_json: whether results are JSON objects; the command forms its lines accordingly.
        failures: images that could not be used.
        finish: writes the whole file, where it is not what was kept of each batch.
        summary: a line on standard output once the file is there.
    """

    def __init__(self, as_json: bool, file: io.FileIO | None = None, kept: Kept | None = None) -> None:
        self.as_json = as_json
        self.failures = len(kept.failed) if kept is not None else 0
        self._file = file
        self._kept = kept
        self._batch = bytearray()
        self._bad: list[int] = []
        self._at = 0 if kept is None else kept.done
        self._notes: list[dict[str, Any]] = []
        self._lines: bytearray | None = None
        self.finish: Callable[[Path], None] | None = None
        self.summary = ""

    def over(
        self, images: Sequence[Source], work: Callable[[Sequence[Source]], Iterable[Result]], batch_size: int = 1
    ) -> Iterator[tuple[Source, Result]]:
        """The images that are not done yet, each with its result; a batch of them is kept when it was reported.

        Args:
            work: gives a result for each of the images that it gets, in order; not called when there are none.
        """
        rest = images[self._at :]
        if not rest:
            return
        for image, result in zip(rest, work(rest), strict=True):
            yield image, result
            self._at += 1
            if self._at % batch_size == 0:
                self._keep()
        if self._at % batch_size:
            self._keep()

    def line(self, text: str) -> None:
        """A line of text; names and contents in it show themselves and do nothing else to a terminal."""
        self._write(printable(text, LONGEST_LINE, kept="\t"))

    def _write(self, text: str) -> None:
        content = (text + "\n").encode("utf-8", "backslashreplace")
        if self._lines is not None:
            self._lines += content
        elif self._file is not None:
            write_all(self._file, Path(str(self._file.name)), content)
        elif self._kept is not None:
            self.keep(content)
        else:
            print_line(text)

    def record(self, **fields: object) -> None:
        """A line of JSON, with escapes in place of what would do something to a terminal."""
        self._write(NOT_ASCII.sub(_in_json, json.dumps(fields, ensure_ascii=False)))

    def keep(self, content: bytes) -> None:
        """Bytes that are kept with their batch, and are the file unless `finish` or lines after `notes` are."""
        self._batch += content

    def note(self, **fields: object) -> None:
        """What `notes` gives back when all images are done: for lines that need all of them."""
        if self._kept is None:
            self._notes.append(fields)
        else:
            self.keep(json.dumps(fields).encode() + b"\n")

    def notes(self) -> list[dict[str, Any]]:
        """The notes of all images; the lines that come after it are the file."""
        if self._kept is None:
            return self._notes
        lines = self._lines = bytearray()
        self.finish = lambda draft: _write_bytes(draft, bytes(lines))
        return [json.loads(line) for line in self._kept.part.read_bytes().splitlines()]

    def kept_bytes(self) -> bytes:
        """What `keep` got of all images."""
        return bytes(self._batch) if self._kept is None else self._kept.part.read_bytes()

    def failure(self, image: str, error: ImageError) -> None:
        """Tell that one image failed; the command goes on with the others."""
        self.failed(error)
        if self.as_json:
            self.record(image=image, error=error.problem)

    def failed(self, error: ImageError) -> None:
        """As `failure`, on standard error alone."""
        self.failures += 1
        self._bad.append(self._at)
        complain(error)

    @property
    def bad(self) -> list[int]:
        """Numbers of the images that could not be used, once all are done."""
        return self._bad if self._kept is None else self._kept.failed

    def _keep(self) -> None:
        if self._kept is not None:
            self._kept.add(bytes(self._batch), self._at, self._bad)
            self._batch, self._bad = bytearray(), []


def _in_json(found: re.Match[str]) -> str:
    """A character, or its escape in JSON where it is a control character, a mark of direction, or no sign at all."""
    return found[0] if printable(found[0]) == found[0] else json.dumps(found[0])[1:-1]


@contextmanager
def open_report(as_json: bool, path: Path | None = None, command: Command | None = None) -> Iterator[Report]:
    """A report to standard output, or to a file that appears when it is complete.

    What is written to a file is kept when the command is stopped, and the same command goes on from there. Leaves the
    program with exit code 1 at the end when an image failed.

    Args:
        command: what decides the content of the file at `path`.

    Raises:
        OpenBlipError: `path` is a folder, or lies in none; for the rest see `kept_output`.
    """
    if path is None or command is None:
        report = Report(as_json)
        yield report
    else:
        path = path.expanduser().resolve()  # through links: what they point to is replaced, not they
        if path.is_dir() or not path.parent.is_dir():
            raise OpenBlipError(f"{path} cannot be written: give --output the name of a file in an existing folder")
        if path.exists() and not path.is_file():
            with path.open("wb", buffering=0) as file:  # a pipe or /dev/null is written to, never replaced
                report = Report(as_json, file)
                yield report
                if report.finish is not None:
                    report.finish(path)
        else:
            with kept_output(path, command, say) as kept:
                report = Report(as_json, kept=kept)
                yield report
                kept.finish(report.finish)
    if report.summary:
        print_line(report.summary)
    if report.failures:
        raise typer.Exit(SOME_FAILED)


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def print_line(text: str, end: str = "\n") -> None:
    """A line on standard output, at once; a reader that is gone (`| head`) ends the program quietly."""
    try:
        print(printable(text, len(text) * 10, kept="\t\n"), end=end, flush=True)
    except OSError as error:
        # What is still buffered would fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # Windows reports a closed pipe as an invalid argument.
        if error.errno != errno.EPIPE and not (os.name == "nt" and error.errno == errno.EINVAL):
            raise OSError(error.errno, error.strerror, STDOUT) from error
        raise typer.Exit(READER_GONE) from error


def print_recipe(recipe: object) -> None:
    """A recipe with all its keys, as YAML that can be run."""
    from openblip.recipes import write_recipe

    print_line(write_recipe(recipe).rstrip())


def print_pieces(pieces: Iterable[str]) -> None:
    """A line whose pieces are shown as they come."""
    for piece in pieces:
        print_line(piece, end="")
    print_line("")


def complain(error: Exception) -> None:
    """One sentence on standard error."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        # All that is written has a name but standard output.
        place = os.fsdecode(error.filename) if error.filename else STDOUT if error.errno in NO_ROOM else ""
        text = f"{place}: {error.strerror}".removeprefix(": ")
        if error.errno == errno.EIO:
            text += ": check the disk, and give the command again"
        elif error.errno in NO_ROOM:
            text = f"{place} cannot be written ({error.strerror}): make room, and give the command again"
    say(f"error: {text}")


def say(text: str) -> None:
    """A line on standard error, which may be closed, or on a disk that is full."""
    with suppress(OSError):
        print(printable(text, LONGEST_LINE, kept="\t"), file=sys.stderr, flush=True)


def attempt(images: Iterable[Source], work: Callable[[Source], Result]) -> Iterator[Result | ImageError]:
    """What `work` makes of each image, or what is wrong with it."""
    for image in images:
        try:
            result: Result | ImageError = work(image)
        except ImageError as error:
            result = error
        yield result


def with_progress(results: Iterable[Result], total: int, *, to_file: bool = False) -> Iterator[Result]:
    """Pass results on, with a progress bar on standard error while they come.

    There is none where standard error is no terminal, nor where the results themselves scroll over it.
    """
    if not sys.stderr.isatty() or (sys.stdout.isatty() and not to_file):
        yield from results
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    # Redirecting standard output, as is rich's habit, would print the results on standard error.
    with Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        redirect_stdout=False,
        transient=True,
    ) as progress:
        yield from progress.track(results, total=total)
