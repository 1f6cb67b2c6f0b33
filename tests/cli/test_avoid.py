"""--avoid: words that texts do without, in singular and plural, given one by one or in a file."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Run

PHOTO = Path(__file__).parents[2] / "examples" / "000000377575.jpg"
"""What mini writes: a white dog is running on the beach."""


def test_captions_do_without_words(run: Run, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("dogs, puppy  # both\n", encoding="utf-8")
    said = run("caption", PHOTO, "--avoid", "White", "--avoid", words).out
    assert said.strip() and not {"white", "dog", "dogs", "puppy", "puppies"} & set(said.lower().split())
    assert {"white", "dog"} <= set(run("caption", PHOTO).out.split())


def test_a_run_does_without_words_and_keeps_to_them(run: Run, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("beach\n", encoding="utf-8")
    table = tmp_path / "table.csv"
    table.write_text(f"image\n{PHOTO}\n{tmp_path / 'gone.jpg'}\n", encoding="utf-8")
    command = ["run", "caption", table, "-o", tmp_path / "out.jsonl", "--avoid", words, "--avoid", "dog"]
    assert run(*command).code == 1
    caption = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()[0])["caption"]
    assert caption and not {"beach", "dog", "dogs"} & set(caption.split())
    words.write_text("sand\n", encoding="utf-8")
    ran = run(*command, "--retry-errors")
    assert ran.code == 2 and "the work of another command (the words of --avoid changed)" in ran.err


def test_what_is_no_word_is_refused(run: Run) -> None:
    for given, said in (
        ("run*", "--avoid takes words alone, without * and !"),
        ("...", "--avoid is '...': write words"),
    ):
        ran = run("caption", PHOTO, "--avoid", given)
        assert ran.code == 2 and said in ran.err
