"""Ctrl-C and SIGTERM: a run saves a checkpoint before it ends."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import AbstractContextManager
from types import FrameType, TracebackType
from typing import Any

import torch

from openblip.training.parallel.processes import World

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A run was stopped by a signal, and has saved a checkpoint.

    Attributes:
        code: what a shell reports of a program that this signal has ended.
    """

    def __init__(self, number: int, done: int, total: int) -> None:
        super().__init__(f"stopped after step {done} of {total}, which is saved: the same command goes on from there")
        self.code = 128 + number


class Stop(AbstractContextManager["Stop"]):
    """Records signals instead of ending the program; the second signal of a kind ends it as usual.

    This works in the main thread only; elsewhere, signals have their usual effect.

    Attributes:
        signal: the signal that a process of the run received, once all processes know; 0 before.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._noted = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in list(self._before):
            self._give_back(number)

    def wanted(self, world: World, device: torch.device) -> bool:
        """Whether any process of the run received a signal. Every process has to call this, after the same step."""
        if world.size == 1:
            self.signal = self._noted
            return self.signal != 0
        # Processes receive signals at different steps, but a checkpoint needs all of them at the same step.
        noted = torch.tensor([float(number == self._noted) for number in SIGNALS], device=device)
        found = world.total(noted).tolist()
        self.signal = next((int(number) for number, count in zip(SIGNALS, found, strict=True) if count), 0)
        return self.signal != 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = number
        self._give_back(number)
        # Not through Python's buffered file, which may be in the middle of a line.
        os.write(2, b"stopping after this step; once more stops at once\n")

    def _give_back(self, number: int) -> None:
        handler = self._before.pop(number, None)
        if handler is not None:
            signal.signal(number, handler)
