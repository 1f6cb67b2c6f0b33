"""What the tests of transformers' names ask, and change in folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

PROMPT = "Question: what is it? Answer:"

ASKED: list[dict[str, Any]] = [
    {"count": 1},
    {"count": 3},
    {"count": 0, "text": "a dog"},
    {"count": 1, "text": PROMPT},
    {"count": 2, "text": [PROMPT, PROMPT]},
    {"count": 2, "text": [PROMPT, "a dog"], "padding": True},
    {"count": 2, "text": [PROMPT, "a dog"], "padding": "max_length", "max_length": 16, "truncation": True},
    {"count": 1, "text": PROMPT, "max_length": 9},
    {"count": 1, "text": PROMPT, "add_special_tokens": False},
]


def given(images: list[Image.Image], asked: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a processor."""
    told = {name: value for name, value in asked.items() if name != "count"}
    count = asked["count"]
    return told if count == 0 else {"images": images[0] if count == 1 else images[:count], **told}


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
