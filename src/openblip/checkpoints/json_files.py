"""JSON files of model folders, and the config dataclasses that are made from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from openblip.errors import CheckpointError, OptionError
from openblip.files import read_text
from openblip.nn.config_checks import SettingError, check_settings

Config = TypeVar("Config")

LARGEST_FILE = 100 * 10**6
"""Bytes of JSON: an index of the largest model has some megabytes."""


def read_json(path: Path) -> dict[str, Any]:
    """Raises CheckpointError when the file is missing, unreadable or holds no JSON object."""
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path} is no file: get it again")  # a pipe would be waited for
        if path.stat().st_size > LARGEST_FILE:
            raise CheckpointError(f"{path} is no settings of a model: it has more than {LARGEST_FILE // 10**6} MB")
        content = json.loads(read_text(path))
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
    field_names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - field_names)
    if unknown:
        raise CheckpointError(f"{path} has unknown settings for {kind.__name__}: {', '.join(unknown)}")
    frozen = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    try:
        config = kind(**frozen)
        check_settings(config)  # those of this package that are no networks do not check themselves
        return config
    except SettingError as error:
        setting = (names or {}).get(error.setting, error.setting)
        raise CheckpointError(f"{path}: {setting} {error.problem}") from error
    except (ArithmeticError, OptionError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def to_json(content: Mapping[str, Any]) -> str:
    """As our folders have it: indented, a new line at the end."""
    return json.dumps(content, indent=2) + "\n"
