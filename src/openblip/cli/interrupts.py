"""How a signal ends a command: with everything in order and a sentence that says what was kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer

from openblip.cli.report import say

INTERRUPTED = 130
"""The exit code of a program that Ctrl-C ended, as shells report it (128 + SIGINT)."""


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
def stoppable() -> Iterator[None]:
    """Ctrl-C, or a signal, ends a command that goes on where it was with a sentence that says so."""
    try:
        yield
    except (KeyboardInterrupt, Ended) as stopped:
        own = "" if isinstance(stopped, Ended) else str(stopped)
        say(own or "stopped: what was done is kept, and the same command goes on from there")
        raise typer.Exit(getattr(stopped, "code", INTERRUPTED)) from stopped
