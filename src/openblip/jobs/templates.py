"""Texts with places for a row's cells: `a photo of a {category}`, `what is in {folder}?`."""

from __future__ import annotations

import string
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from openblip.data.sources.cells import shown_columns
from openblip.errors import OptionError
from openblip.images.sources import is_address

OWN = ("folder", "name")
"""Places that are no columns: the name of the image's folder, and that of its file without the suffix."""


@dataclass(frozen=True)
class Template:
    """A text with {places}; {{ and }} are braces.

    Args:
        called: the option that it comes from, for messages.

    Raises:
        OptionError: its braces do not fit together.
    """

    text: str
    called: str

    def __post_init__(self) -> None:
        _ = self.parts

    @cached_property
    def parts(self) -> list[tuple[str, str | None]]:
        """Literal texts, each with the name of the place behind it."""
        try:
            parts = list(string.Formatter().parse(self.text))
        except ValueError as error:
            raise OptionError(f"{self.called} is {self.text!r}: {error}; write {{{{ for a brace") from None
        for _, name, form, conversion in parts:
            if name == "" or form or conversion:
                raise OptionError(f"{self.called} is {self.text!r}: write the name of a column in braces, or {{{{")
        return [(literal, name) for literal, name, _, _ in parts]

    @property
    def names(self) -> list[str]:
        return [name for _, name in self.parts if name is not None]

    def check(self, columns: Collection[str]) -> None:
        """Raises OptionError if a place is neither a column nor one of `OWN`."""
        for name in self.names:
            if name not in columns and name not in OWN:
                raise OptionError(
                    f"{self.called} has {{{name}}} in it, but there is no such column: use {shown_columns(columns)}, "
                    "folder or name"
                )

    def fill(self, values: Mapping[str, str], image: str) -> str:
        """The text for one row; a column goes before the image's own folder and name."""
        return "".join(
            literal + ("" if name is None else values[name].strip() if name in values else _own(name, image))
            for literal, name in self.parts
        )


def _own(name: str, image: str) -> str:
    if name not in OWN:
        return ""  # a JSON row without this field
    path = PurePosixPath(urlsplit(image).path if is_address(image) else image.replace("\\", "/"))
    return path.parent.name if name == "folder" else path.stem
