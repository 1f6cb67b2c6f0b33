"""The rows of a job's input, whatever kind of file it is: read one at a time, as often as needed.

`openblip.jobs.inputs` finds the table that an input means. Each kind of table is a subclass of `Table`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol, TypeAlias

IMAGE = "image"
"""The column of images of what is no table: a list, a folder, tars."""

ColumnType: TypeAlias = Literal[
    "string", "bool", "int64", "double", "list<string>", "list<int64>", "list<double>", "list<list<float>>"
]
"""Types of columns, by their names in Arrow. Whatever is of another type is its JSON text, a string."""


class PackedImage(Protocol):
    """An image that is no file of its own. Instances are pickled."""

    @property
    def name(self) -> str: ...

    def read_bytes(self) -> bytes:
        """Raises ImageError if it cannot be read."""
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        place: where it is, for error messages.
        values: the text of each cell, by column.
        raw: its text in the file, with its line break; "" if the file is no text.
        json_values: the JSON text of each cell; None if all cells are texts.
        packed: its image, if that lies in the input itself.
    """

    place: str
    values: Mapping[str, str]
    raw: str = ""
    json_values: Mapping[str, str] | None = None
    packed: PackedImage | None = None


@dataclass(frozen=True)
class Scan:
    """What a whole input holds.

    Attributes:
        rows: their number; columns: in the order of their first appearance, each with its type.
        digest: of the content, in hex: the same digest, the same rows.
        notes: sentences about what of the input is passed over.
    """

    rows: int
    columns: Mapping[str, ColumnType]
    digest: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table(ABC):
    """An input whose rows can be read. Instances are pickled.

    Attributes:
        files: what the rows are read from, in order.
        folder: relative paths of images are relative to it; a text is an address in object storage; None: to the
            current folder.
        column: the column of images; "" means that each row is searched for the usual names.
    """

    files: tuple[Path, ...]
    folder: Path | str | None
    column: str
    seeks: ClassVar[bool] = False
    """Whether later rows can be read without reading those before them."""

    @property
    def path(self) -> Path:
        """The file, or the first of several."""
        return self.files[0]

    @abstractmethod
    def rows(self, start: int = 0, *, packed: bool = False) -> Iterator[Row]:
        """The rows in order, from the one with the number `start` on.

        Args:
            packed: whether rows have `Row.packed`; without it, images that lie in the table itself are not read.

        Raises:
            OpenBlipError: a file cannot be read, or a row is none.
        """

    @abstractmethod
    def scan(self) -> Scan:
        """Read everything once, so that a fault in the last row is found before hours of work.

        Raises:
            OpenBlipError: as `rows`.
        """

    @abstractmethod
    def image_of(self, row: Row) -> str | PackedImage:
        """The path or address of a row's image, or the image in the input itself.

        Raises:
            OpenBlipError: the row names none.
        """

    def name_of(self, row: Row) -> str:
        """The path, address or name of a row's image, which its texts may name. Raises OpenBlipError as `image_of`."""
        image = self.image_of(row)
        return image if isinstance(image, str) else image.name
