"""Python programs that tests start, as forks of a process that has PyTorch and openblip imported.

A new interpreter imports them for seconds. Here one process a worker of pytest does so, when it is first needed; it
runs nothing of a test itself, and has one thread, so that its forks are as good as new. What depends on how Python
starts, or on what its libraries read of the environment when they are imported, needs an interpreter of its own.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import util
from pathlib import Path
from typing import IO, Any, NoReturn

IMPORTED = ["torch", "openblip.cli", "openblip.models.load", "openblip.training.run", "openblip.jobs.worker"]
IMPORTED += ["openblip.checkpoints.tools.quantize", "openblip.images.decode", "openblip.cli.train", "omegaconf"]
# What training and PyTorch import when they are first used.
IMPORTED += ["accelerate", "torch._dynamo", "torch.distributed.fsdp", "matplotlib.backends.backend_agg"]
LENGTH = 8
"""Bytes of the length before each request."""


class Process:
    """A program that runs, with what tests use of `subprocess.Popen`: in text, and with signals that it heeds.

    Args:
        arguments: of Python: `-m MODULE ...`, `-c PROGRAM ...` or `FILE ...`.
        stdin, stdout, stderr: `subprocess.PIPE`, `STDOUT` or `DEVNULL`, a descriptor, or that of this process.
        env: its environment; None: that of this process.
        cwd: where it runs.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
    ) -> None:
        self.arguments = list(arguments)
        self.returncode: int | None = None
        given: list[int] = []
        null = os.open(os.devnull, os.O_RDWR)

        def there(wanted: int | None, standard: int) -> tuple[int, IO[str] | None]:
            if wanted == subprocess.PIPE:
                reader, writer = os.pipe()
                theirs, ours = (reader, writer) if standard == 0 else (writer, reader)
                given.append(theirs)
                return theirs, open(ours, "w" if standard == 0 else "r", encoding="utf-8")
            if wanted == subprocess.DEVNULL:
                return null, None
            return standard if wanted is None else wanted, None

        theirs_in, self.stdin = there(stdin, 0)
        theirs_out, self.stdout = there(stdout, 1)
        theirs_err, self.stderr = (theirs_out, None) if stderr == subprocess.STDOUT else there(stderr, 2)
        self._status, status = os.pipe()
        request = {"arguments": self.arguments, "env": dict(env or os.environ), "cwd": os.fspath(cwd or os.getcwd())}
        content = json.dumps(request).encode()
        keeper = _keeper()
        # Files travel with the first bytes.
        socket.send_fds(keeper, [len(content).to_bytes(LENGTH, "little")], [status, theirs_in, theirs_out, theirs_err])
        keeper.sendall(content)
        for descriptor in (status, null, *given):
            os.close(descriptor)
        self.pid = int.from_bytes(os.read(self._status, 4), "little")
        assert self.pid, "the process that forks is gone: what it said is above"

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.arguments, timeout or 0)
        return code

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            self.returncode = os.waitstatus_to_exitcode(int.from_bytes(os.read(self._status, 4), "little"))
            os.close(self._status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, given: str = "", timeout: float | None = None) -> tuple[str, str]:
        """Give it what it reads, and return all that it says, at its end."""
        said = ["", ""]

        def read(at: int, stream: IO[str] | None) -> None:
            if stream is not None and not stream.closed:
                with stream:
                    said[at] = stream.read()

        threads = [
            threading.Thread(target=read, args=pair, daemon=True) for pair in enumerate((self.stdout, self.stderr))
        ]
        for thread in threads:
            thread.start()
        if self.stdin is not None and not self.stdin.closed:
            with suppress(BrokenPipeError), self.stdin:
                self.stdin.write(given)
        for thread in threads:
            thread.join(timeout)
            if thread.is_alive():
                raise subprocess.TimeoutExpired(self.arguments, timeout or 0)
        self.wait(timeout)
        return said[0], said[1]

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.communicate(timeout=600)


def run(arguments: Sequence[str], given: str = "", **options: Any) -> subprocess.CompletedProcess[str]:
    """What a program says to what it is given on standard input, and how it ends."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = Process(arguments, **{**pipes, **options})
    said, complaint = process.communicate(given, timeout=600)
    return subprocess.CompletedProcess(process.arguments, process.wait(), said, complaint)


_sockets: dict[int, socket.socket] = {}


def _keeper() -> socket.socket:
    """The end of the process that forks, of this process: a fork of this one has another."""
    if os.getpid() not in _sockets:
        mine, its = socket.socketpair()
        # It ends when this process does: nobody else has the other end.
        keeper = subprocess.Popen(
            [sys.executable, __file__, str(its.fileno())], pass_fds=[its.fileno()], start_new_session=True
        )
        its.close()
        _sockets[os.getpid()] = mine
        atexit.register(lambda: (mine.close(), keeper.wait(600)))
    return _sockets[os.getpid()]


# The other side.


def next_program(end: socket.socket) -> list[str] | None:
    """Wait for programs and fork; returns in each fork what it is to run, and None in this process at its end."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        length, descriptors, *_ = socket.recv_fds(end, LENGTH, 4)
        if not length:
            return None
        with end.makefile("rb", buffering=0) as stream:
            content = b""
            while len(content) < int.from_bytes(length, "little"):
                content += stream.read(int.from_bytes(length, "little") - len(content))
        if not os.fork():
            break
        for descriptor in descriptors:
            os.close(descriptor)
    end.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    status, *streams = descriptors
    program = os.fork()
    if program:  # in between, so that somebody waits for it
        for descriptor in (*streams, 0, 1, 2):
            os.close(descriptor)
        os.write(status, os.waitpid(program, 0)[1].to_bytes(4, "little"))
        os._exit(0)
    _heed_signals()
    for standard, descriptor in enumerate(streams):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    _open_streams()
    request = json.loads(content)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    util.spawnv_passfds = _fork_instead  # type: ignore[assignment]
    os.write(status, os.getpid().to_bytes(4, "little"))  # from now on it may get signals
    os.close(status)
    arguments: list[str] = request["arguments"]
    return arguments


def _heed_signals() -> None:
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _open_streams() -> None:
    """As Python does when it starts: what the old ones are at is decided when they are opened."""
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(  # noqa: SIM115
        2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
    )


def _fork_instead(path: object, arguments: Sequence[Any], kept: Sequence[int]) -> int:
    """What multiprocessing calls to start a new interpreter; `-c PROGRAM --multiprocessing-fork` stands at the end."""
    words = [os.fsdecode(word) for word in arguments]
    at = words.index("-c")
    child = os.fork()
    if child:
        return child

    def spawned() -> None:
        _heed_signals()
        for name in os.listdir("/dev/fd"):
            if int(name) > 2 and int(name) not in kept:
                with suppress(OSError):  # that of the list itself
                    os.close(int(name))
        sys.argv = words[at : at + 1] + words[at + 2 :]
        exec(words[at + 1], {"__name__": "spawned"})

    _leave_after(spawned)


def _leave_after(program: Callable[[], object]) -> NoReturn:
    """End as Python does after a program, but without freeing everything one by one, which takes a second here."""
    code = 0
    try:
        program()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(*sys.exc_info())
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = 120
    finally:
        if code < 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        os._exit(code)


def be(arguments: Sequence[str]) -> None:
    """Run what Python runs when it is given these arguments."""
    first, *rest = arguments
    sys.path[1:1] = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", *sys.path)]
    if first == "-m":
        sys.argv, sys.path[0] = rest, os.getcwd()
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(module))
    else:
        sys.argv, sys.path[0] = [first, *rest], str(Path(first).parent)
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # or a collection in a fork would write to all that they share
    if (found := next_program(socket.socket(fileno=int(sys.argv[1])))) is not None:
        _leave_after(lambda: be(found))
