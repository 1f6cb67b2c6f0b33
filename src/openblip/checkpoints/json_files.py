"""JSON files of model folders, and the config dataclasses that are made from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from openblip.errors import CheckpointError

Config = TypeVar("Config")


def read_json(path: Path) -> dict[str, Any]:
    """Raises CheckpointError when the file is missing, unreadable or holds no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: {path.parent} is not a whole model folder") from None
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


def build(kind: type[Config], values: Mapping[str, Any], path: Path) -> Config:
    """A config dataclass from JSON, whose unknown keys are errors and whose lists become tuples.

    Raises:
        CheckpointError: naming `path` and what is wrong in it.
    """
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise CheckpointError(f"{path} has unknown settings for {kind.__name__}: {', '.join(unknown)}")
    frozen = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    try:
        return kind(**frozen)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def to_json(content: Mapping[str, Any]) -> str:
    """As our folders have it: indented, a new line at the end."""
    return json.dumps(content, indent=2) + "\n"
