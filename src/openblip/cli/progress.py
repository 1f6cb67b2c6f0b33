"""How far a long command is, on standard error: a bar on a terminal, else a line a minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY_SECONDS = 60.0
"""Between lines where standard error is no terminal."""


@contextmanager
def show_progress(unit: str, *, beside_results: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A function to be called with (done, in all), which shows a bar, speed and time left, or a line a minute.

    Args:
        beside_results: results are printed meanwhile; on a terminal they are progress enough.
    """
    if beside_results and sys.stdout.isatty():
        yield lambda done, total: None
        return
    if not sys.stderr.isatty():
        yield ProgressLines(unit)
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


class ProgressLines:
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
