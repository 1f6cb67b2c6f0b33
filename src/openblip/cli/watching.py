"""How far a long command is, on standard error."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer

from openblip.cli.report import say

EVERY_SECONDS = 60.0
"""Between lines where standard error is no terminal."""
INTERRUPTED = 130
"""What shells report of a program that Ctrl-C has ended (128 + SIGINT)."""


class Ended(SystemExit):
    """A command was asked to end by a signal other than Ctrl-C's.

    Attributes:
        code: what shells report of a program that this signal has ended.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM, and SIGHUP of a terminal that is closed, end a command as Ctrl-C does: with everything in order.

    The second of a kind ends it at once. One that is ignored, as by nohup, stays so.
    """

    def end(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Ended(number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def watch(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A function to be called with (done, in all), which shows a bar, speed and time left, or a line a minute."""
    if not sys.stderr.isatty():
        yield _Lines(unit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Speed(TextColumn):
        def render(self, task: Task) -> Text:
            return Text("" if task.speed is None else f"{task.speed:.1f} {unit}/s")

    columns = (BarColumn(), MofNCompleteColumn(), Speed(""), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=False, transient=True) as bar:
        task = bar.add_task(unit, total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield show


@contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C, or a signal, ends a command that goes on where it was with a sentence that says so."""
    try:
        yield
    except (KeyboardInterrupt, Ended) as stopped:
        own = "" if isinstance(stopped, Ended) else str(stopped)
        say(own or "stopped: what was done is kept, and the same command goes on from there")
        raise typer.Exit(getattr(stopped, "code", INTERRUPTED)) from stopped


class _Lines:
    """A line now and then, for logs."""

    def __init__(self, unit: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.unit = unit
        self._clock = clock
        self._last: tuple[float, int] | None = None

    def __call__(self, done: int, total: int) -> None:
        now = self._clock()
        if self._last is None:
            self._last = now, done
        since, before = self._last
        if now - since < EVERY_SECONDS or done == before:
            return
        speed = (done - before) / (now - since)  # of late: a second pass over the images is slower than the first
        self._last = now, done
        left = (total - done) / speed / 60
        print(
            f"{done} of {total} {self.unit}, {speed:.2f} a second, {left:.0f} minutes left", file=sys.stderr, flush=True
        )
