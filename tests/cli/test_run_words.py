"""`openblip run caption --find, --replace, --tags`: columns of lists, and whose settings a job keeps to."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import openblip
from tests.cli.conftest import Run

EXAMPLES = Path(__file__).parents[2] / "examples"
PHOTOS = [EXAMPLES / name for name in ("000000199055.jpg", "000000358083.jpg", "000000377575.jpg")]


def table_of(folder: Path, lines: list[str]) -> Path:
    table = folder / "table.csv"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return table


def test_words_are_columns_of_lists(run: Run, tmp_path: Path) -> None:
    """What mini writes: a boy in a red shirt, a black and white cat, a white dog."""
    table = table_of(tmp_path, ["image", *map(str, PHOTOS), str(tmp_path / "gone.jpg")])
    animals = tmp_path / "animals.txt"
    animals.write_text("dog, puppy\ncat\n", encoding="utf-8")
    words = ["--find", f"colors,textures,{animals}", "--replace", "dog=puppy", "--prefix", "a green photo: "]
    assert run("run", "caption", table, "-o", tmp_path / "out.csv", *words).code == 1
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    model = openblip.load("mini", device="cpu")
    captions = [str(model.caption(path)) for path in PHOTOS]
    assert [row["caption"] for row in rows[:3]] == [
        f"a green photo: {text.replace('dog', 'puppy')}" for text in captions
    ]
    assert [json.loads(row["colors"]) for row in rows[:3]] == [["red"], ["black", "white"], ["white"]]
    assert [json.loads(row["animals"]) for row in rows[:3]] == [[], ["cat"], ["dog"]]
    assert [row["colors"] for row in rows[3:]] == [""] and rows[3]["error"]
    again = tmp_path / "out.jsonl"
    assert run("run", "caption", table, "-o", again, "--find", "colors", "--num-captions", "2").code == 1
    first = json.loads(again.read_text(encoding="utf-8").splitlines()[0])
    assert len(first["caption"]) == 2 and first["colors"] == ["red"]


def test_another_list_is_another_command(run: Run, tmp_path: Path) -> None:
    table = table_of(tmp_path, ["image", str(PHOTOS[0]), str(tmp_path / "gone.jpg")])
    words = tmp_path / "words.txt"
    words.write_text("red\n", encoding="utf-8")
    command = ["run", "caption", table, "-o", tmp_path / "out.csv", "--find", words]
    assert run(*command).code == 1
    words.write_text("# the same list, with a comment\nred\n", encoding="utf-8")
    assert run(*command, "--retry-errors").code == 1
    words.write_text("blue\n", encoding="utf-8")
    ran = run(*command, "--retry-errors")
    assert ran.code == 2 and "the work of another command (the word list words changed)" in ran.err
    ran = run(*command[:-1], "colors", "--retry-errors")
    assert ran.code == 2 and re.search("--find (was|changed)", ran.err) and "the word list colors changed" in ran.err


def test_answers_have_words_and_names_that_clash_are_refused(run: Run, tmp_path: Path) -> None:
    table = table_of(tmp_path, ["image,colors", f"{PHOTOS[0]},old"])
    command = ["run", "ask", table, "-q", "what color is the shirt?", "-o", tmp_path / "out.csv", "--find"]
    ran = run(*command, "colors")
    assert ran.code == 2 and "call the list otherwise, as in --find found_colors=colors" in ran.err
    assert run(*command, "found=colors", "--replace", "red=blue").code == 0
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["colors"] == "old" and json.loads(row["found"]) == ["blue"] and row["answer"] == "blue"


def test_tags_are_there_once(run: Run, tmp_path: Path) -> None:
    command = ["run", "caption", PHOTOS[2], "-o", tmp_path / "out.jsonl", "--tags"]
    assert run(*command, "--prefix", "my_dog, beach,", "--suffix", ", Beach, My dog, solo").code == 0
    tags = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))["caption"].split(", ")
    assert tags[:2] == ["my_dog", "beach"] and tags[-1] == "solo" and len(tags) == 4
