"""Lists and objects in cells: their texts are taken in every kind of file, and what holds none is refused by name."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openblip.data.pairs import load_pairs
from openblip.data.sample import Sample
from openblip.data.sources.cells import to_text, to_texts
from openblip.data.sources.open import DataSource, read_source
from openblip.data.zoo.layouts import read_lavis, read_vqa
from openblip.errors import OpenBlipError
from tests.data.tiny_images import jpeg, put, write_tar

LISTS = st.lists(st.text(st.characters(codec="utf-8"), max_size=12), min_size=1, max_size=6)


def as_numpy(texts: list[str]) -> str:
    return str(np.array(texts, dtype=object))


def as_objects(texts: list[str]) -> str:
    return str([{"answer": text, "answer_confidence": "yes", "answer_id": at} for at, text in enumerate(texts)])


def as_numpy_of_objects(texts: list[str]) -> str:
    return str(np.array([{"caption": text, "score": -1.5} for text in texts], dtype=object))


def as_nested_numpy(texts: list[str]) -> str:
    return str({"raw": np.array([*texts, "end"], dtype=object)})


def as_mixed_quotes(texts: list[str]) -> str:
    return f"[{', '.join(json.dumps(t) if at % 2 else repr(t) for at, t in enumerate(texts))}]"


WRITERS = (str, json.dumps, as_numpy, as_objects, as_numpy_of_objects, as_mixed_quotes, as_nested_numpy)


@pytest.mark.parametrize("write", WRITERS)
@given(texts=LISTS)
def test_lists_come_back_however_they_were_written(write: Callable[[list[str]], str], texts: list[str]) -> None:
    if write is as_mixed_quotes:
        texts = [text for text in texts if text.isprintable() and "\\" not in text] or ["x"]
    found = to_texts(write(texts), "t.csv, line 2,", "answers")
    kept = tuple(text.strip() for text in [*texts, *(["end"] if write is as_nested_numpy else [])] if text.strip())
    assert found == kept


@pytest.mark.parametrize(
    "text",
    ["[laughs] what is this", "[laughs]", "{person} waves", "(a dog)", '("Exit") sign', "[1] a cat", "array of lamps"],
)
def test_what_only_looks_like_a_list_is_a_text(text: str) -> None:
    assert to_texts(text, "t.csv, line 2,", "caption") == (text,)


@pytest.mark.parametrize(
    "text",
    [
        "['gull', 'bi",
        "['a' ... 'b']",
        "[b'gull']",
        "[{'answer': <object at 0x7f>}]",
        "{'boxes': [1, 2]}",
        "[['a'], ['b']]",
        "[" * 100_000,
        "['" + "[" * 100_000,
        '{"text": ' * 50 + "1" + "}" * 50,
    ],
)
def test_what_can_be_no_text_is_refused(text: str) -> None:
    with pytest.raises(OpenBlipError, match=r"^t.csv, line 2, has .* for answers: give a text, a list of texts or "):
        to_texts(text, "t.csv, line 2,", "answers")


def test_one_text_is_one() -> None:
    assert to_text(["What?"], "a", "question") == to_text({"text": "What?"}, "a", "question") == "What?"
    assert to_text("a \ud83d sign", "a", "caption") == "a \ufffd sign"
    assert to_text("\ud83d\ude00", "a", "caption") == "\U0001f600"
    with pytest.raises(OpenBlipError, match="a has 2 texts for question: it takes one"):
        to_text(["What?", "Why?"], "a", "question")


def write_csv(path: Path, row: dict[str, Any], delimiter: str = ",") -> None:
    """As pandas does: a cell that is no text is written as Python shows it."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*row], delimiter=delimiter)
    writer.writeheader()
    writer.writerow(row)
    path.write_text(buffer.getvalue(), encoding="utf-8")


def write_any(folder: Path, form: str, row: dict[str, Any]) -> str:
    """The row in a file of some form; gives the name of the table."""
    name = f"t.{form}"
    if form in ("csv", "tsv"):
        write_csv(folder / name, row, "," if form == "csv" else "\t")
    elif form in ("json", "list.jsonl"):
        (folder / name).write_text(json.dumps([row], indent=1))
    elif form in ("jsonl", "lines.json"):
        (folder / name).write_text(json.dumps(row) + "\n")
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), folder / name)
    elif form == "tar":
        write_tar(folder / name, {"a.jpg": jpeg(), "a.json": json.dumps(row).encode()})
    else:
        put(folder / "photos/a.jpg")
        (folder / "photos/a.json").write_text(json.dumps(row))
        return "photos"
    return name


FORMS = ("csv", "tsv", "json", "list.jsonl", "jsonl", "lines.json", "parquet", "tar", "folder")
HUB = [{"answer": text, "answer_confidence": "maybe", "answer_id": at} for at, text in enumerate(["net", "a net"])]
CELLS: list[tuple[str, Any, tuple[str, ...]]] = [
    ("answers", HUB, ("net", "a net")),
    ("answers", ["gull", "bird's"], ("gull", "bird's")),
    ("captions", [{"text": "a dog", "score": -0.5}, {"text": "one", "score": -1.5}], ("a dog", "one")),
    ("captions", {"raw": ["a dog", "one"]}, ("a dog", "one")),
    ("caption", {"caption": "a dog", "id": 7}, ("a dog",)),
    ("sentences", [{"raw": "a dog", "tokens": ["a", "dog"]}], ("a dog",)),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("column", "cell", "expected"), CELLS)
def test_every_reader_takes_the_texts(
    tmp_path: Path, form: str, column: str, cell: object, expected: tuple[str, ...]
) -> None:
    row = {"image": "a.jpg", "question": "What?", column: cell}
    source = DataSource("mine", table=write_any(tmp_path, form, row))
    (sample,) = read_source(source, tmp_path)
    assert (sample.answers if column == "answers" else sample.captions) == expected
    (image,) = load_pairs(source, tmp_path)  # what training gets of it
    assert image.captions == (expected if column != "answers" else ())
    assert [asked.answers or (asked.answer,) for asked in image.questions] == [expected] * (column == "answers")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("column", "cell", "words"),
    [
        ("captions", {"boxes": [1, 2]}, "an object of boxes"),
        ("captions", [{"segment": 3}], "an object of segment"),
        ("answers", [["gull"], ["bird"]], "lists in a list"),
        ("question", ["What?", "Why?"], "2 texts for question"),
        ("label", {"id": 3, "name": "dog"}, "an object of id, name"),
    ],
)
def test_every_reader_refuses_other_objects(tmp_path: Path, form: str, column: str, cell: object, words: str) -> None:
    row = {"image": "a.jpg", "question": "What?", column: cell}
    name = write_any(tmp_path, form, row)
    row_of = {"csv": "line 2", "tsv": "line 2", "parquet": "row 1", "tar": "row a", "folder": "a.jpg is left out"}
    place = row_of.get(form, "line 1" if "lines" in form or form == "jsonl" else "entry 1")
    with pytest.raises(OpenBlipError, match=rf"{name}.*{place}.* has {words}") as caught:
        read_source(DataSource("mine", table=name), tmp_path)
    assert "\n" not in str(caught.value)


def test_the_public_sets_are_read_alike(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    rows: list[dict[str, Any]] = [{"image": "a.jpg", "question": "What?", "answer": HUB, "caption": {"raw": ["x"]}}]
    path.write_text(json.dumps(rows))
    (sample,) = read_lavis([path], tmp_path, "train")
    assert (sample.answers, sample.captions) == (("net", "a net"), ("x",))
    for field, value, words in (
        ("image", {"path": "a.jpg"}, "has no file name in image"),
        ("image", ["a.jpg"], "has no file name in image"),
        ("image", "a\0.jpg", "has a path with a null character or a line break"),
        ("caption", {"boxes": 1}, "has an object of boxes for caption"),
        ("question_id", [1, 2], "has list for question_id"),
    ):
        path.write_text(json.dumps([rows[0], {**rows[0], field: value}]))
        with pytest.raises(OpenBlipError, match=rf"rows.json, entry 2, {words}"):
            read_lavis([path], tmp_path, "train")
    asked = {"questions": [{"image_id": 7.0, "question_id": 3, "question": "What?"}]}
    given = {"annotations": [{"question_id": 3.0, "answers": [{"answer": ""}, {"answer": "net"}]}]}
    files = [tmp_path / "q.json", tmp_path / "a.json"]
    for file, content in zip(files, (asked, given), strict=True):
        file.write_text(json.dumps(content))
    (row,) = read_vqa(files, tmp_path, "train")
    assert (row.image_id, row.sample_id, row.answers) == ("7", "3", ("", "net"))
    files[0].write_text(json.dumps({"questions": [{"image_id": [7], "question_id": None, "question": "What?"}]}))
    with pytest.raises(OpenBlipError, match=r"q.json, questions 1, has no question_id; it has"):
        read_vqa(files, tmp_path, "train")


def test_our_own_captions_are_data(tmp_path: Path) -> None:
    """What `openblip caption --json` writes, of an image that could not be used, too."""
    lines = [
        {"image": "a.jpg", "captions": [{"text": "a dog", "score": -0.3}, {"text": "a pup", "score": -0.9}]},
        {"image": "b.jpg", "error": "there is no such file; check the path"},
    ]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    skipped: list[str] = []
    rows: list[Sample] = read_source(DataSource("mine", table="captions.jsonl"), tmp_path, skipped)
    assert [row.captions for row in rows] == [("a dog", "a pup")]
    assert skipped == [f"{tmp_path}/captions.jsonl: 1 rows are left out, for they say that the image could not be used"]
    (tmp_path / "captions.jsonl").write_text(json.dumps(lines[1]))
    with pytest.raises(OpenBlipError, match=r"captions.jsonl has no rows that can be used"):
        read_source(DataSource("mine", table="captions.jsonl"), tmp_path)
