"""What `openblip mcp` refuses before it serves, and how it ends."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import httpx2
import pytest

from openblip.cli.mcp import EXAMPLES
from openblip.models.model import Model
from openblip.search import Index
from openblip.serve.listening import is_loopback

from .conftest import Run


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (
            ["--http", "--host", "0.0.0.0"],
            "everyone who reaches this machine could use the server: give --api-key-file FILE",
        ),
        (["--http", "--host", "::"], "on ::, everyone"),
        (["--http", "--host", "example.org"], "on example.org, everyone"),
        (["--api-key-file", "keys.txt"], "are about HTTP: give --http, too"),
        (["--allowed-host", "a.org"], "are about HTTP: give --http, too"),
        (["--http", "--api-key-file", "gone.txt"], "the file of keys gone.txt cannot be read"),
        (["--http", "--api-key-file", "short.txt"], "line 2 of short.txt is no key"),
        (["--http", "--api-key-file", "empty.txt"], "the file of keys empty.txt has no key"),
        (["--root", "nowhere"], "is no folder: give the one that images may be read from"),
        (["--allow-url", "http://a.org"], "names no host"),
        (["--db", "nowhere"], "there is no index in nowhere"),
    ],
)
def test_wrong_settings(
    arguments: list[str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keys.txt").write_text("a-key-that-is-long-enough\n")
    (tmp_path / "short.txt").write_text("a-key-that-is-long-enough\nshort\n")
    (tmp_path / "empty.txt").write_text("\n\n")
    refused = run("mcp", *arguments)
    assert refused.code == 2 and problem in refused.err


@pytest.mark.parametrize("example", [line.strip() for line in EXAMPLES.splitlines() if line.startswith("  openblip")])
def test_the_examples_run(
    example: str, tiny_model: Model, image_paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """Up to where they would serve for ever."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keys.txt").write_text("a-key-that-is-long-enough\n")
    (tmp_path / "photos").mkdir()
    shutil.copy(image_paths[0], "photos")
    if "--db" in example:
        Index.open("photos.index", model=tiny_model).add("photos")
    served: list[object] = []
    monkeypatch.setattr("openblip.cli.mcp._serve", lambda *given: served.append(given[1:3]))
    monkeypatch.setattr(anyio, "run", lambda *_: served.append("standard input"))
    assert run(*shlex.split(example)[1:]).code == 0
    host = "0.0.0.0" if "--host" in example else "127.0.0.1"
    assert served == [(host, 8765) if "--http" in example else "standard input"]


def test_loopback_addresses() -> None:
    assert [host for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost") if not is_loopback(host)] == []
    assert [host for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.evil.org", "") if is_loopback(host)] == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_it_says_where_it_is_and_ends_at_once(tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("a-key-that-is-long-enough\n")
    command = [
        sys.executable,
        "-m",
        "openblip",
        "mcp",
        "--http",
        "--port",
        "0",
        "--api-key-file",
        str(tmp_path / "keys.txt"),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            line = server.stderr.readline()
            assert line.startswith("MCP at http://127.0.0.1:") and line.endswith("/mcp\n")
            url = line.split()[2]
            taken = subprocess.run(
                [*command[:5], "--port", url.split(":")[2].split("/")[0]], capture_output=True, text=True, check=False
            )
            assert taken.returncode == 2 and "give another --port" in taken.stderr
            assert httpx2.post(url, json={}).status_code == 401
            os.kill(server.pid, signal.SIGTERM)
            assert server.wait(600) == 143
        finally:
            server.kill()
