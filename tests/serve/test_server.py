"""The command: how it starts, whom it refuses, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openblip.cli.serve import EXAMPLES
from tests.cli.conftest import Run, run  # noqa: F401

from .conftest import WAIT


@pytest.fixture
def command(tiny_model_folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`openblip serve` of the tiny model, and its address."""
    arguments = [sys.executable, "-m", "openblip", "serve", "--model", str(tiny_model_folder), "--port", "0"]
    process = subprocess.Popen(
        [*arguments, "--threads", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    assert process.stdout is not None
    name, _, address = process.stdout.readline().strip().partition(": ")
    assert name == "tiny"
    yield process, address
    process.kill()
    process.communicate()


@pytest.mark.skipif(os.name == "nt", reason="there are no such signals")
def test_a_signal_ends_it_in_order(command: tuple[subprocess.Popen[str], str], image_paths: list[Path]) -> None:
    import httpx2

    process, address = command
    with image_paths[0].open("rb") as photo:
        answer = httpx2.post(f"{address}/caption", files={"file": photo}, data={"question": "secret?"}, timeout=WAIT)
    assert answer.status_code == 200
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=WAIT)
    assert process.returncode == 0, err
    asked, stopped = map(json.loads, err.splitlines())
    assert (asked["path"], asked["status"], asked["images"]) == ("/caption", 200, 1)
    assert asked["id"] == answer.headers["x-request-id"]
    assert "secret" not in err and "photo1" not in err
    assert stopped["stopped"] is True
    assert out == ""


def start(run: Run, *arguments: str | Path) -> str:  # noqa: F811
    """What a command says that does not begin to serve."""
    ran = run("serve", *arguments)
    assert ran.code == 2
    (line,) = ran.err.splitlines()
    return line


def test_a_server_for_others_needs_keys(run: Run, tmp_path: Path) -> None:  # noqa: F811
    keys = tmp_path / "keys.txt"
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        assert "give --api-key-file FILE, or --no-key" in start(run, "--host", host)
    for text, said in [
        ("", "has no key"),
        ("# none\n\n", "has no key"),
        ("short\n", "line 1"),
        ("two words " * 3, "line 1"),
    ]:
        keys.write_text(text, encoding="utf-8")
        assert said in start(run, "--api-key-file", keys)
    assert "cannot be read" in start(run, "--api-key-file", tmp_path)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("queue", "where queue is a whole number"),
        ("queue=many", "where queue is a whole number"),
        ("queue=1.5", "where queue is a whole number"),
        ("megapixels=nan", "where megapixels is a number"),
        ("queue=0", "it must be above 0"),
        ("quue=3", "did you mean queue?"),
        ("zzz=3", "use picture_mb"),
    ],
)
def test_a_limit_that_is_none(run: Run, setting: str, said: str) -> None:  # noqa: F811
    assert said in start(run, "--limit", setting)


def test_a_port_that_is_taken(run: Run, served: Any) -> None:  # noqa: F811
    (port,) = re.findall(r"\d+$", served.url)
    assert f"cannot listen on 127.0.0.1, port {port}" in start(run, "--port", port)


def test_an_older_python_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr("openblip.cli.serve.OLDEST_PYTHON", (99, 0))
    assert "needs Python 3.11" in start(run)


def test_what_is_missing_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setitem(sys.modules, "openblip.serve.app", None)
    with pytest.raises(ModuleNotFoundError, match=r"openblip\.serve\.app"):
        run("serve")
    # This module alone is imported anew, and fails at once: others would be there twice from then on.
    monkeypatch.delitem(sys.modules, "openblip.serve.app")
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert 'pip install "openblip[serve]"' in start(run)


def test_the_examples_are_commands() -> None:
    from openblip.cli.commands import Commands

    for line in re.findall(r"openblip serve(.*)", EXAMPLES):
        Commands()["serve"].make_context("serve", line.split())


def test_the_page_has_every_limit_with_its_default() -> None:
    from openblip.serve.limits import EXPLAINED, Limits

    page = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
    for name, explained in EXPLAINED.items():
        default = getattr(Limits(), name)
        assert f"| `{name}` | {default:g} | {explained} |" in page
