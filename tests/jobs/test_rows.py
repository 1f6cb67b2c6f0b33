"""What a job reads and writes: every byte of the old columns, in all kinds of files."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from openblip.errors import OpenBlipError
from openblip.jobs.inputs import find_rows
from openblip.jobs.output import writer_of
from openblip.jobs.rows import Table
from openblip.jobs.templates import Template

NEW = ["caption", "error"]
TRICKY = (
    'id,image,"a ""name"""\r\n'
    "007,a.jpg,NA\r\n"
    '1.00,b.jpg,"two\nlines, ""quoted"""\r\n'
    " 08 ,c.jpg,\r\n"
    "9,d.jpg\r\n"
    "\r\n"
    "NaN,é 𝄞.jpg,9007199254740993"
)


def output_of(table: Table, name: str) -> bytes:
    columns = table.scan().columns
    rows = ((row, {"caption": f'{number}, "a dog"', "error": None}) for number, row in enumerate(table.rows()))
    path = table.path.with_name(name)
    writer_of(path).write(table, columns, dict.fromkeys(NEW, "string"), rows, path)
    return path.read_bytes()


def open_table(path: Path, **options: Any) -> Table:
    table, _ = find_rows(str(path), path.parent / "spool", **options)
    return table


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
@pytest.mark.parametrize("delimiter", [",", ";"])
def test_csv_keeps_every_byte(tmp_path: Path, mark: bytes, delimiter: str) -> None:
    text = TRICKY if delimiter == "," else TRICKY.replace(",", ";")
    path = tmp_path / "in.csv"
    path.write_bytes(mark + text.encode())
    found = output_of(open_table(path), "out.csv")
    expected = text.replace("9" + delimiter + "d.jpg\r", "9" + delimiter + "d.jpg" + delimiter + "\r")
    lines = expected.replace("\r\n\r\n", "\r\n").split("\r\n")
    added = [delimiter.join(NEW)] + [f'"{number}, ""a dog"""{delimiter}' for number in range(5)]
    wanted = "\r\n".join(line + delimiter + new for line, new in zip(lines, added, strict=True)) + "\r\n"
    assert found.decode() == (mark.decode() + wanted).replace('"0, ""a dog"""', '"0, ""a dog"""')
    rows = list(csv.DictReader(io.StringIO(found.decode("utf-8-sig"), newline=""), delimiter=delimiter))
    assert [row["id"] for row in rows] == ["007", "1.00", " 08 ", "9", "NaN"]
    assert rows[1]['a "name"'] == f'two\nlines{delimiter} "quoted"' and rows[1]["caption"] == '1, "a dog"'


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8) | st.sampled_from(
    ["007", "NA", "nan", "1.00", "", " x ", '"', '""', "a\r\nb", "\n", ",", ";", "=1+1", "\ufeff", "\u2028", "\x85"]
)


@settings(max_examples=150, deadline=None)
@example(rows=[["", "", "\r0"], ["", "", "\r"]], quoting=csv.QUOTE_MINIMAL, end="\n", mark="")
@given(
    rows=st.lists(st.lists(CELLS, min_size=3, max_size=3).filter(lambda cells: any(cells)), min_size=1, max_size=5),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n"]),
    mark=st.sampled_from(["", "\ufeff"]),
)
def test_any_csv_keeps_every_byte(rows: list[list[str]], quoting: Any, end: str, mark: str) -> None:
    """Behind each row of the input stand the new cells, and nothing else is changed; other readers agree."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.csv"
        raws = []
        for cells in [["image", "note", "id"], *rows]:
            line = io.StringIO()
            # With "\n" alone, older releases of Python leave a cell with "\r" unquoted: one more row to any reader.
            csv.writer(line, quoting=quoting, lineterminator="\r\n").writerow(cells)
            raws.append(line.getvalue().removesuffix("\r\n") + end)
        path.write_bytes((mark + "".join(raws)).encode())
        table = open_table(path)
        assert table.scan().rows == len(rows)
        found = output_of(table, "out.csv").decode()
        new = ["caption,error", *(f'"{number}, ""a dog""",' for number in range(len(rows)))]
        assert found == mark + "".join(
            raw.removesuffix(end) + "," + added + end for raw, added in zip(raws, new, strict=True)
        )
        as_json = [json.loads(line) for line in output_of(table, "out.jsonl").decode().split("\n")[:-1]]
        assert [[row["image"], row["note"], row["id"]] for row in as_json] == rows
        output_of(table, "out.parquet")
        as_parquet = pq.read_table(Path(folder) / "out.parquet").to_pylist()
        assert [[row["image"], row["note"], row["id"]] for row in as_parquet] == rows


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | CELLS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(CELLS, inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.sampled_from("abcd"), JSON_VALUES), min_size=1, max_size=4),
    ascii_only=st.booleans(),
)
def test_any_json_keeps_its_values(rows: list[dict[str, Any]], ascii_only: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "in.jsonl"
        lines = [json.dumps(row | {"image": "x"}, ensure_ascii=ascii_only) for row in rows]
        path.write_text("\n".join(lines), encoding="utf-8", newline="")
        table = open_table(path)
        found = output_of(table, "out.jsonl").decode().split("\n")[:-1]
        assert [line[: len(old) - 1] for line, old in zip(found, lines, strict=True)] == [old[:-1] for old in lines]
        types = table.scan().columns
        output_of(table, "out.parquet")
        for row, old in zip(pq.read_table(Path(folder) / "out.parquet").to_pylist(), rows, strict=True):
            for name, value in old.items():
                if types[name] == "string" and not isinstance(value, str) and value is not None:
                    assert json.loads(row[name]) == value
                else:
                    assert row[name] == value


def test_a_cell_may_be_as_long_as_a_book_and_an_open_quote_is_no_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "a.csv"
    table.write_text(f"image,page\na.jpg,{'z' * 1_000_000}\n", encoding="utf-8")
    written = output_of(open_table(table), "out.csv").decode()
    assert written == f'image,page,caption,error\na.jpg,{"z" * 1_000_000},"0, ""a dog""",\n'
    before = csv.field_size_limit(200_000)
    monkeypatch.setattr("openblip.data.sources.csv_records.CELL", 200_000)
    try:
        for found in (lambda: open_table(table).scan(), lambda: list(open_table(table).rows())):
            with pytest.raises(OpenBlipError, match=r"a\.csv, line 2, has a cell of more than 0 MB: close the quote"):
                found()
    finally:
        csv.field_size_limit(before)


def test_csv_as_jsonl_and_tsv(tmp_path: Path) -> None:
    path = tmp_path / "in.csv"
    path.write_text(TRICKY, encoding="utf-8", newline="")
    table = open_table(path)
    records = [json.loads(line) for line in output_of(table, "out.jsonl").splitlines()]
    assert records[0] == {"id": "007", "image": "a.jpg", 'a "name"': "NA", "caption": '0, "a dog"', "error": None}
    assert output_of(table, "out.tsv").decode().splitlines()[2] == '1.00\tb.jpg\ttwo lines, "quoted"\t1, "a dog"\t'


def test_tsv_keeps_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "in.tsv"
    path.write_text('id\tpath\tsize\n007\ta.jpg\t5" wide\n8\tb.jpg\t"x"\n', encoding="utf-8")
    assert output_of(open_table(path), "out.tsv").decode() == (
        "id\tpath\tsize\tcaption\terror\n" + '007\ta.jpg\t5" wide\t0, "a dog"\t\n' + '8\tb.jpg\t"x"\t1, "a dog"\t\n'
    )


def test_jsonl_keeps_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    lines = [
        '{"image": "a.jpg", "price": 1.00,"big":12345678901234567890 , "tags":["x", 1.0]}',
        '{ "file_name":"b.jpg","x":null, "n": "a\\u00e9\\n" }',
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    table = open_table(path)
    found = output_of(table, "out.jsonl").decode().splitlines()
    assert found[0] == lines[0][:-1] + ', "caption": "0, \\"a dog\\"", "error": null}'
    assert found[1] == lines[1][:-2] + ', "caption": "1, \\"a dog\\"", "error": null}'
    assert [table.image_of(row) for row in table.rows()] == [str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")]
    rows = list(csv.DictReader(io.StringIO(output_of(table, "out.csv").decode(), newline="")))
    assert (rows[0]["price"], rows[0]["big"], rows[0]["tags"]) == ("1.00", "12345678901234567890", '["x", 1.0]')
    assert (rows[1]["n"], rows[1]["x"], rows[1]["image"]) == ("aé\n", "", "")


def test_folders_patterns_and_lists(tmp_path: Path) -> None:
    for name in ("img2.jpg", "img10.jpg", "sub/c.png", "drafts/d.png", "sub/e.png", "note.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    _, images = find_rows(str(tmp_path), tmp_path / "spool", exclude=["drafts", "sub/e.*"])
    assert images == [str(tmp_path / name) for name in ("img2.jpg", "img10.jpg", "sub/c.png")]
    _, images = find_rows(str(tmp_path / "*" / "*.png"), tmp_path / "spool", exclude=["e.png"])
    assert images == [str(tmp_path / name) for name in ("drafts/d.png", "sub/c.png")]
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfimg2.jpg\r\n\r\nhttps://example.com/a.jpg\r\ngone \xff.jpg")
    table = open_table(tmp_path / "list.txt")
    found = [table.image_of(row) for row in table.rows()]
    assert found == [str(tmp_path / "img2.jpg"), "https://example.com/a.jpg", "gone \udcff.jpg"]
    assert output_of(table, "out.csv").splitlines()[3].startswith(b"gone \xff.jpg,")


def test_paths_of_windows(tmp_path: Path) -> None:
    (tmp_path / "photos" / "one").mkdir(parents=True)
    (tmp_path / "photos" / "one" / "a.jpg").touch()
    path = tmp_path / "in.csv"
    path.write_text('image\none\\a.jpg\nC:\\Users\\ann\\photos\\one\\a.jpg\nD:\\other.jpg\n" "\n', encoding="utf-8")
    table = open_table(path, data_root=tmp_path / "photos")
    first, second, third, fourth = table.rows()
    assert table.image_of(first) == table.image_of(second) == str(tmp_path / "photos" / "one" / "a.jpg")
    with pytest.raises(OpenBlipError, match=r"D:.other\.jpg is on a Windows drive, .* with --data-root"):
        table.image_of(third)
    with pytest.raises(OpenBlipError, match="the row names no image"):
        table.image_of(fourth)


@pytest.mark.parametrize(
    ("name", "content", "options", "said"),
    [
        ("a.csv", "id,caption\n1,x\n", {}, "no column of images: name it with --image-column; it has id, caption"),
        ("a.csv", "id,image\n1,x\n", {"column": "photo"}, "no column photo: it has id, image"),
        ("a.csv", "image\nx,y\n", {}, "line 2, has more cells than the header"),
        ("a.csv", 'image,note\nx,"y\nz\n', {}, "line 2, opens a quote that is never closed"),
        ("a.csv", "image,image\nx,y\n", {}, "has several columns 'image'"),
        ("a.jsonl", '{"image": "x"}\n[1]\n', {}, "line 2, is no JSON object"),
        ("a.jsonl", '{"image": "x"}\n{"image": \n', {}, "line 2, is not JSON"),
        ("a.txt", "x.jpg\n", {"column": "x"}, "--image-column is for tables"),
        ("a.txt", "x.jpg\n", {"exclude": ["x"]}, "--exclude is for folders, patterns and tars"),
        ("a.parquet", "x", {}, "is no Parquet table, or damaged"),
        ("a.json", "[]", {}, "cannot be read by run: give JSON lines (.jsonl), an object a line"),
        ("a.tar", "x", {}, "is no tar, or broken"),
    ],
)
def test_refusals(tmp_path: Path, name: str, content: str, options: dict[str, Any], said: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(OpenBlipError) as refused:
        open_table(tmp_path / name, **options).scan()
    assert said in str(refused.value)


def test_templates() -> None:
    values = {"category": " dog ", "name": "from the table"}
    template = Template("{{a}} {category} in {folder}: {name}", "--prompt")
    template.check(values)
    assert template.fill(values, "photos/beach day/img.1.jpg") == "{a} dog in beach day: from the table"
    assert Template("{name}", "--prefix").fill({}, "https://example.com/x/img.1.jpg?y=1") == "img.1"
    with pytest.raises(OpenBlipError, match=r"--prompt has \{color\} in it, .* use category, name, folder or name"):
        Template("{color}", "--prompt").check(values)
    for wrong in ("{", "{}", "{a!r}", "}"):
        with pytest.raises(OpenBlipError, match="--prompt is"):
            Template(wrong, "--prompt")
