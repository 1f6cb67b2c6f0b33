"""Data files of every form, and what may happen to them: bytes that are cut or changed, values of another kind."""

from __future__ import annotations

import csv
import datetime
import decimal
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.data.tiny_images import jpeg

DEEP = b"[" * 50_000 + b"]" * 50_000
PIECES = (b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"\r", b"\n\n", b"[", b"{", DEEP)
OTHERS = (b"", b"\0" * 600, DEEP, b'{"a":' * 50_000, b"null", b"\xff" * 99, b"\n" * 5, b'"x"')
ROWS: list[dict[str, Any]] = [
    {"image": "a.jpg", "captions": ["a dog", "one"], "question": "What?", "answers": ["net", "net"], "image_id": 7},
    {"image": "b/ü.jpg", "captions": ["two"], "question": "Why?", "answers": ["so"], "image_id": 8},
    {"image": "c d.jpg", "captions": "three", "question": "Where?", "answers": "here", "image_id": 9},
]
ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 7.5, 1e300, float("nan"), float("inf"), 10**400, "", " ", "\0", "a\0b.jpg"),
    *("\ud83d", "\udcff", "x" * 300, "a/" * 3000, "~", "~/x", "~nobody/x", "..", "/", "\u2028", "\x85", "\ufeff"),
    *("C:\\Users\\me\\a.jpg", "b\\c.jpg", "\\\\server\\a.jpg", "https://x.org/a.jpg", "file:///a", "nan"),
    *("[", "{", "['a'", "['a', 'b']", "[{'answer': 'x'}]", "{'boxes': 1}", "a\nb", '"', "'", ",", "\t"),
    *([], {}, [[]], [None], [{}], ["a", ["b"]], {"text": "x"}, {"text": {"text": 1}}, {"boxes": [1]}, [1, "a"]),
    *({"": ""}, "[" * 5000, "('" * 500, '{"text":' * 500),
)


def nested(rng: random.Random) -> Any:
    value: Any = "x"
    for _ in range(rng.choice((2, 50, 800))):
        value = [value] if rng.random() < 0.5 else {rng.choice(("text", "a")): value}
    return value


def with_odd_value(content: Any, rng: random.Random) -> Any:
    """A copy of some JSON in which one place has something else, or nothing."""
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        if isinstance(value, (dict, list)):
            for key in value if isinstance(value, dict) else range(len(value)):
                places.append((value, key))
                walk(value[key])

    root = [json.loads(json.dumps(content))]
    walk(root)
    holder, key = rng.choice(places)
    if rng.random() < 0.15 and holder is not root:
        del holder[key]
    elif isinstance(holder, dict) and rng.random() < 0.1:
        holder[rng.choice(("", "\0", "\ud83d", "x" * 500, "a\nb"))] = holder.pop(key)
    else:
        holder[key] = nested(rng) if rng.random() < 0.1 else rng.choice(ODD)
    return root[0]


def as_json(rows: Any) -> bytes:
    return json.dumps(rows).encode()


def as_lines(rows: Any) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode() if isinstance(rows, list) else as_json(rows)


def as_raw_lines(rows: Any) -> bytes:
    return as_lines(rows).decode("unicode_escape", "replace").encode("utf-8", "surrogatepass")


def as_csv(rows: Any, delimiter: str = ",") -> bytes:
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    buffer = io.StringIO()
    writer = csv.DictWriter(
        buffer, list(dict.fromkeys(key for row in rows for key in row)) or ["image"], delimiter=delimiter
    )
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode("utf-8", "surrogatepass")


def as_tsv(rows: Any) -> bytes:
    return as_csv(rows, "\t")


def as_tar(rows: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number, row in enumerate(rows if isinstance(rows, list) else [rows]):
            for name, content in ((f"{number}.x.jpg", jpeg()), (f"{number}.x.json", json.dumps(row).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


FORMS: dict[str, Callable[[Any], bytes]] = {
    "t.csv": as_csv,
    "t.tsv": as_tsv,
    "t.txt": as_csv,
    "t.json": as_json,
    "t.jsonl": as_lines,
    "raw.jsonl": as_raw_lines,
    "list.jsonl": as_json,
    "lines.json": as_lines,
    "t.tar": as_tar,
}


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The bytes after some accident, or as they are."""
    data = bytearray(content)
    place = rng.randrange(len(data) + 1)
    kind = rng.randrange(10)
    if kind == 0:
        del data[place:]
    elif kind == 1:
        for _ in range(rng.choice((1, 3, 30))):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 2:
        data[place:place] = rng.choice(PIECES)
    elif kind == 3:
        data[place:place] = data[: rng.randrange(len(data) + 1)]
    elif kind == 4:
        del data[place : place + rng.randrange(40)]
    elif kind == 5:
        return content.decode("utf-8", "replace").encode("utf-16")
    elif kind == 6:
        return rng.choice(OTHERS)
    elif kind == 7:
        return content.replace(b"\n", rng.choice((b"\r", b"\r\n", b"\n\n", "\u2028".encode())))
    return bytes(data)


def odd_columns(length: int) -> list[Any]:
    """Columns of types that tables have and Python has not, or not well."""
    far = pa.array([2**62] * length, pa.int64())
    words = pa.array(["a dog"] * length)
    moment = pa.array([datetime.datetime(2020, 1, 1)] * length, pa.timestamp("us"))
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return [
        pa.array([2**45] * length, pa.int64()).cast(pa.timestamp("s")),
        far.cast(pa.timestamp("ns", "Nowhere/Atlantis")),
        moment.cast(pa.timestamp("us", "Mars/Olympus")),
        far.cast(pa.duration("us")),
        pa.array([2**31 - 1] * length, pa.int32()).cast(pa.date32()),
        pa.array([decimal.Decimal("1.50")] * length),
        pa.array([b"\xff\xfe"] * length),
        pa.array([b"a dog"] * length),
        pa.array([b"\xff\xfe"] * length, pa.binary(2)),
        pa.array([b"\xff"] * length, pa.large_binary()),
        words.dictionary_encode(),
        pa.array([b"\xff"] * length).dictionary_encode(),
        pa.array([None] * length, pa.null()),
        pa.array([None] * length, pa.string()),
        pa.array([float("nan")] * length),
        pa.array([[["a"]]] * length),
        pa.array([[{"raw": "a dog"}]] * length),
        pa.array([{"bytes": None, "path": "a.jpg"}] * length, image),
        pa.array([{"bytes": b"x", "path": 7}] * length),
        pa.array([{"bytes": "x"}] * length),
        pa.array([[("k", "v")]] * length, pa.map_(pa.string(), pa.string())),
        pa.array([datetime.time(1)] * length),
        pa.array([True] * length),
        pa.array(["\0"] * length),
        pa.array(["x" * 300] * length),
        moment,
    ]


def write_parquet(path: Path, rng: random.Random) -> None:
    """A table in which one column is odd, or there twice."""
    columns: list[Any] = [
        pa.array(["a.jpg", "b.jpg", "c.jpg"]),
        pa.array([["a dog"], ["two"], ["three"]]),
        pa.array(["What?", "Why?", "Where?"]),
        pa.array([["net"], ["so"], ["here"]]),
        pa.array([7, 8, 9]),
    ]
    names = ["image", "captions", "question", "answers", "image_id"]
    if rng.random() < 0.8:
        columns[rng.randrange(len(columns))] = rng.choice(odd_columns(3))
    if rng.random() < 0.5:
        columns.append(rng.choice(odd_columns(3)))
        names.append(rng.choice(("other", "label", "split", "image", "captions", "a.b", "image.path", "", "\0")))
    pq.write_table(pa.Table.from_arrays(columns, names), path, row_group_size=2)
