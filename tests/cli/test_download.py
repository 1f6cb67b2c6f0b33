"""`openblip download`."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from openblip.checkpoints.blip2_models import BERT
from openblip.checkpoints.hub import sources
from openblip.checkpoints.hub.progress import download_progress

from ..checkpoints.web import Page, add_repository, serve
from .conftest import Run

NAME = "Salesforce/blip2-itm-vit-g"


def test_it_prints_where_the_files_are(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    files = {"config.json": b"{}", "model.safetensors": b"weights", "README.md": b"words"}
    with serve() as web:
        add_repository(web, NAME, files)
        add_repository(web, BERT, {"vocab.txt": b"words"})
        web.pages["/eva_vit_g.pth"] = Page(b"weights")
        monkeypatch.setenv("HF_ENDPOINT", web.url)
        monkeypatch.setattr(sources, "LAVIS_URL", f"{web.url}/")
        hub = run("download", NAME, "--exclude", "*.md", "--local-dir", tmp_path / "there")
        lavis = run("download", "blip2/pretrain", "--include", "eva*", "--cache-dir", tmp_path / "cache")
        gone = run("download", "someone/else")
    assert (hub.code, hub.err, hub.lines) == (0, "", [str(tmp_path / "there")])
    assert {path.name for path in (tmp_path / "there").iterdir()} - {".cache"} == {"config.json", "model.safetensors"}
    assert (lavis.code, lavis.err, lavis.lines) == (0, "", [str(tmp_path / "cache" / "lavis" / "eva_vit_g.pth")])
    assert (gone.code, gone.out) == (2, "")
    assert gone.err.startswith("error: someone/else is not on the Hugging Face hub")
    assert gone.err.count("\n") == 1


def test_what_needs_no_download(run: Run) -> None:
    assert run("download", "mini").lines == ["mini is in the package, there is nothing to fetch"]


def test_progress_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    with download_progress() as progress:
        assert progress is None

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with download_progress() as progress:
        assert progress is not None
        progress("weights.pth", 500_000, 1_000_000)
        progress("weights.pth", 1_000_000, 1_000_000)
    assert "weights.pth" in screen.getvalue()
    assert "1.0/1.0 MB" in screen.getvalue()
