"""Output files in Parquet: typed columns, written row group by row group. Needs pyarrow, an extra."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from openblip.jobs.parquet_table import ParquetRow, ParquetTable, schema_in
from openblip.jobs.rows import ColumnType, Row, Table
from openblip.saving import naming

GROUP_ROWS = 10_000
GROUP_BYTES = 64 * 2**20
"""A row group ends where it has as much."""
PIECE_ROWS = 1_000
BATCH_ROWS = 64


def write_parquet(
    table: Table,
    columns: Mapping[str, ColumnType],
    new: Mapping[str, ColumnType],
    rows: Iterable[tuple[Row, Mapping[str, Any]]],
    path: Path,
) -> None:
    """Write a table.

    Args:
        columns: those of the input; new: those that are added.
        rows: each row with the values of its new columns; one that is missing is null.

    Raises:
        OSError: it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = schema_in(table.path) if isinstance(table, ParquetTable) else _schema(columns)
    for name, kind in new.items():
        schema = schema.append(pa.field(name, _type(kind)))
    # A file of Python's own, for its errors say what is wrong with the disk.
    with naming(path), path.open("wb") as file:
        # Pages end after whole batches: with a thousand images in one, it would have to be read at once.
        writer = pq.ParquetWriter(file, schema, write_batch_size=BATCH_ROWS)
        try:
            for group in _groups(_batches(schema, columns, new, rows)):
                writer.write_table(pa.Table.from_batches(group, schema), row_group_size=GROUP_ROWS)
            writer.close()
        except BaseException:
            with suppress(Exception):  # it would write its end
                writer.close()
            raise


def _batches(
    schema: Any,
    columns: Mapping[str, ColumnType],
    new: Mapping[str, ColumnType],
    rows: Iterable[tuple[Row, Mapping[str, Any]]],
) -> Iterator[Any]:
    """Record batches of rows that follow one another."""
    import pyarrow as pa

    for taken in _pieces(rows):
        first = taken[0][0]
        if isinstance(first, ParquetRow):
            old = list(_batch_of(first).slice(first.index, len(taken)).columns)
        else:
            old = [_column([_value(row, name, kind) for row, _ in taken], kind) for name, kind in columns.items()]
        added = [_column([values.get(name) for _, values in taken], kind) for name, kind in new.items()]
        yield pa.RecordBatch.from_arrays([*old, *added], schema=schema)


def _pieces(
    rows: Iterable[tuple[Row, Mapping[str, Any]]],
) -> Iterator[list[tuple[Row, Mapping[str, Any]]]]:
    """Up to `PIECE_ROWS` neighbouring rows; those of a Parquet table are of one record batch of it."""
    taken: list[tuple[Row, Mapping[str, Any]]] = []
    for row, values in rows:
        if taken and (len(taken) == PIECE_ROWS or _batch_of(row) is not _batch_of(taken[0][0])):
            yield taken
            taken = []
        taken.append((row, values))
    if taken:
        yield taken


def _batch_of(row: Row) -> Any:
    return row.cells.batch if isinstance(row, ParquetRow) and row.cells is not None else None


def _groups(batches: Iterable[Any]) -> Iterator[list[Any]]:
    group: list[Any] = []
    rows = size = 0
    for batch in batches:
        group.append(batch)
        rows, size = rows + batch.num_rows, size + batch.nbytes
        if rows >= GROUP_ROWS or size >= GROUP_BYTES:
            yield group
            group, rows, size = [], 0, 0
    if group:
        yield group


def _value(row: Row, name: str, kind: ColumnType) -> Any:
    """An old cell as a value of its column's type; null where the row has no such cell."""
    if row.json_values is None:
        return row.values.get(name)
    text = row.json_values.get(name, "null")
    if text == "null":
        return None
    if kind != "string" or text.startswith('"'):
        return json.loads(text)
    return text


def _column(values: Sequence[Any], kind: ColumnType) -> Any:
    import pyarrow as pa

    try:
        return pa.array(values, _type(kind))
    except UnicodeEncodeError:  # names of files that are no text
        return pa.array(list(map(_encodable, values)), _type(kind))


def _encodable(value: Any) -> Any:
    if isinstance(value, list):
        return list(map(_encodable, value))
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _schema(columns: Mapping[str, ColumnType]) -> Any:
    import pyarrow as pa

    return pa.schema([pa.field(name, _type(kind)) for name, kind in columns.items()])


def _type(kind: ColumnType) -> Any:
    import pyarrow as pa

    types: dict[ColumnType, Any] = {
        "string": pa.string(),
        "bool": pa.bool_(),
        "int64": pa.int64(),
        "double": pa.float64(),
        "list<string>": pa.list_(pa.string()),
        "list<int64>": pa.list_(pa.int64()),
        "list<double>": pa.list_(pa.float64()),
        "list<list<float>>": pa.list_(pa.list_(pa.float32())),
    }
    return types[kind]
