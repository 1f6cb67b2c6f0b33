"""What is kept for whoever asks again is found, bounded and the same."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from openblip.errors import OptionError
from openblip.images.encoded_image import ReadImage
from openblip.models.model import Model
from openblip.serve.kept import Kept
from openblip.serve.limits import Limits, read_limits

from .conftest import Served


def uploads(served: Served) -> tuple[float, float]:
    """Files that were decoded already, and not."""
    hits, misses = (served.metric("openblip_kept_uploads_total", result=result) for result in ("hit", "miss"))
    return hits, misses


def test_those_asked_for_last_are_kept_within_both_bounds() -> None:
    kept = Kept(100, 3)
    for number in range(3):
        kept.keep(number, str(number), 30)
    assert kept.find(0) == "0" and kept.find(7) is None and kept.find(None) is None
    kept.keep(3, "3", 10)  # one too many
    assert [kept.find(number) for number in range(4)] == ["0", None, "2", "3"] and kept.nbytes == 70
    kept.keep(0, "new", 95)  # too many bytes
    assert [kept.find(number) for number in range(4)] == ["new", None, None, None] and kept.nbytes == 95
    kept.keep(1, "1", 101)
    assert len(kept) == 0 == kept.nbytes


def test_a_file_that_comes_again_is_not_decoded_again(
    serving: Callable[..., Any], tiny_model: Model, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = tiny_model.components.encoder
    expected = tiny_model.ask(image_paths[0], "what is this?")
    read, decoded = encoder.read, list[str]()

    def noted(data: bytes, name: str) -> ReadImage:
        decoded.append(name)
        return read(data, name)

    monkeypatch.setattr(encoder, "read", noted)
    with serving() as served:
        first = served.post("/caption", image_paths[0]).json()
        assert served.post("/caption", image_paths[0]).json() == first and uploads(served) == (1, 1)
        asked = served.post("/ask", image_paths[0], question="what is this?").json()
        assert asked["answer"] == expected
        matched = served.post("/match", image_paths[0], text=["a dog", "a ball"])
        assert matched.status_code == 200 and uploads(served) == (3, 1)
        assert decoded == [image_paths[0].name]
        # Other bytes of the same pixels are decoded, and their text is known.
        file = BytesIO()
        Image.open(image_paths[0]).convert("RGB").save(file, "BMP")
        assert served.post("/caption", file.getvalue()).json() == first and uploads(served) == (3, 2)
        assert served.metric("openblip_kept_texts_total", result="hit") == 2


def test_what_cannot_be_read_is_read_again_and_named_anew(serving: Callable[..., Any], image_paths: list[Path]) -> None:
    with serving() as served:
        for _ in range(2):
            assert served.post("/caption", image_paths[0].read_bytes()[:120]).status_code == 422
        assert uploads(served) == (0, 2)
        assert served.service.uploads.nbytes == 0


def test_large_files_are_found_too(serving: Callable[..., Any], image_paths: list[Path]) -> None:
    image = Image.open(image_paths[0]).convert("RGB").resize((700, 700))
    file = BytesIO()
    image.save(file, "BMP")
    assert len(file.getvalue()) > 2**20
    with serving() as served:
        first, again = (served.post("/caption", file.getvalue()).json() for _ in range(2))
        assert first == again and uploads(served) == (1, 1)


def test_nothing_is_kept_beyond_the_limits(serving: Callable[..., Any], image_paths: list[Path]) -> None:
    with serving(Limits(uploads_mb=0, answers_mb=0)) as served:
        first, again = (served.post("/caption", image_paths[0]).json() for _ in range(2))
        assert first == again and uploads(served) == (0, 0)
        assert served.metric("openblip_kept_texts_total", result="hit") == 0
        assert served.service.uploads.nbytes == 0 == served.service.written.nbytes
    with serving(Limits(uploads_mb=0.02)) as served:
        for path in image_paths:
            served.post("/caption", path)
        assert 0 < served.service.uploads.nbytes <= 20_000
        assert served.service.written.nbytes > 0
    assert read_limits(["uploads_mb=0", "answers_mb=0", "answers=0"]).uploads_mb == 0
    with pytest.raises(OptionError, match="uploads_mb"):
        read_limits(["uploads_mb=-1"])
