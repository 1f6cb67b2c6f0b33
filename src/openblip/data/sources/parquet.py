"""Parquet tables, whose cells may hold pictures themselves; read with pyarrow, an extra."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any

from openblip.errors import ImageError, OpenBlipError

BYTES = "bytes"
PATH = "path"
"""Fields of a picture as Hugging Face's `datasets` keeps it."""


@dataclass(frozen=True)
class ParquetCell:
    """A picture inside a Parquet table. Pages are compressed: a cell costs the reading of its row group's column.

    Attributes:
        archive: the table; row_group, row: where in it, the row counted from the beginning of its group.
        name: what the picture is called: its place and, where the table says one, its file's name.
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
        """Where in the table it is; no other one is there."""
        return f"{self.column}:{self.row_group}:{self.row}"

    def read_bytes(self) -> bytes:
        """Raises ImageError when the table is gone, damaged or has no picture there."""
        try:
            cell = _column(self.archive, self.row_group, self.column)[self.row].as_py()
        except (OSError, IndexError, KeyError, ValueError) as error:
            raise ImageError(str(self), " ".join(str(error).split())) from error
        content = cell.get(BYTES) if isinstance(cell, dict) else cell
        if not isinstance(content, bytes):
            raise ImageError(str(self), "the cell is empty")
        return content


# Two: a reader of one table that threads share, at the border of two groups.
@lru_cache(maxsize=2)
def _column(path: Path, row_group: int, column: str) -> Any:
    return _open(path).read_row_group(row_group, columns=[column]).column(column)


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a table; a cell that holds a picture comes as a `ParquetCell`.

    Raises:
        OpenBlipError: pyarrow is not installed, or the file is missing or no Parquet.
    """
    table = _open(path)
    schema = table.schema_arrow
    packed = [field.name for field in schema if _holds_bytes(field.type)]
    plain = [name for name in schema.names if name not in packed]
    for group in range(table.num_row_groups):
        try:
            columns = table.read_row_group(group, columns=[*plain, *(f"{name}.{PATH}" for name in packed)])
        except (OSError, ValueError) as error:
            raise OpenBlipError(f"{path} is damaged ({' '.join(str(error).split())}): get it again") from error
        values = {name: columns.column(name).to_pylist() for name in columns.column_names}
        for row in range(table.metadata.row_group(group).num_rows):
            cells: dict[str, Any] = {name: values[name][row] for name in plain}
            for name in packed:
                told = values[name][row] if name in values else None
                called = (told or {}).get(PATH) if isinstance(told, dict) else None
                label = f"{group}-{row}" + (f"-{PurePath(called).name}" if called else "")
                cells[name] = ParquetCell(path, group, row, name, label)
            yield cells


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return bool(kind.get_field_index(BYTES) >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _open(path: Path) -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise OpenBlipError('Parquet tables need one more package: pip install "openblip[parquet]"') from None
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise OpenBlipError(f"there is no table at {path}: check the path") from None
    except (OSError, ValueError) as error:
        raise OpenBlipError(f"{path} is no Parquet table, or damaged ({' '.join(str(error).split())})") from error
