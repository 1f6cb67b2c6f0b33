"""The official models, and the names and shapes of their LAVIS files, from a fixture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from openblip.checkpoints.blip2_models import OFFICIAL
from openblip.checkpoints.model_entry import ModelEntry

CONTENT: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "lavis" / "official_files.json").read_text(encoding="utf-8")
)
FILES = tuple(CONTENT)


def official(name: str) -> ModelEntry:
    """The official model of a name or alias."""
    return next(model for model in OFFICIAL if name in model.names)


def shapes_of(file: str) -> dict[str, tuple[int, ...]]:
    """Every tensor of an official file, the strays that LAVIS' runner leaves included."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape, *numbers in CONTENT[file]["tensors"]:
        count, step = numbers or (1, 1)
        for index in range(count):
            shapes[name.replace(".N.", f".{index * step}.")] = tuple(shape)
    return shapes


def model_parameters(file: str) -> int:
    """Weights of the model that the file is the main part of."""
    return int(CONTENT[file]["model_parameters"])
