"""What the values of every config have to be: whole numbers within bounds, chances below 1, and so on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

MAY_BE_ZERO = ("vocab_size", "place_width", "start_id")
LARGEST: Mapping[str, int] = {
    "depth": 1_000,
    "decoder_depth": 1_000,
    "depth_scale": 100,
    "width_scale": 100,
    "image_size": 10_000,
}
"""Beyond these, building the network or squashing an image fills the memory before anything is compared."""
LARGEST_COUNT = 2**31 - 1
"""Of all other whole numbers: what vocabularies count with."""
KINDS: Mapping[object, str] = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


class SettingError(ValueError):
    """A value that no model can have.

    Attributes:
        setting: the field's name.
        problem: what is wrong, as the rest of a sentence that begins with the name.
    """

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(f"{setting} {problem}")
        self.setting = setting
        self.problem = problem


def check_settings(config: object) -> None:
    """Check every field of a config that is a number, a text, or true or false; choices are left to its class.

    Raises:
        SettingError: a value is of another kind than its field, or no possible size.
    """
    hints = get_type_hints(type(config))
    for field in fields(config):  # type: ignore[arg-type]
        _check(field.name, getattr(config, field.name), hints[field.name])


def check_heads(part: str, width: int, heads: int) -> None:
    """Raises ValueError when attention heads cannot share a width."""
    if width % heads:
        raise ValueError(f"{part} width {width} is not a multiple of {heads} heads")


def _check(name: str, value: Any, wanted: Any) -> None:
    if get_origin(wanted) in (Union, UnionType):
        kinds = get_args(wanted)
        if value is None and type(None) in kinds:
            return
        (wanted, *others) = [kind for kind in kinds if kind is not type(None)]
        if others:
            return
    if wanted not in KINDS:
        return
    if not _is_a(value, wanted):
        raise SettingError(name, f"is {_shown(value)}, not {KINDS[wanted]}")
    if wanted is int:
        _check_bounds(name, value, 0 if name in MAY_BE_ZERO else 1)
    elif wanted is float:
        _check_float(name, value)


def _is_a(value: object, wanted: object) -> bool:
    if wanted is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if wanted is str:
        # What JSON can write and no file or tokenizer can take.
        return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)
    return isinstance(value, bool)


def _check_float(name: str, value: float) -> None:
    if name.endswith("eps") and not 0 < value < 1:
        raise SettingError(name, f"is {value}, outside 0 < {name} < 1")
    if name.endswith(("dropout", "drop_path")) and not 0 <= value < 1:
        raise SettingError(name, f"is {value}, outside 0 <= {name} < 1")
    if name.endswith("_scale") and not value > 0:
        raise SettingError(name, f"is {value}: it has to be above 0")
    if name in LARGEST:
        _check_bounds(name, value, 0)


def _check_bounds(name: str, value: float, smallest: int) -> None:
    largest = LARGEST.get(name, LARGEST_COUNT)
    if value < smallest:
        raise SettingError(name, f"is {_shown(value)}: the smallest that a model can have is {smallest}")
    if value > largest:
        raise SettingError(name, f"is {_shown(value)}: the largest that can be read is {largest:,}")


def _shown(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 200:
        return "a number of more than sixty digits"
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
