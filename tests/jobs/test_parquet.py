"""Parquet in and out: every value and type of the old columns, images in cells, and memory that stays flat."""

from __future__ import annotations

import csv
import datetime
import decimal
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openblip.errors import OpenBlipError
from openblip.jobs.inputs import find_rows
from openblip.jobs.output import writer_of
from openblip.jobs.rows import ColumnType, Table

NEW: dict[str, ColumnType] = {"caption": "string", "words": "list<string>", "score": "double", "error": "string"}
ODD = pa.table(
    {
        "image": ["a.jpg", "sub\\b.jpg", None],
        "id": pa.array(["007", "NA", 'two\nlines, "quoted"']),
        "count": pa.array([1, None, 2**62], pa.int64()),
        "ratio": pa.array([1.0, math.nan, 0.1], pa.float64()),
        "small": pa.array([0.1, None, 3.0], pa.float32()),
        "price": pa.array([decimal.Decimal("1.50"), None, decimal.Decimal("2.00")]),
        "taken": pa.array([datetime.datetime(2020, 1, 2, 3, 4, 5), None, None], pa.timestamp("ns")),
        "kind": pa.array(["x", "y", "x"]).dictionary_encode(),
        "tags": pa.array([["a", "b"], [], None]),
        "raw": pa.array([b"\xff\0", b"", None]),
        "is_new": pa.array([True, None, False]),
    }
)


def open_table(path: Path | str, **options: Any) -> Table:
    table, images = find_rows(str(path), Path("spool"), **options)
    assert images is None
    return table


def write_output(table: Table, path: Path, start: int = 0, stop: int | None = None) -> Path:
    """What a run writes of a table, with values that show their row."""
    writer = writer_of(path)
    rows = (
        (row, {"caption": f"{number}", "words": [f"w{number}", ","], "score": number / 3} if number else {"error": "x"})
        for number, row in enumerate(table.rows(start, packed=writer.keeps_images), start=start)
        if stop is None or number < stop
    )
    writer.write(table, table.scan().columns, NEW, rows, path)
    return path


def content_of(table: Table, start: int = 0) -> list[str | bytes]:
    found: list[str | bytes] = []
    for row in table.rows(start, packed=True):
        try:
            image = table.image_of(row)
        except OpenBlipError as error:
            image = str(error)
        found.append(image if isinstance(image, str) else image.read_bytes())
    return found


def test_old_columns_keep_their_types_and_values(tmp_path: Path) -> None:
    table = ODD.replace_schema_metadata({"made by": "hand"})
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=2)
    found = pq.read_table(write_output(open_table(tmp_path / "in.parquet"), tmp_path / "out.parquet"))
    assert found.schema.types[: len(ODD.schema)] == ODD.schema.types
    assert repr(found.select(ODD.column_names).to_pylist()) == repr(ODD.to_pylist())
    assert found.schema.metadata == {b"made by": b"hand"}
    assert found.schema.field("words").type == pa.list_(pa.string())
    assert found.select([*NEW]).to_pylist() == [
        {"caption": None, "words": None, "score": None, "error": "x"},
        {"caption": "1", "words": ["w1", ","], "score": 1 / 3, "error": None},
        {"caption": "2", "words": ["w2", ","], "score": 2 / 3, "error": None},
    ]


def test_parquet_as_csv_and_json_lines(tmp_path: Path) -> None:
    pq.write_table(ODD, tmp_path / "in.parquet")
    table = open_table(tmp_path / "in.parquet")
    text = write_output(table, tmp_path / "out.csv").read_text(encoding="utf-8")
    first, second, third = csv.DictReader(io.StringIO(text, newline=""))
    assert [first[name] for name in ODD.column_names] == [
        "a.jpg", "007", "1", "1.0", "0.1", "1.50", "2020-01-02 03:04:05.000000000", "x", '["a", "b"]', "/wA=", "true",
    ]  # fmt: skip
    assert (second["id"], second["count"], second["ratio"], second["words"]) == ("NA", "", "nan", '["w1", ","]')
    assert (third["id"], third["count"], third["small"]) == ('two\nlines, "quoted"', str(2**62), "3.0")
    lines = write_output(table, tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert '"price": 1.50' in lines[0] and records[0]["tags"] == ["a", "b"] and records[0]["is_new"] is True
    assert records[1]["count"] is None and records[1]["tags"] == [] and math.isnan(records[1]["ratio"])
    assert records[2] | {"taken": ""} == records[2] | {"taken": "", "image": None, "count": 2**62, "words": ["w2", ","]}


def test_csv_as_parquet(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text('id,image,note\n007,a.jpg,NA\n 1.0 ,b.jpg,"x\ny"\n2,c.jpg\n', encoding="utf-8")
    found = pq.read_table(write_output(open_table(tmp_path / "in.csv"), tmp_path / "out.parquet"))
    assert found.schema.field("id").type == pa.string()
    assert found.column("id").to_pylist() == ["007", " 1.0 ", "2"]
    assert found.column("note").to_pylist() == ["NA", "x\ny", ""]
    (tmp_path / "list.txt").write_bytes(b"a.jpg\ngone \xff.jpg\n")
    found = pq.read_table(write_output(open_table(tmp_path / "list.txt"), tmp_path / "list.parquet"))
    assert found.column("image").to_pylist() == ["a.jpg", "gone \\udcff.jpg"]


def test_json_lines_as_parquet(tmp_path: Path) -> None:
    lines = [
        '{"image": "a.jpg", "n": 1, "x": 1, "big": 12345678901234567890, "tags": ["a"], "mixed": 1, "yes": true}',
        '{"image": "b.jpg", "n": null, "x": 1.50, "tags": [], "mixed": "two", "o": {"k": 1.0}, "of": [1, 2]}',
        '{"image": "c.jpg", "n": -3, "odd": ["a", 1], "of": [2.5], "vectors": [[1]]}',
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    table = open_table(tmp_path / "in.jsonl")
    assert table.scan().columns == {
        "image": "string", "n": "int64", "x": "double", "big": "string", "tags": "list<string>", "mixed": "string",
        "yes": "bool", "o": "string", "of": "list<double>", "odd": "string", "vectors": "string",
    }  # fmt: skip
    found = pq.read_table(write_output(table, tmp_path / "out.parquet")).to_pydict()
    assert (found["n"], found["x"], found["mixed"]) == ([1, None, -3], [1.0, 1.5, None], ["1", "two", None])
    assert (found["big"][0], found["o"][1], found["odd"][2]) == ("12345678901234567890", '{"k": 1.0}', '["a", 1]')
    assert (found["tags"], found["of"]) == ([["a"], [], None], [None, [1.0, 2.0], [2.5]])


def hugging_face(cells: Sequence[dict[str, Any] | None]) -> pa.Table:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.table({"picture": pa.array(cells, kind), "id": pa.array(range(len(cells)), pa.int64())})


def test_images_in_cells(tmp_path: Path) -> None:
    cells: list[dict[str, Any] | None] = [
        {"bytes": b"one", "path": "sub/a.jpg"},
        {"bytes": None, "path": "b.jpg"},
        {"bytes": b"three", "path": None},
        None,
        {"bytes": None, "path": None},
        {"bytes": b"six", "path": ""},
    ]
    pq.write_table(hugging_face(cells), tmp_path / "in.parquet", row_group_size=2)
    table = open_table(tmp_path / "in.parquet", data_root=tmp_path / "photos")
    nothing = "the row names no image"
    expected = [b"one", str(tmp_path / "photos" / "b.jpg"), b"three", nothing, nothing, b"six"]
    assert table.column == "picture"
    for start in range(7):
        assert content_of(table, start) == expected[start:]
    names = ["sub/a.jpg", "b.jpg", "in.parquet/2", "in.parquet/3", "in.parquet/4", "in.parquet/5"]
    # A row has the same name whether its image is read or not.
    assert [table.name_of(row) for row in table.rows()] == names
    assert [table.name_of(row) for row in table.rows(packed=True)] == names
    text = write_output(table, tmp_path / "out.csv").read_text(encoding="utf-8")
    assert [row["picture"] for row in csv.DictReader(io.StringIO(text))] == names
    found = pq.read_table(write_output(table, tmp_path / "out.parquet"))
    assert found.column("picture").to_pylist() == cells


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.string(), pa.large_string()])
def test_columns_of_files_and_of_paths(tmp_path: Path, kind: pa.DataType) -> None:
    is_text = "string" in str(kind)
    cells = ["a.jpg", "https://example.com/a.jpg"] if is_text else [b"one", b"two"]
    pq.write_table(pa.table({"img": pa.array(cells, kind)}), tmp_path / "in.parquet")
    expected = [str(tmp_path / "a.jpg"), "https://example.com/a.jpg"] if is_text else [b"one", b"two"]
    assert content_of(open_table(tmp_path / "in.parquet")) == expected


def test_several_tables_and_shards_of_them(tmp_path: Path) -> None:
    for number in range(3):
        cells = [{"bytes": b"%d" % (10 * number + row), "path": None} for row in range(5)]
        pq.write_table(hugging_face(cells), tmp_path / f"part-{number}.parquet", row_group_size=2)
    table = open_table(tmp_path / "part-*.parquet")
    assert table.scan().rows == 15 and len(table.files) == 3
    expected = [b"%d" % (10 * number + row) for number in range(3) for row in range(5)]
    for start in range(16):
        assert content_of(table, start) == expected[start:]
    whole = pq.read_table(write_output(table, tmp_path / "whole.parquet")).to_pylist()
    parts = [
        pq.read_table(write_output(table, tmp_path / f"{start}.parquet", start, stop)).to_pylist()
        for start, stop in ((0, 7), (7, 15))
    ]
    assert parts[0] + parts[1] == whole
    assert open_table(tmp_path / "part-{0..1}.parquet").scan().rows == 10
    pq.write_table(pa.table({"picture": ["x"]}), tmp_path / "part-9.parquet")
    with pytest.raises(OpenBlipError, match=r"part-9\.parquet has other columns than .*part-0\.parquet"):
        open_table(tmp_path / "part-*.parquet").scan()
    with pytest.raises(OpenBlipError, match=r"no file .*part-7\.parquet"):
        open_table(tmp_path / "part-{7..8}.parquet")


def test_the_same_rows_have_the_same_bytes(tmp_path: Path) -> None:
    pq.write_table(ODD, tmp_path / "in.parquet")
    first = write_output(open_table(tmp_path / "in.parquet"), tmp_path / "a.parquet").read_bytes()
    assert first == write_output(open_table(tmp_path / "in.parquet"), tmp_path / "b.parquet").read_bytes()


def test_row_groups_are_read_and_written_piece_by_piece(tmp_path: Path) -> None:
    """Neither a row group of 64 MB nor a table of 25,000 rows is held in memory."""
    content = bytes(range(256)) * 256
    with pq.ParquetWriter(tmp_path / "in.parquet", hugging_face([]).schema, write_batch_size=16) as writer:
        writer.write_table(hugging_face([{"bytes": content, "path": None}] * 1000), row_group_size=1000)
    table = open_table(tmp_path / "in.parquet")
    before = pa.total_allocated_bytes()
    most = 0
    for row in table.rows(packed=True):
        most = max(most, pa.total_allocated_bytes() - before)
        assert row.packed is not None
    assert most < 40 * 2**20
    (tmp_path / "in.txt").write_text("".join(f"{number}.jpg\n" for number in range(25_000)), encoding="utf-8")
    written = pq.ParquetFile(write_output(open_table(tmp_path / "in.txt"), tmp_path / "out.parquet"))
    assert [written.metadata.row_group(number).num_rows for number in range(3)] == [10_000, 10_000, 5_000]


@pytest.mark.parametrize(
    ("columns", "options", "said"),
    [
        ({"id": [1]}, {}, "has no column of images: name it with --image-column; it has id"),
        ({"id": [1]}, {"column": "image"}, "has no column image: it has id"),
        ({"image": [1]}, {}, "has values of type int64 in its column image: name a column of images"),
        ({"image": [["a"]]}, {}, "has values of type list<"),
        ({"image": ["a"]}, {"exclude": ["x"]}, "--exclude is for folders, patterns and tars"),
    ],
)
def test_refusals(tmp_path: Path, columns: dict[str, Any], options: dict[str, Any], said: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    with pytest.raises(OpenBlipError) as refused:
        open_table(tmp_path / "in.parquet", **options)
    assert said in str(refused.value)


def test_a_damaged_table_is_an_error(tmp_path: Path) -> None:
    pq.write_table(ODD, tmp_path / "in.parquet", compression="none")
    content = (tmp_path / "in.parquet").read_bytes()
    (tmp_path / "in.parquet").write_bytes(content[:4] + b"\xff" * 300 + content[304:])
    with pytest.raises(OpenBlipError, match=r"in\.parquet is no Parquet table, or damaged"):
        write_output(open_table(tmp_path / "in.parquet"), tmp_path / "out.csv")
