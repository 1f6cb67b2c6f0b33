"""Cells of Arrow's record batches as texts and as JSON, made column by column when they are asked for."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from openblip.data.sources.parquet import BYTES, PATH, damaged_parquet

_NUMBERS_OF_JSON = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


class BatchCells:
    """The cells of a record batch.

    Args:
        path: the table, for error messages.
        names: all columns of the table.
        number: that of the batch's first row in its file.
        packed: the column whose cells have image files, if there is one; its texts are their names.
    """

    def __init__(self, path: Path, batch: Any, names: Sequence[str], number: int, packed: str | None) -> None:
        self.path, self.batch, self.names = path, batch, names
        self._number, self._packed = number, packed
        self._paths = None
        if packed in batch.schema.names and _has_path(batch.column(packed).type):
            self._paths = batch.column(packed).field(PATH)
        self._texts: dict[str, list[str]] = {}
        self._json: dict[str, list[str]] = {}

    def texts(self, name: str) -> list[str]:
        """The texts of a column: nothing as an empty one."""
        if name not in self._texts:
            self._texts[name] = self._column(name, _texts_of)
        return self._texts[name]

    def json_texts(self, name: str) -> list[str]:
        """The JSON texts of a column."""
        if name not in self._json:
            self._json[name] = self._column(name, _json_of)
        return self._json[name]

    def image_path(self, index: int) -> str | None:
        """The path in a row's object of bytes and path, if it has one."""
        if self._paths is None:
            return None
        path = self._paths[index].as_py()
        return path if isinstance(path, str) and path.strip() else None

    def image(self, index: int) -> bytes | None:
        """The image file in a row, if it has one."""
        cell = self.batch.column(self._packed)[index].as_py()
        content = cell.get(BYTES) if isinstance(cell, dict) else cell
        return content if isinstance(content, bytes) else None

    def _column(self, name: str, convert: Callable[[Any], list[str]]) -> list[str]:
        if name == self._packed:
            numbers = range(self._number, self._number + self.batch.num_rows)
            found = (self.image_path(index) or f"{self.path.name}/{number}" for index, number in enumerate(numbers))
            return list(found) if convert is _texts_of else [json.dumps(text, ensure_ascii=False) for text in found]
        try:
            return convert(self.batch.column(name))
        except Exception as error:  # pyarrow raises many kinds of errors
            raise damaged_parquet(self.path, error) from error


class RowTexts(Mapping[str, str]):
    """The cells of one row."""

    def __init__(self, column: Callable[[str], list[str]], names: Sequence[str], index: int) -> None:
        self._column, self._names, self._index = column, names, index

    def __getitem__(self, name: str) -> str:
        if name not in self._names:
            raise KeyError(name)
        return self._column(name)[self._index]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _texts_of(column: Any) -> list[str]:
    """Texts as they are, numbers and times as Python and Arrow write them, bytes in base64, all else as JSON."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        return _texts_of(column.dictionary_decode())
    if pa.types.is_floating(kind):
        return ["" if text is None else _with_point(text) for text in _written(column)]
    if pa.types.is_nested(kind):
        return ["" if value is None else _json_text(value) for value in column.to_pylist()]
    if "binary" in str(kind):
        return ["" if value is None else _base64(value) for value in column.to_pylist()]
    return ["" if text is None else text for text in _written(column)]


def _json_of(column: Any) -> list[str]:
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        return _json_of(column.dictionary_decode())
    if pa.types.is_floating(kind):
        numbers = ("null" if text is None else _with_point(text) for text in _written(column))
        return [_NUMBERS_OF_JSON.get(text, text) for text in numbers]
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_decimal(kind):
        return ["null" if text is None else text for text in _written(column)]
    if pa.types.is_nested(kind):
        return list(map(_json_text, column.to_pylist()))
    nulls = column.is_null().to_pylist()
    texts = (json.dumps(text, ensure_ascii=False) for text in _texts_of(column))
    return ["null" if is_null else text for is_null, text in zip(nulls, texts, strict=True)]


def _written(column: Any) -> list[str | None]:
    """The texts of scalars, as Arrow casts them; as Python has them where it cannot."""
    import pyarrow as pa

    try:
        return list(column.cast(pa.string()).to_pylist())
    except pa.ArrowException:
        return [None if value is None else str(value) for value in column.to_pylist()]


def _with_point(text: str) -> str:
    """A floating-point number with its point: Arrow writes 1.0 as 1."""
    return f"{text}.0" if text.removeprefix("-").isdigit() else text


def _json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: object) -> str:
    return _base64(value) if isinstance(value, bytes) else str(value)


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _has_path(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_struct(kind) and kind.get_field_index(PATH) >= 0)
