"""The types of columns whose cells are JSON: what all rows have in common."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from openblip.jobs.rows import ColumnType

EXACT = 2**53
"""Whole numbers up to this one are the same as floating-point numbers."""
LARGEST = 2**63 - 1

_LISTS: dict[ColumnType, ColumnType] = {"string": "list<string>", "int64": "list<int64>", "double": "list<double>"}


class JsonTypes:
    """Takes the fields of each row, and tells the type of each column at the end."""

    def __init__(self) -> None:
        # In the order of first appearance: True for each type that was seen, and the largest whole number.
        self._seen: dict[str, set[str]] = {}
        self._largest: dict[str, int] = {}

    def add(self, fields: Mapping[str, str]) -> None:
        """The JSON text of each field of a row."""
        for name, text in fields.items():
            seen = self._seen.setdefault(name, set())
            first = text[0]
            if first == '"':
                seen.add("string")
            elif first in "tf":
                seen.add("bool")
            elif first == "[":
                seen.update(self._list(name, json.loads(text)))
            elif first == "{":
                seen.add("json")
            elif first != "n" or text != "null":
                seen.add(self._number(name, json.loads(text)))

    def found(self) -> dict[str, ColumnType]:
        """The type of each column; a string, JSON text, where rows have nothing in common."""
        return {name: self._common(name, seen) for name, seen in self._seen.items()}

    def _list(self, name: str, items: list[Any]) -> set[str]:
        kinds = {"[]"}
        for item in items:
            if isinstance(item, bool):
                kinds.add("json")
            elif isinstance(item, str):
                kinds.add("[string")
            elif isinstance(item, int | float):
                kinds.add("[" + self._number(name, item))
            elif item is not None:
                kinds.add("json")
        return kinds

    def _number(self, name: str, value: object) -> str:
        if not isinstance(value, int):
            return "double"
        self._largest[name] = max(self._largest.get(name, 0), abs(value))
        return "int64"

    def _common(self, name: str, seen: set[str]) -> ColumnType:
        largest = self._largest.get(name, 0)
        kinds = {kind.removeprefix("[") for kind in seen} - {"]"}
        if kinds == {"int64", "double"} and largest <= EXACT:
            kinds = {"double"}
        if not all(kind.startswith("[") == ("[]" in seen) for kind in seen) or len(kinds) > 1:
            return "string"
        kind = next(iter(kinds), "string")
        scalar = next((known for known in _LISTS if known == kind and (kind != "int64" or largest <= LARGEST)), None)
        if "[]" in seen:
            return "string" if scalar is None else _LISTS[scalar]
        return "bool" if kind == "bool" else scalar or "string"
