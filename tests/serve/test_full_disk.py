"""A disk for temporary files that is full: the server needs none of it, and its page says what is wrong."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from openblip.models.model import Model
from tests.jobs.test_job import small_disk

from .conftest import Served, served_by
from .test_faults import is_quiet, until
from .test_native import refused

__all__ = ["small_disk"]
pytestmark = pytest.mark.slow


def fill(disk: Path) -> Path:
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free))
    return ballast


@pytest.fixture
def disk(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go; it has room for a page, and for none of the photos."""
    subprocess.run(["mount", "-o", "remount,size=1000000", str(small_disk)], check=True)
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    return small_disk


def large_photo() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((1200, 900), 60).convert("RGB").save(file, "BMP")
    return file.getvalue()


def test_forms_need_no_disk(tiny_model: Model, disk: Path, image_paths: list[Path]) -> None:
    fill(disk)
    with served_by(tiny_model) as served:
        photo = large_photo()
        assert served.post("/caption", photo).status_code == 200
        assert served.post("/batch_caption", photo, photo, field="files").status_code == 200
        assert [path.name for path in disk.iterdir()] == ["ballast"]


@pytest.mark.skipif(find_spec("gradio") is None, reason="the page needs Gradio: make test-web")
def test_the_page_says_that_its_disk_is_full(
    tiny_model: Model, disk: Path, image_paths: list[Path], capfd: pytest.CaptureFixture[str]
) -> None:
    def upload(served: Served, *photos: bytes) -> object:
        files = [("files", ("photo.bmp", photo)) for photo in photos]
        return served.http.post("/gradio_api/upload", files=files)

    small = image_paths[0].read_bytes()
    with served_by(tiny_model, page=True, logs=True) as served:
        for _ in range(3):
            answer = upload(served, large_photo())
            said = refused(answer, 503, "disk_full")
            assert "make room" in said and answer.headers["retry-after"]
        assert upload(served, small).status_code == 200
        ballast = fill(disk)
        refused(upload(served, small * 10), 503, "disk_full")
        ballast.unlink()
        (path,) = json.loads(upload(served, small * 10).text)
        assert Path(path).read_bytes() == small * 10
        assert served.post("/caption", large_photo()).status_code == 200
        until(lambda: is_quiet(served))
        assert served.metric("openblip_failures_total") == 0
    assert "Traceback" not in capfd.readouterr().err
