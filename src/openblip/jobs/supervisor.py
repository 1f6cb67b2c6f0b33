"""Workers of a job: each is a process of its own, so that an image that kills it costs one row."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from openblip.errors import OpenBlipError
from openblip.jobs.journal import Journal
from openblip.jobs.worker import Work, work

CAREFUL_CHUNKS = 8
"""Chunks for which nothing is read ahead after a worker was killed: its images are among them."""


def work_until_done(rest: Work, journal: Journal, chunk_done: Callable[[], Work]) -> None:
    """Run workers until all rows are done; one that is killed, or whose model refuses a chunk, is replaced.

    The first time, the next one does not read ahead, so that it is clear which chunk it is. Then the images of this
    chunk are done alone, and the one that kills its process or is refused is an error.
    """
    while True:
        loaded, alone = False, None
        with _worker(rest) as (receive, exit_code):
            while True:
                try:
                    message = receive()
                except EOFError:
                    break
                if message[0] == "ready":
                    loaded = True
                elif message[0] == "alone":
                    alone = message[1]
                elif message[0] == "chunk":
                    journal.add(message[1])
                    rest, alone = replace(chunk_done(), careful=max(0, rest.careful - 1)), None
                elif message[0] == "failed":
                    # A question that is too long, for one, is an error of its row.
                    if not loaded or rest.alone or not isinstance(message[1], OpenBlipError):
                        raise message[1]
                    break
                else:
                    return
        ended = f"(exit code {exit_code()})"
        if not loaded:
            raise OpenBlipError(
                f"the process that loads the model ended {ended}: there may not be enough memory; use a smaller model, "
                "or --dtype int8"
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


@contextmanager
def _worker(plan: Work) -> Iterator[tuple[Callable[[], Any], Callable[[], int | None]]]:
    """A process that works; a function that waits for its next message, and one that tells its exit code."""
    context = multiprocessing.get_context("spawn")
    parent, child = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(plan, child), name="openblip worker", daemon=True)
    with _sheltered():
        process.start()
    child.close()  # or the end of the process would not end the pipe

    def exit_code() -> int | None:
        process.join()
        return process.exitcode

    try:
        yield parent.recv, exit_code
    finally:
        process.kill()
        process.join()
        parent.close()


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
