"""Workers of a job: each is a process of its own, so that an image that kills it costs one row."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, cast

from openblip.errors import OpenBlipError
from openblip.jobs.journal import Record
from openblip.jobs.worker import Work, work

CAREFUL_CHUNKS = 8
"""Chunks for which nothing is read ahead after a worker was killed: its images are among them."""


class Supervisor:
    """A worker that is replaced when it dies; a context that ends it.

    Its model stays loaded from one work to the next.
    """

    def __init__(self) -> None:
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None
        self._is_ready = False

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def work_until_done(
        self, rest: Work, write: Callable[[list[Record]], Work], begin_alone: Callable[[int], None] | None = None
    ) -> None:
        """Do all rows; a worker that is killed, or whose model refuses a chunk, is replaced.

        The first time, the next one does not read ahead, so that it is clear which chunk it is. Then the images of this
        chunk are done alone, and the one that kills its process or is refused is an error.

        Args:
            write: keeps the records of a chunk, and says what is left to do.
            begin_alone: is told the row of each image before it is done alone.

        Raises:
            OpenBlipError: the model cannot be loaded, or refuses all; or workers die without an image being at fault.
        """
        while True:
            alone = None
            for message in self._messages(rest):
                if message[0] == "ready":
                    self._is_ready = True
                elif message[0] == "alone":
                    alone = message[1]
                    if begin_alone is not None:
                        begin_alone(alone)
                elif message[0] == "chunk":
                    rest, alone = replace(write(message[1]), careful=max(0, rest.careful - 1)), None
                elif message[0] == "failed":
                    # A question that is too long, for one, is an error of its row.
                    if not self._is_ready or rest.alone or not isinstance(message[1], OpenBlipError):
                        raise message[1]
                    break
                else:
                    return
            was_ready = self._is_ready
            ended = f"(exit code {self._exit_code()})"
            if not was_ready:
                raise OpenBlipError(
                    f"the process that loads the model ended {ended}: there may not be enough memory; use a smaller "
                    "model, or --dtype int8"
                )
            if alone is not None:
                rest = replace(rest, deadly=rest.deadly | {alone})
            elif rest.alone:
                raise OpenBlipError(
                    f"the process of the model ended again and again {ended}: check the machine's memory, and give the "
                    "command again"
                )
            elif rest.careful:
                rest = replace(rest, alone=True)
            else:
                rest = replace(rest, careful=CAREFUL_CHUNKS)

    def start(self, loading: Mapping[str, Any]) -> None:
        """Begin to load the model, before it is known what there is to do.

        Args:
            loading: keywords of `openblip.load`.
        """
        self._process, self._pipe = _start()
        self._pipe.send(dict(loading))

    def stop(self) -> None:
        if self._process is not None and self._pipe is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
        self._process = self._pipe = None
        self._is_ready = False

    def _messages(self, rest: Work) -> Iterator[tuple[Any, ...]]:
        """What the worker says of a work, until it ends."""
        if self._pipe is None:
            self.start(rest.loading)
        pipe = cast(Connection, self._pipe)
        with suppress(BrokenPipeError, ConnectionResetError):  # what it said at last is still to be read
            pipe.send(rest)
        with suppress(EOFError, BrokenPipeError, ConnectionResetError):
            while True:
                message = pipe.recv()
                yield message
                if rest.waits_after(message[0]):
                    pipe.send("go on")

    def _exit_code(self) -> int | None:
        """How the worker ended; there is none then."""
        process = self._process
        if process is None:
            return None
        process.join()
        code = process.exitcode
        self.stop()
        return code


def _start() -> tuple[BaseProcess, Connection]:
    """A process that works, and the pipe to it."""
    context = multiprocessing.get_context("spawn")
    parent, child = context.Pipe()
    process = context.Process(target=work, args=(child,), name="openblip worker", daemon=True)
    with _sheltered():
        process.start()
    child.close()  # or the end of the process would not end the pipe
    return process, parent


@contextmanager
def _sheltered() -> Iterator[None]:
    """A process that is started meanwhile never gets Ctrl-C, which reaches all processes of a terminal."""
    block = getattr(signal, "pthread_sigmask", None)
    before = None if block is None else block(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        if block is not None:
            block(signal.SIG_SETMASK, before)
