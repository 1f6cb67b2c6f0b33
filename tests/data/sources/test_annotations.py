"""Annotation files: what is read, what is refused, and that held-out images stay held out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openblip.data.pairs import DataSource, load_pairs
from openblip.data.sources.annotations import is_held_out, read_captions, read_questions
from openblip.errors import OpenBlipError, OptionError


def write_lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def test_splits_and_paths(tmp_path: Path) -> None:
    rows = [
        {"image": "images/a.jpg", "captions": ["A dog.", "The dog"], "split": "train"},
        {"image": "images/b.jpg", "captions": ["A cat."], "split": "val"},
    ]
    path = write_lines(tmp_path / "captions.jsonl", rows)
    assert [row.image.name for row in read_captions(path, "val")] == ["b.jpg"]
    assert read_captions(path)[0].image == tmp_path / "images/a.jpg"
    assert read_captions(path)[0].captions == ("A dog.", "The dog")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"image": "a.jpg"}\n', "line 1, has no captions"),
        ('{"image": "a.jpg", "captions": ["x"]}\n{"image": \n', "line 2, is not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text(content)
    with pytest.raises(OpenBlipError, match=words):
        read_captions(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OpenBlipError, match="no annotation file"):
        read_questions(tmp_path / "none.jsonl")


def test_lone_texts_lists_and_objects(tmp_path: Path) -> None:
    """A lone text is one, not as many as it has letters; lists may be called .jsonl; texts may hold any character."""
    rows: list[dict[str, object]] = [
        {"image": "a.jpg", "captions": "a\u2028dog", "question": "What?", "answers": "dog"},
        {"image": "b\\c.jpg", "captions": {"raw": ["two"]}, "question": "What?", "answers": [{"answer": "cat"}, 2]},
    ]
    path = tmp_path / "rows.jsonl"
    for content in ("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), json.dumps(rows, indent=1)):
        path.write_text(content, encoding="utf-8-sig")
        assert [row.captions for row in read_captions(path)] == [("a\u2028dog",), ("two",)]
        assert [row.answers for row in read_questions(path)] == [("dog",), ("cat", "2")]
        assert [row.image for row in read_captions(path)] == [tmp_path / "a.jpg", tmp_path / "b/c.jpg"]
    for field, value, words in (
        ("captions", {"boxes": 1}, "has an object of boxes for captions"),
        ("captions", [["x"]], "has lists in a list for captions"),
        ("image", {"path": "a.jpg"}, "has dict for an image"),
        ("image", None, "names no image"),
        ("question", ["What?", "Why?"], "has 2 texts for question"),
    ):
        write_lines(path, [rows[0], {**rows[0], field: value}])
        with pytest.raises(OpenBlipError, match=rf"rows.jsonl, line 2, {words}"):
            read_captions(path) if field != "question" else read_questions(path)


def test_held_out_share_and_stability() -> None:
    paths = [Path(f"images/{number:012d}.jpg") for number in range(5000)]
    held_out = [path for path in paths if is_held_out(path, 10)]
    assert 400 < len(held_out) < 600
    assert held_out == [path for path in paths if is_held_out(Path("elsewhere") / path.name, 10)]
    # Fixed for ever: scores are only comparable on the same images.
    assert [int(path.stem) for path in held_out[:6]] == [10, 26, 35, 55, 64, 68]


def test_gather_joins_files_and_leaves_out_held_out_images(tmp_path: Path) -> None:
    images = [f"images/{number}.jpg" for number in range(40)]
    write_lines(
        tmp_path / "captions.jsonl",
        [{"image": image, "captions": ["A black dog is running in the grass ."]} for image in images],
    )
    questions = [
        {"image": image, "question": "What is running in the grass ?", "answers": ["Dog"], "type": "object"}
        for image in images
    ]
    write_lines(tmp_path / "vqa.jsonl", [*questions, {**questions[0], "image": "images/new.jpg"}])
    source = DataSource("both", "captions.jsonl", "vqa.jsonl", held_out=4, statements=True, make_questions=True)
    found = load_pairs(source, tmp_path)
    names = {pair.image.name for pair in found}
    assert names == {Path(i).name for i in [*images, "images/new.jpg"] if not is_held_out(Path(i), 4)}
    first = next(image for image in found if image.captions)
    assert first.captions == ("a black dog is running in the grass",)
    assert first.statements == ("dog is running in the grass",)
    assert first.questions[0].question == "what is running in the grass?"
    assert first.questions[0].answer == "dog"
    assert {question.kind for question in first.made_questions} >= {"color", "object"}


def test_a_source_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="needs one kind of data"):
        load_pairs(DataSource("empty"), tmp_path)
