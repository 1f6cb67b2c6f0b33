"""Parquet tables, whose cells may contain image files. Needs pyarrow, an extra."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

from openblip.errors import ImageError, OpenBlipError

BYTES = "bytes"
PATH = "path"
"""Fields of an image in tables of Hugging Face's `datasets`."""
LONGEST_REASON = 200
NOT_INSTALLED = 'Parquet tables need one more package: pip install "openblip[parquet]"'

IMAGES = ("image", "second_image")
"""Our fields of images."""


@dataclass(frozen=True)
class ParquetCell:
    """An image in a cell of a Parquet table. Reading a cell means reading the column of its row group.

    Attributes:
        archive: the table; row_group: number of the row group; row: number of the row in its group.
        name: its position in the table and, if the table has one, the name of its file.
    """

    archive: Path
    row_group: int
    row: int
    column: str
    name: str

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"

    @property
    def place(self) -> str:
        """Its position in the table, which no other image has."""
        return f"{self.column}:{self.row_group}:{self.row}"

    def read_bytes(self) -> bytes:
        """Raises ImageError if the table is missing or damaged, or the cell is empty."""
        try:
            cell = _column(self.archive, self.row_group, self.column)[self.row].as_py()
        except OpenBlipError as error:
            raise ImageError(str(self), str(error)) from error
        except Exception as error:  # pyarrow raises many kinds of errors
            raise ImageError(str(self), _reason(error)) from error
        content = cell.get(BYTES) if isinstance(cell, dict) else cell
        if not isinstance(content, bytes):
            raise ImageError(str(self), "the cell is empty")
        return content


# Two groups: threads that read one table may be on both sides of a border between groups.
@lru_cache(maxsize=2)
def _column(path: Path, row_group: int, column: str) -> Any:
    return open_parquet(path).read_row_group(row_group, columns=[column]).column(column)


def schema_of(file: Any, path: Path) -> Any:
    """The `pyarrow.Schema` of an open table. Raises OpenBlipError if it is damaged, or two columns have one name."""
    try:
        schema = file.schema_arrow
    except Exception as error:  # pyarrow raises many kinds of errors
        raise damaged_parquet(path, error) from error
    twice = [name for name, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise OpenBlipError(f"{path} has several columns {twice[0]!r}: give each a name of its own")
    return schema


def read_parquet(path: Path, choose: Callable[[Sequence[str]], Mapping[str, str]]) -> Iterator[dict[str, Any]]:
    """The rows of a table. Columns that are not chosen are None: they may be large, and of any type.

    Args:
        choose: maps the names of all columns to the columns to read, by our fields; cells of images that hold bytes
            become `ParquetCell`s.

    Raises:
        OpenBlipError: pyarrow is not installed, or the file is missing, is no Parquet table or cannot be read.
    """
    table = open_parquet(path)
    schema = schema_of(table, path)
    chosen = choose(schema.names)
    packed = [name for field, name in chosen.items() if field in IMAGES and holds_bytes(schema.field(name).type)]
    plain = [name for name in chosen.values() if name not in packed]
    for group in range(table.num_row_groups):
        try:
            columns = table.read_row_group(group, columns=[*plain, *(f"{name}.{PATH}" for name in packed)])
            rows = table.metadata.row_group(group).num_rows
        except Exception as error:  # pyarrow raises many kinds of errors
            raise damaged_parquet(path, error) from error
        values = {name: _values(path, columns, name) for name in columns.column_names if name in (*plain, *packed)}
        if any(len(column) != rows for column in values.values()):
            raise OpenBlipError(f"{path} is damaged (its row groups are not as long as they say): get it again")
        for row in range(rows):
            cells: dict[str, Any] = dict.fromkeys(schema.names)
            cells |= {name: values[name][row] for name in plain}
            for name in packed:
                value = values[name][row] if name in values else None
                called = (value or {}).get(PATH) if isinstance(value, dict) else None
                label = f"{group}-{row}" + (f"-{PurePath(called).name}" if isinstance(called, str) else "")
                cells[name] = ParquetCell(path, group, row, name, label)
            yield cells


def _values(path: Path, columns: Any, name: str) -> list[Any]:
    try:
        return list(columns.column(name).to_pylist())
    except Exception as error:  # pyarrow raises many kinds of errors
        raise OpenBlipError(
            f"{path} has values in its column {name} that Python has not ({_reason(error)}): save them as text, or "
            "rename the column"
        ) from error


def holds_bytes(kind: Any) -> bool:
    """Whether cells of this type of Arrow's are image files, or objects with one."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return bool(kind.get_field_index(BYTES) >= 0)
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_fixed_size_binary(kind)) or str(kind) in ("binary", "large_binary", "binary_view")


def damaged_parquet(path: Path, error: Exception) -> OpenBlipError:
    """What to raise for an error of pyarrow, which has many kinds of them, about a table."""
    return OpenBlipError(f"{path} is no Parquet table, or damaged ({_reason(error)}): get it again")


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())[:LONGEST_REASON]


def open_parquet(path: Path, **options: Any) -> Any:
    """A `pyarrow.parquet.ParquetFile`, with options of its own.

    Raises:
        OpenBlipError: pyarrow is not installed, or the file is missing or no Parquet table.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise OpenBlipError(NOT_INSTALLED) from None
    try:
        return pq.ParquetFile(path, **options)
    except OpenBlipError:  # a file that is not on this machine
        raise
    except FileNotFoundError:
        raise OpenBlipError(f"there is no table at {path}: check the path") from None
    except Exception as error:  # pyarrow raises many kinds of errors
        raise damaged_parquet(path, error) from error
