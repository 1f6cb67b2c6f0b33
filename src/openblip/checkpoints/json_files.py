"""JSON files of model folders, and the config dataclasses that are made from them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from openblip.errors import CheckpointError

Config = TypeVar("Config")

MAY_BE_ZERO = ("vocab_size", "place_width", "start_id")
LARGEST = {"depth": 1_000, "decoder_depth": 1_000, "depth_scale": 100, "width_scale": 100, "image_size": 10_000}
"""Beyond these, building the network or squashing an image fills the memory before anything can be compared."""
KINDS: dict[object, str] = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def read_json(path: Path) -> dict[str, Any]:
    """Raises CheckpointError when the file is missing, unreadable or holds no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: {path.parent} is not a whole model folder") from None
    except RecursionError:
        raise CheckpointError(f"{path} is not JSON of a model: it is nested too deeply, get the file again") from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object: get the file again")
    return content


def read_json_if_there(path: Path) -> dict[str, Any]:
    """As `read_json`, empty when there is no such file."""
    return read_json(path) if path.exists() else {}


def build(kind: type[Config], values: Mapping[str, Any], path: Path, names: Mapping[str, str] | None = None) -> Config:
    """A config dataclass from JSON, whose unknown keys are errors and whose lists become tuples.

    Args:
        names: what the file calls fields, where it is not what we do.

    Raises:
        CheckpointError: naming `path` and what is wrong in it.
    """
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{path} has {json.dumps(values)} where settings of {kind.__name__} belong: get it again")
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise CheckpointError(f"{path} has unknown settings for {kind.__name__}: {', '.join(unknown)}")
    frozen = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    hints = get_type_hints(kind)
    try:
        for name, value in frozen.items():
            _check_value(name, value, hints[name], (names or {}).get(name, name))
        return kind(**frozen)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _check_value(name: str, value: object, wanted: object, told: str) -> None:
    """Raises ValueError, which calls it `told`, when a setting is of another kind than its field, or no possible size.

    Fields of other kinds than `KINDS` are left to their class.
    """
    fits = {
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value),
        str: isinstance(value, str),
        bool: isinstance(value, bool),
    }
    if wanted in KINDS and not fits[wanted]:  # type: ignore[index]
        raise ValueError(f"{told} is {value!r}, not {KINDS[wanted]}")
    smallest = 0 if name in MAY_BE_ZERO else 1
    if wanted is int and isinstance(value, int) and value < smallest:
        raise ValueError(f"{told} is {value}: the smallest that a model can have is {smallest}")
    largest = LARGEST.get(name)
    if largest is not None and isinstance(value, int | float) and value > largest:
        raise ValueError(f"{told} is {value}: the largest that can be read is {largest:,}")


def to_json(content: Mapping[str, Any]) -> str:
    """As our folders have it: indented, a new line at the end."""
    return json.dumps(content, indent=2) + "\n"
