"""docs/datasets.md: its Python runs, and its table is what the command prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from openblip.data.zoo.data_sets import find_entry
from tests.data.annotation_cases import CASES, write
from tests.data.tiny_images import jpeg, put, write_tar

PAGE = Path(__file__).parents[2] / "docs" / "datasets.md"


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        write_tar(
            tmp_path / f"shards/{number:05}.tar", {"a.jpg": jpeg(), "a.txt": b"one", "b.jpg": jpeg(), "b.txt": b"two"}
        )
    for case in CASES[:2]:
        write(tmp_path, case.files)
        for names, _ in case.rows:
            put(tmp_path / find_entry(case.name).media / names[0])
    (tmp_path / "coco/annotations/coco_karpathy_val.json").write_text('[{"image": "x.jpg", "caption": ["one"]}]')
    monkeypatch.setenv("OPENBLIP_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    known: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    for block in blocks:
        exec(block, known)
    assert len(blocks) == 4 and len(known["rows"]) == 6 and known["skipped"] == []  # type: ignore[arg-type]
    assert len(list(known["later"])) == 5  # type: ignore[call-overload]


def test_the_table_is_what_the_command_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLIP_DATA", str(tmp_path))
    printed = subprocess.run(
        [sys.executable, "-m", "openblip", "datasets"], capture_output=True, text=True, encoding="utf-8", check=True
    )
    assert printed.stdout in PAGE.read_text(encoding="utf-8")
