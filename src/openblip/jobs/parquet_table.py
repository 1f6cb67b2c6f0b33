"""Inputs in Parquet: rows read piece by piece, with images of their own or paths of them. Needs pyarrow, an extra."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from openblip.data.sources.cells import shown_columns
from openblip.data.sources.parquet import BYTES, PATH, damaged_parquet, holds_bytes, open_parquet, schema_of
from openblip.data.sources.records import known_columns
from openblip.errors import OpenBlipError, OptionError
from openblip.jobs.arrow_cells import BatchCells, RowTexts
from openblip.jobs.paths import digest_of, image_path
from openblip.jobs.rows import IMAGE, PackedImage, Row, Scan, Table

PIECE_BYTES = 8 * 2**20
"""About as much is read at a time."""
PIECE_ROWS = 1024
PIECE_IMAGES = 64
READ_BYTES = 2**20


@dataclass(frozen=True)
class ImageBytes:
    """An image in a cell."""

    name: str
    content: bytes

    def read_bytes(self) -> bytes:
        return self.content


@dataclass(frozen=True, slots=True)
class ParquetRow(Row):
    """A row of a record batch.

    Attributes:
        cells: those of the batch; index: the number of the row in it.
    """

    cells: BatchCells | None = None
    index: int = 0


@dataclass(frozen=True)
class ParquetTable(Table):
    """One table, or several of the same columns, one behind the other.

    Attributes:
        is_packed: whether the column of images has image files, or Hugging Face's objects of bytes and path.
    """

    is_packed: bool
    seeks: ClassVar[bool] = True

    def rows(self, start: int = 0, *, packed: bool = False) -> Iterator[Row]:
        for path in self.files:
            # Without a buffer of its own, pyarrow reads a whole row group first, which may be of any size.
            with open_parquet(path, pre_buffer=False, buffer_size=READ_BYTES) as file:
                sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
                first = number = 0
                while first < len(sizes) and number + sizes[first] <= start:
                    number += sizes[first]
                    first += 1
                for batch in self._batches(path, file, range(first, len(sizes)), packed):
                    yield from self._rows_of(path, file.schema_arrow.names, batch, number, start, packed)
                    number += batch.num_rows
                start = max(0, start - file.metadata.num_rows)

    def scan(self) -> Scan:
        schema = schema_in(self.path)
        rows = 0
        for path in self.files:
            with open_parquet(path) as file:
                rows += file.metadata.num_rows
                if not file.schema_arrow.equals(schema):
                    raise OpenBlipError(
                        f"{path} has other columns than {self.path}, or of other types: give it alone, or make them one"
                    )
        return Scan(rows, dict.fromkeys(schema.names, "string"), digest_of(self.files))

    def image_of(self, row: Row) -> str | PackedImage:
        if row.packed is not None:
            return row.packed
        if not self.is_packed:
            return image_path(row.values[self.column], self.folder)
        path = row.cells.image_path(row.index) if isinstance(row, ParquetRow) and row.cells is not None else None
        return image_path(path or "", self.folder)

    def name_of(self, row: Row) -> str:
        return row.values[self.column] if self.is_packed else super().name_of(row)

    def _batches(self, path: Path, file: Any, groups: Sequence[int], packed: bool) -> Iterator[Any]:
        """Record batches, without images if these are not wanted."""
        if not groups:
            return
        columns = None
        if self.is_packed and not packed:
            columns = [name for name in file.schema_arrow.names if name != self.column]
            if PATH in fields_of(file.schema_arrow.field(self.column).type):
                columns.append(f"{self.column}.{PATH}")
        taken = [file.metadata.row_group(group) for group in groups]
        rows, size = (sum(getattr(group, name) for group in taken) for name in ("num_rows", "total_byte_size"))
        # Cells that are alike take no room in the file, but do in memory.
        most = PIECE_IMAGES if self.is_packed and packed else PIECE_ROWS
        count = min(most, max(1, PIECE_BYTES * rows // max(1, size)))
        try:
            yield from file.iter_batches(count, row_groups=list(groups), columns=columns, use_threads=False)
        except OpenBlipError:
            raise
        except Exception as error:  # pyarrow raises many kinds of errors
            raise damaged_parquet(path, error) from error

    def _rows_of(
        self, path: Path, names: Sequence[str], batch: Any, number: int, start: int, packed: bool
    ) -> Iterator[Row]:
        """The rows of a batch from `start` on; its first one is that `number` of the file."""
        cells = BatchCells(path, batch, names, number, self.column if self.is_packed else None)
        for index in range(max(0, start - number), batch.num_rows):
            values = RowTexts(cells.texts, names, index)
            content = cells.image(index) if self.is_packed and packed else None
            yield ParquetRow(
                place=f"{path}, row {number + index + 1},",
                values=values,
                json_values=RowTexts(cells.json_texts, names, index),
                packed=None if content is None else ImageBytes(values[self.column], content),
                cells=cells,
                index=index,
            )


def find_parquet(files: Sequence[Path], column: str | None, data_root: Path | str | None) -> ParquetTable:
    """The rows of some tables.

    Args:
        column: the column of images; by default the first with one of the usual names, or the only one of images.

    Raises:
        OpenBlipError: a file cannot be read, there is no column of images, or this one is none.
    """
    files = tuple(path.absolute() for path in files)
    schema = schema_in(files[0])
    if column is not None and column not in schema.names:
        raise OptionError(f"{files[0]} has no column {column}: it has {shown_columns(schema.names)}")
    objects = [field.name for field in schema if BYTES in fields_of(field.type)]
    found = column or known_columns(schema.names).get(IMAGE) or (objects[0] if len(objects) == 1 else None)
    if found is None:
        raise OptionError(
            f"{files[0]} has no column of images: name it with --image-column; it has {shown_columns(schema.names)}"
        )
    kind = schema.field(found).type
    is_packed = holds_bytes(kind)
    if not is_packed and not _is_text(kind):
        raise OptionError(
            f"{files[0]} has values of type {kind} in its column {found}: name a column of images or of their paths "
            f"with --image-column; it has {shown_columns(schema.names)}"
        )
    return ParquetTable(files, data_root or files[0].parent, found, is_packed)


def schema_in(path: Path) -> Any:
    """The `pyarrow.Schema` of a table. Raises OpenBlipError if it cannot be read, or two columns have one name."""
    with open_parquet(path) as file:
        return schema_of(file, path)


def fields_of(kind: Any) -> list[str]:
    """The names of an object's fields; none of all other types of Arrow's."""
    import pyarrow as pa

    return [field.name for field in kind] if pa.types.is_struct(kind) else []


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return str(kind) in ("string", "large_string", "string_view")
