"""`openblip serve` as processes of their own, and clients that keep them busy."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from .conftest import WAIT


def photo(number: int) -> bytes:
    """One of its own for each number, so that nothing is answered from memory."""
    image = Image.new("RGB", (48, 48), (number % 256, number // 256 % 256, 77))
    image.putpixel((number % 48, 5), (255, 255, 255))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(model: Path, port: int, **environment: str) -> subprocess.Popen[str]:
    """A server that answers."""
    command = [sys.executable, "-m", "openblip", "serve", "--model", str(model), "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--threads", "1", "--quiet"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | environment,
    )
    assert process.stdout is not None and process.stdout.readline() == f"tiny: http://127.0.0.1:{port}\n"
    return process


@contextmanager
def ended(processes: list[subprocess.Popen[str]]) -> Iterator[None]:
    """Kill at the end whatever of these is still there."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that another thread or process brings about."""
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
