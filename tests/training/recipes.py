"""Recipes of small runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EVALUATED = ["epochs=1", "evaluation.data={name: balls, captions: captions.jsonl}", "evaluation.limit=5"]


def write_small_recipe(folder: Path, root: Path, model: Path, **changes: Any) -> Path:
    """A recipe on the images of the fixture `data`, with its features and its output in `folder`."""
    content: dict[str, Any] = {
        "init": model.as_posix(),
        "data_root": root.as_posix(),
        "cache": (folder / "features").as_posix(),
        "output": (folder / "run").as_posix(),
        "data": [{"name": "balls", "captions": "captions.jsonl"}],
        "save_every": 2,
        "threads": 1,
        "device": "cpu",
        "optimizer": {"lr": 1.0e-3, "warmup_steps": 2},
        "monitor": {"tensorboard": False},
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(content))
    return path
