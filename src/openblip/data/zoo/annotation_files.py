"""Entries of annotation files, with checked access to their fields."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from sys import intern
from typing import Any, TypeGuard

from openblip.data.sources.cells import TEXT_KEYS, encodable, shown_columns, to_id, to_text, to_texts
from openblip.data.sources.json_rows import load_json, read_values, reading
from openblip.data.sources.paths import check_path
from openblip.errors import OpenBlipError

OTHER_FILE = "this is not the file it should be"


class Entry:
    """One JSON object of an annotation file.

    Access to a field raises OpenBlipError, which names file and entry, if the field has another type.

    Attributes:
        fields: the object as the file has it.
    """

    __slots__ = ("_number", "_place", "fields")

    def __init__(self, fields: object, place: str, number: int | None = None) -> None:
        self._place, self._number = place, number
        if not isinstance(fields, dict):
            raise OpenBlipError(f"{self.place} is no JSON object: {OTHER_FILE}")
        self.fields: dict[str, Any] = fields

    @property
    def place(self) -> str:
        """File and entry, for the beginning of messages."""
        return self._place if self._number is None else f"{self._place} {self._number},"

    def __contains__(self, name: str) -> bool:
        return name in self.fields

    def need(self, *names: str) -> None:
        missing = [name for name in names if self.fields.get(name) is None]
        if missing:
            raise OpenBlipError(
                f"{self.place} has no {' and no '.join(missing)}; it has {shown_columns(self.fields)}: {OTHER_FILE}"
            )

    def text(self, *names: str) -> str:
        """The first of these fields that exists, unchanged; "" if there is none. Numbers count as texts."""
        name, value = self._first(names)
        if value is None:
            return ""
        return encodable(value) if _is_plain(value) else to_text(value, self.place, name)

    def id(self, *names: str) -> str:
        """As `text`, for ids; 7.0 becomes "7"."""
        name, value = self._first(names)
        if value is None:
            return ""
        return str(value) if type(value) is int else to_id(value, self.place, name)

    def texts(self, *names: str) -> tuple[str, ...]:
        """The first of these fields that exists, one text or several; equal texts share memory."""
        name, value = self._first(names)
        if value is None:
            return ()
        if _is_plain(value):
            return (intern(encodable(value)),)
        values = value if isinstance(value, list) else [value]
        found = [_text_in(each) for each in values]
        plain = [encodable(text) for text in found if _is_plain(text)]
        # Unchanged, including empty ones, which count as answers.
        return tuple(map(intern, plain if len(plain) == len(found) else to_texts(value, self.place, name)))

    def file_name(self, name: str) -> str:
        """A required file name."""
        value = self.fields.get(name)
        if not isinstance(value, str) or not value.strip():
            raise OpenBlipError(f"{self.place} has no file name in {name}: {OTHER_FILE}")
        return check_path(value, self.place)

    def file_names(self, name: str) -> list[str]:
        """One or more file names; at least one is required."""
        found = self.fields.get(name)
        if not isinstance(found, list) or not found:
            raise OpenBlipError(f"{self.place} has no list of files in {name}: {OTHER_FILE}")
        return [Entry({name: each}, self.place).file_name(name) for each in found]

    def number(self, name: str) -> int:
        """A required whole number; a text of digits counts as one."""
        value = self.id(name)
        if not value.isdecimal() or len(value) > 18:
            raise OpenBlipError(f"{self.place} has no number in {name}: {OTHER_FILE}")
        return int(value)

    def entries(self, name: str) -> list[Entry]:
        """The entries of a required list."""
        found = self.fields.get(name)
        if not isinstance(found, list):
            raise OpenBlipError(f"{self.place} has no list {name}: {OTHER_FILE}")
        place = f"{self.place.removesuffix(',')}, {name}"
        return [Entry(each, place, number) for number, each in enumerate(found, start=1)]

    def _first(self, names: tuple[str, ...]) -> tuple[str, Any]:
        for name in names:
            if name in self.fields:
                return name, self.fields[name]
        return names[0], None


def _is_plain(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and value.lstrip()[:1] not in ("[", "{", "(")


def _text_in(value: object) -> object:
    if isinstance(value, dict):
        for key in TEXT_KEYS:
            if key in value:
                return value[key]
        return None
    return value


def read_entries(path: Path, *needed: str) -> Iterator[Entry]:
    """JSON objects of a list, or one object per line.

    Raises:
        OpenBlipError: the file holds something else, or an entry, which the message names, lacks a required field.
    """
    for place, value in read_values(path, errors="replace"):
        entry = Entry(value, place)
        entry.need(*needed)
        yield entry


def read_object(path: Path, *lists: str) -> Entry:
    """One JSON object with required lists. Raises OpenBlipError as `read_entries` does."""
    entry = Entry(load_json(path), str(path))
    missing = [name for name in lists if not isinstance(entry.fields.get(name), list)]
    if missing:
        raise OpenBlipError(f"{path} has no list {' and no list '.join(missing)}: {OTHER_FILE}")
    return entry


def read_lines(path: Path) -> list[str]:
    """The lines of a text file. U+2028 and the like, at which `str.splitlines` splits, do not end a line."""
    with reading(path), path.open(encoding="utf-8-sig") as file:
        return [line.rstrip("\n") for line in file]
