"""Bars for what is downloaded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from openblip.errors import printable

if TYPE_CHECKING:
    from rich.progress import TaskID


@contextmanager
def download_progress() -> Iterator[Callable[[str, int, int | None], None] | None]:
    """Something to tell a download's progress to, shown as bars; None where standard error is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bars = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), redirect_stdout=False)
    tasks: dict[str, TaskID] = {}

    def show(name: str, done: int, total: int | None) -> None:
        # The hub draws bars of its own: ours are on the screen only while one of our files comes.
        bars.start()
        if name not in tasks:
            tasks[name] = bars.add_task(printable(name, 80, 40), total=total)
        bars.update(tasks[name], completed=done, total=total)
        if done == total:
            bars.stop()
            bars.remove_task(tasks.pop(name))

    try:
        yield show
    finally:
        bars.stop()
