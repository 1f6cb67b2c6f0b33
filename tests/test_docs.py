"""The examples of docs/features.md run on a small model and give the shapes they name."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import openblip
from openblip.integrations import lavis
from openblip.model import Blip2

DOCS = Path(__file__).parents[1] / "docs"
SHAPE = re.compile(r"(\w+) = .*  # \[([\dL, ]+)\]")


def test_features(
    tiny_model: Blip2,
    tiny_model_folder: Path,
    photos: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, photo in zip(("a.jpg", "b.jpg"), photos, strict=False):
        shutil.copy(photo, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(openblip, "load", lambda **options: tiny_model, raising=False)
    load = lavis.load_model_and_preprocess
    monkeypatch.setattr(
        lavis, "load_model_and_preprocess", lambda kind, _, is_eval: load(kind, tiny_model_folder, is_eval)
    )
    config = tiny_model.network.config
    sizes = {
        "257": 4,  # EfficientNet's patches of 64 px
        "1408": config.qformer.image_width,
        "32": config.qformer.num_queries,
        "768": config.qformer.width,
        "256": config.shared_width,
    }
    text = (DOCS / "features.md").read_text(encoding="utf-8")
    known: dict[str, object] = {}
    checked = 0
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        for line in block.splitlines():
            exec(line, known)
            if found := SHAPE.fullmatch(line):
                name, written = found.groups()
                shape = known[name].shape  # type: ignore[attr-defined]
                for size, real in zip(written.split(", "), shape, strict=True):
                    assert size == "L" or real == sizes.get(size, int(size)), line
                checked += 1
    assert checked == 10
