"""Running commands inside the test's own process, exactly as the installed `openblip` does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from openblip.cli import main


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`openblip` with these arguments."""

    def run_command(*arguments: str | Path) -> Ran:
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        code = left.value.code
        return Ran(code if isinstance(code, int) else 0, captured.out, captured.err)

    return run_command


@pytest.fixture
def mixed_folder(image_paths: list[Path], tmp_path: Path) -> Path:
    """A good image, a broken one, and another good one, in this order; a fourth lies in a subfolder."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name, image_path in [("a.png", image_paths[0]), ("c.png", image_paths[1]), ("more/d.png", image_paths[2])]:
        (folder / name).write_bytes(image_path.read_bytes())
    (folder / "b.jpg").write_bytes(b"no image at all")
    return folder
