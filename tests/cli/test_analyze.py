"""`openblip analyze` with a real model: formats, what is kept when it is stopped, and what it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from PIL import Image

from openblip.models.model import Model
from tests import warm
from tests.cli.conftest import Run
from tests.pdf_files import pdf_of

pytest.importorskip("pypdfium2")


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """Four pages, of which the second is too large."""
    path = tmp_path / "scan.pdf"
    path.write_bytes(pdf_of([b"", b"/MediaBox [0 0 14400 14400]", b"/Rotate 90", b"/Rotate 180"]))
    return path


def test_text_json_markdown_and_html(run: Run, tiny_model: Model, tiny_model_folder: Path, scan: Path) -> None:
    asked = ["--set", "document", "--pages", "1,3-", "--max-new-tokens", "6", "-m", tiny_model_folder]
    ran = run("analyze", scan, *asked)
    assert ran.code == 0
    assert ran.lines[0] == f"{scan}, page 1 of 4"
    assert ran.lines[1].startswith("  What type of document is this?")
    found = json.loads(run("analyze", scan, *asked, "--format", "json").out)
    assert found["set"] == "document" and found["warning"] is None
    (document,) = found["documents"]
    assert (document["file"], document["pages"]) == (str(scan), 4)
    assert [page["page"] for page in document["analyzed"]] == [1, 3, 4]
    assert [len(page["answers"]) for page in document["analyzed"]] == [7, 5, 5]
    for suffix in (".json", ".md", ".html", ".txt"):
        output = scan.with_suffix(suffix)
        assert run("analyze", scan, *asked, "-o", output).code == 0
        assert "What are the main sections?" in output.read_text(encoding="utf-8")
    assert json.loads(scan.with_suffix(".json").read_text(encoding="utf-8")) == found
    assert scan.with_suffix(".html").read_text(encoding="utf-8").count("data:image/jpeg") == 3
    assert run("analyze", scan, *asked, "-o", scan.with_suffix(".html"), "--no-thumbnails").code == 0
    assert "data:image/jpeg" not in scan.with_suffix(".html").read_text(encoding="utf-8")


def test_pages_that_fail_and_documents_that_cannot_be_opened(
    run: Run, tiny_model_folder: Path, scan: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-")
    Image.new("L", (20, 20)).save(tmp_path / "pages.tif", save_all=True, append_images=[Image.new("RGB", (9, 9))])
    asked = ["-q", "what is it?", "-m", tiny_model_folder]
    ran = run("analyze", tmp_path, *asked, "-o", tmp_path / "all.json")
    assert ran.code == 1
    assert "scan.pdf, page 2: is 200 x 200 inches" in ran.err and "bad.pdf: is a damaged PDF" in ran.err
    documents = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))["documents"]
    assert [(Path(one["file"]).name, len(one["analyzed"]), "error" in one) for one in documents] == [
        ("bad.pdf", 0, True),
        ("pages.tif", 2, False),
        ("scan.pdf", 4, False),
    ]
    ran = run("analyze", tmp_path / "bad.pdf", *asked)
    assert (ran.code, ran.out) == (2, "") and "damaged PDF" in ran.err


def test_the_password(run: Run, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf_of([b""], password="secret"))
    asked = ["-q", "what is it?", "-m", tiny_model_folder]
    assert "give its password (--password)" in run("analyze", path, *asked).err
    assert "this is not its password" in run("analyze", path, *asked, "--password", "guess").err
    assert run("analyze", path, *asked, "--password", "secret").code == 0
    monkeypatch.setenv("OPENBLIP_PDF_PASSWORD", "secret")
    assert run("analyze", path, *asked).code == 0


def test_sets_are_listed_and_printed(
    run: Run, tmp_path: Path, tiny_model_folder: Path, image_paths: list[Path]
) -> None:
    ran = run("analyze", "--sets")
    assert ran.code == 0
    assert [name for name in ("document", "xray", "ct", "mri", "product") if f"{name}: " not in ran.out] == []
    assert ran.out.count("WARNING: BLIP-2 is not trained on medical images") == 3
    assert "Summarize the key information." in ran.out and "Is there any evidence of pathology?" in ran.out
    mine = tmp_path / "mine.yaml"
    mine.write_text(run("analyze", "--print-set", "mri").out, encoding="utf-8")
    ran = run("analyze", image_paths[0], "--set", mine, "-m", tiny_model_folder, "--max-new-tokens", "3")
    assert ran.code == 0 and "not trained on medical images" in " ".join(ran.out.split())
    for arguments, problem in [
        (["--set", "documnet"], "there is no set of questions documnet: did you mean document?"),
        ([], "what is asked? Give --set with one of document, xray, ct, mri, product or a file of your own"),
        (["--set", "ct", "--format", "jsn"], "did you mean json?"),
        (["--set", "ct", "-o", tmp_path / "report.doc"], "end its name with .json"),
        (["--set", "ct", "--pages", "3-1"], "--pages is '3-1'"),
        (["--set", "ct", "--dpi", "0"], "dpi is 0"),
        (["--set", "ct", "-q", "?"], "a question is empty"),
        (["--print-set", "xray2"], "did you mean xray?"),
    ]:
        ran = run("analyze", image_paths[0], *arguments)
        assert (ran.code, ran.out) == (2, "") and problem in ran.err, arguments
    assert "give the name of a file" in run("analyze", "--set", "ct").err
    assert "there is no such file or folder" in run("analyze", tmp_path / "gone.pdf", "--set", "ct").err


def test_captions_and_questions_of_the_command_line(run: Run, tiny_model_folder: Path, image_paths: list[Path]) -> None:
    ran = run(
        "analyze", image_paths[0], "--set", "ct", "--caption", "-q", "is it?", "--format", "json",
        "-m", tiny_model_folder, "--max-new-tokens", "3",
    )  # fmt: skip
    (page,) = json.loads(ran.out)["documents"][0]["analyzed"]
    assert page["caption"] and [answer["question"] for answer in page["answers"]][-1] == "is it?"


WAITING = """
import sys, time
from openblip.cli import main
from openblip.jobs.kept_output import KeptOutput

add = KeptOutput.add

def added(self, *arguments):
    add(self, *arguments)
    while self.done >= 6:
        time.sleep(0.01)

KeptOutput.add = added
main(sys.argv[1:])
"""
"""In the middle of its work the command waits to be stopped."""


def test_a_stopped_report_goes_on_with_the_same_bytes(run: Run, tiny_model_folder: Path, tmp_path: Path) -> None:
    """Ctrl-C while pages are computed: what is done is kept, and the same command ends with the same file."""
    path, output, whole = tmp_path / "long.pdf", tmp_path / "report.html", tmp_path / "whole.html"
    path.write_bytes(pdf_of([b"/Rotate %d" % (90 * (number % 4)) for number in range(12)]))
    command = ["analyze", str(path), "-q", "what is it?", "-m", str(tiny_model_folder), "--batch-size", "2", "-o"]
    with warm.Process(["-c", WAITING, *command, str(output)], stderr=subprocess.PIPE) as started:
        rows = tmp_path / "report.html.openblip" / "rows.jsonl"
        while started.poll() is None and not (rows.exists() and rows.read_bytes().count(b"\n") >= 6):
            time.sleep(0.02)
        started.send_signal(signal.SIGINT)
        _, told = started.communicate(timeout=600)
    assert started.returncode == 130, told
    assert not output.exists() and "the same command goes on from there" in told
    other = run(*command, output, "--dpi", "72")
    assert other.code == 2 and "--dpi was 150.0, now 72.0" in other.err
    for place in (output, whole):
        assert run(*command, place).code == 0
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["long.pdf", "report.html", "whole.html"]


@pytest.mark.skipif(os.name == "nt", reason="there is no /dev/null")
def test_pipes_are_written_to(run: Run, tiny_model_folder: Path, image_paths: list[Path]) -> None:
    asked = ["-q", "what is it?", "-m", tiny_model_folder, "--format", "html"]
    assert run("analyze", image_paths[0], *asked, "-o", "/dev/null").code == 0
