"""Text of outside reaches a terminal as text: no escapes, no marks of direction, no line breaks, not without end."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from openblip.cli import main
from openblip.cli.report import NOT_ASCII, Report, _in_json
from openblip.errors import CheckpointError, ImageError, OpenBlipError, printable

ESCAPES = "\x1b[31m\x1b]0;title\x07\x9b2J\u202egnp\u2066\u200e\ufeff\u2028\r\n\x08\x7f\x00\udcff\U000e0041"
FORBIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f]"
)


@given(st.text(st.characters(codec=None), max_size=300), st.integers(40, 300))
def test_any_text_is_made_printable_and_short(text: str, most: int) -> None:
    shown = printable(text, most, end=10)
    assert len(shown) <= most
    assert FORBIDDEN.search(shown) is None
    assert not set("\t\n\r") & set(shown)
    assert printable(shown, most, end=10) == shown
    shown.encode("utf-8")  # no half of a pair


@given(st.text(st.characters(codec=None), max_size=50))
def test_json_says_the_same_and_does_nothing(text: str) -> None:
    line = NOT_ASCII.sub(_in_json, json.dumps({text: text}, ensure_ascii=False))
    assert json.loads(line) == {text: text}
    assert FORBIDDEN.search(line) is None


@pytest.mark.parametrize(
    "text",
    ["ein Kätzchen", "一只猫　在桌上", "می‌خواهم", "क्‍ष", "👩‍👩‍👧 and ❤️", "a\u00a0b", "кошка", "emoji 🐈"],
)
def test_all_writing_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize("kind", [OpenBlipError, CheckpointError, lambda text: ImageError(text, "is bad; do this")])
def test_every_error_is_one_printable_sentence(kind: Any) -> None:
    for name in (ESCAPES, "x" * 1_000_000, "a b " * 500_000, ESCAPES * 10_000):
        text = str(kind(f"{name}: is bad; do this"))
        assert FORBIDDEN.search(text) is None
        assert "\n" not in text
        assert len(text) <= 2_000
        assert text.endswith("do this")


def test_reports_print_what_they_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(as_json=True)
    report.line(f"{ESCAPES}\tnext")
    report.record(image=ESCAPES)
    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == 3
    assert FORBIDDEN.search("".join(lines)) is None
    assert lines[0].endswith("\tnext")
    assert json.loads(lines[1]) == {"image": ESCAPES}


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit):
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return captured.out + captured.err


@pytest.mark.skipif(sys.platform == "win32", reason="its file names have no control characters")
def test_names_of_files_and_tensors_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_model_folder: Path
) -> None:
    bad = ESCAPES.replace("\0", "")
    evil = tmp_path / f"{bad.encode('utf-8', 'surrogateescape').decode('utf-8', 'surrogateescape')[:60]}.png"
    Image.new("RGB", (9, 9)).save(evil)
    weights = tmp_path / f"{bad[:8]}.safetensors"
    save_file({f"{bad[:20]}.weight": torch.ones(2)}, weights, {"x": bad[:20]})
    pickled = tmp_path / "a.pth"
    torch.save({"model": {f"{bad[:20]}": torch.ones(2)}, bad: 1, "y" * 100_000: 2}, pickled)
    (tmp_path / "r.yaml").write_text(json.dumps({bad[:20]: 1}))
    for arguments in (
        ("caption", evil, "--model", tiny_model_folder),
        ("caption", evil, "--model", tiny_model_folder, "--json"),
        ("caption", f"{evil}x", "--model", tiny_model_folder),
        ("caption", evil, "--model", bad),
        ("inspect", weights),
        ("inspect", weights, "--json"),
        ("inspect", pickled),
        ("inspect", f"{pickled}{bad}"),
        ("plan", bad),
        ("verify", bad),
        ("convert", bad, tmp_path / "new"),
        ("download", bad),
        ("datasets", bad),
        ("train", tmp_path / "r.yaml"),
        ("evaluate", tmp_path / "r.yaml", f"{bad[:20]}=1"),
        ("caption", f"-{bad}"),
    ):
        said = run(capsys, *arguments)
        assert said
        assert FORBIDDEN.search(said) is None, arguments
        assert max(map(len, said.splitlines())) < 3_000
    assert os.fsencode(evil)
