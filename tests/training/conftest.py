"""A data set that a tiny model can learn in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 220), "white": (240, 240, 240)}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twenty plain images, each with captions and a question about its colour."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    captions, questions = [], []
    rng = np.random.default_rng(0)
    for number in range(20):
        word, colour = list(COLOURS.items())[number % 4]
        pixels = np.clip(np.array(colour) + rng.integers(-15, 15, (48, 64, 3)), 0, 255).astype(np.uint8)
        name = f"images/{number:02d}.png"
        Image.fromarray(pixels).save(folder / name)
        captions.append({"image": name, "captions": [f"a {word} ball", f"the ball is {word}"]})
        questions.append({"image": name, "question": "what color is the ball?", "answers": [word]})
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, captions)))
    (folder / "vqa.jsonl").write_text("\n".join(map(json.dumps, questions)))
    return folder
