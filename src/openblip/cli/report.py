"""How commands tell: results on standard output or into a file, problems on standard error."""

from __future__ import annotations

import base64
import errno
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import typer

from openblip.errors import ImageError, OpenBlipError, printable
from openblip.jobs.kept_output import Command, KeptOutput, kept_output
from openblip.saving import NO_ROOM, naming

SOME_FAILED, ALL_FAILED = 1, 2
"""Exit codes: some images of an output have errors; all have, so that it holds no result."""
STDOUT = "standard output"
LONGEST_LINE = 10_000
NOT_ASCII = re.compile(r"[^\n\x20-\x7e]")
READER_GONE = 141
"""What shells report of a program that a closed pipe has stopped (128 + SIGPIPE)."""

Source = TypeVar("Source")
Result = TypeVar("Result")


class Report:
    """The lines of one command.

    Attributes:
        as_json: whether results are JSON objects; the command forms its lines accordingly.
        failures: images that could not be used.
        finish: writes the whole file, where it is not the lines of all images.
        summary: a line on standard output once the file is there.
    """

    def __init__(self, as_json: bool, file: io.FileIO | None = None, kept: KeptOutput | None = None) -> None:
        self.as_json = as_json
        self.failures = len(kept.failed) if kept is not None else 0
        self._file = file
        self._kept = kept
        self._image = _OfImage()
        self._batch: list[dict[str, Any]] = []
        self._bad: list[int] = []
        self._at = 0 if kept is None else kept.done
        self._notes: list[dict[str, Any]] = []
        self._data = bytearray()
        self._lines: list[str] | None = None
        self.finish: Callable[[Path], None] = self._write_lines
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
            if self._kept is not None:
                self._batch.append(self._image.record(self._at))
                self._image = _OfImage()
            self._at += 1
            if self._at % batch_size == 0:
                self._keep()
        self._keep()

    def line(self, text: str) -> None:
        """A line of text; names and contents in it show themselves and do nothing else to a terminal."""
        self._write(printable(text, LONGEST_LINE, kept="\t"))

    def _write(self, text: str) -> None:
        if self._lines is not None:
            self._lines.append(text)
        elif self._file is not None:
            _write_all(self._file, Path(str(self._file.name)), _encoded(text))
        elif self._kept is not None:
            self._image.lines.append(text)
        else:
            print_line(text)

    def record(self, **fields: object) -> None:
        """A line of JSON, with escapes in place of what would do something to a terminal."""
        self._write(shown_json(json.dumps(fields, ensure_ascii=False)))

    def keep(self, content: bytes) -> None:
        """Bytes of an image for `kept_bytes`, from which `finish` makes the file."""
        if self._kept is None:
            self._data += content
        else:
            self._image.data += content

    def note(self, **fields: object) -> None:
        """What `notes` gives back when all images are done: for lines that need all of them."""
        (self._notes if self._kept is None else self._image.notes).append(fields)

    def notes(self) -> list[dict[str, Any]]:
        """The notes of all images; the lines that come after it are the file."""
        if self._kept is None:
            return self._notes
        self._lines = []
        return [note for record in self._kept.records() for note in record.get("notes", ())]

    def kept_bytes(self) -> bytes:
        """What `keep` got of all images."""
        if self._kept is None:
            return bytes(self._data)
        return b"".join(base64.b64decode(record.get("data", "")) for record in self._kept.records())

    def failure(self, image: str, error: ImageError) -> None:
        """Tell that one image failed; the command goes on with the others."""
        self.failed(error)
        if self.as_json:
            self.record(image=image, error=error.problem)

    def failed(self, error: ImageError) -> None:
        """As `failure`, on standard error alone."""
        self.failures += 1
        self._bad.append(self._at)
        self._image.error = error.problem
        complain(error)

    @property
    def bad(self) -> list[int]:
        """Numbers of the images that could not be used, once all are done."""
        return self._bad if self._kept is None else self._kept.failed

    def _keep(self) -> None:
        if self._kept is not None and self._batch:
            self._kept.add(self._batch)
            self._batch = []

    def _write_lines(self, path: Path) -> None:
        """The lines after `notes`, or else those of all images, as a file."""
        if self._lines is not None:
            lines: Iterable[str] = self._lines
        elif self._kept is not None:
            lines = (line for record in self._kept.records() for line in record.get("lines", ()))
        else:
            return  # they were written as they came
        with path.open("wb") as file:
            file.writelines(map(_encoded, lines))


@dataclass
class _OfImage:
    """What a command makes of one image."""

    lines: list[str] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)
    error: str | None = None

    def record(self, row: int) -> dict[str, Any]:
        found: dict[str, Any] = {"row": row, "lines": self.lines}
        if self.notes:
            found["notes"] = self.notes
        if self.data:
            found["data"] = base64.b64encode(self.data).decode()
        return found if self.error is None else found | {"error": self.error}


def _encoded(line: str) -> bytes:
    return (line + "\n").encode("utf-8", "backslashreplace")


def _write_all(file: io.RawIOBase, path: Path, content: bytes) -> None:
    """Write to a file without a buffer. Raises OSError, with the file's name, when it takes no more."""
    rest = memoryview(content)
    with naming(path):
        while rest:
            rest = rest[file.write(rest) or 0 :]


def shown_json(text: str) -> str:
    """JSON with escapes in place of what would do something to a terminal; line breaks between values stay."""
    return NOT_ASCII.sub(_in_json, text)


def _in_json(found: re.Match[str]) -> str:
    """A character, or its escape in JSON where it is a control character, a mark of direction, or no sign at all."""
    return found[0] if printable(found[0]) == found[0] else json.dumps(found[0])[1:-1]


@contextmanager
def open_report(as_json: bool, path: Path | None = None, command: Command | None = None) -> Iterator[Report]:
    """A report to standard output, or to a file that appears when it is complete.

    What is written to a file is kept when the command is stopped, and the same command goes on from there. Leaves the
    program at the end with exit code 1 when an image failed, with 2 when a file was to be written and all failed.

    Args:
        command: what decides the content of the file at `path`.

    Raises:
        OpenBlipError: `path` is a folder, or lies in none; for the rest see `kept_output`.
    """
    total = None if path is None or command is None else command.total
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
                report.finish(path)
        else:
            with kept_output(path, command, say) as kept:
                report = Report(as_json, kept=kept)
                yield report
                kept.finish(report.finish)
    if report.summary:
        print_line(report.summary)
    if report.failures:
        raise typer.Exit(failure_code(report.failures, total))


def failure_code(failures: int, total: int | None) -> int:
    """The exit code where images failed.

    Args:
        total: images of an output file; None if there is no file.
    """
    return ALL_FAILED if failures == total else SOME_FAILED


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
