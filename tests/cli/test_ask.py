"""`openblip ask`."""

from __future__ import annotations

from pathlib import Path

import pytest

from openblip.errors import printable
from openblip.models.model import Model

from .conftest import Run

QUESTIONS = ["what color is the ball?", "how many children?"]


def test_one_answer_stands_alone(run: Run, tiny_model: Model, tiny_model_folder: Path, image_paths: list[Path]) -> None:
    ran = run("ask", image_paths[0], QUESTIONS[0], "-m", tiny_model_folder)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == tiny_model.ask(image_paths[0], QUESTIONS[0]) + "\n"


def test_several_answers_are_told_apart(
    run: Run, tiny_model: Model, tiny_model_folder: Path, image_paths: list[Path]
) -> None:
    answers = tiny_model.ask(image_paths[0], QUESTIONS)
    ran = run("ask", image_paths[0], *QUESTIONS, "-m", tiny_model_folder)
    assert ran.lines == [f"{question} {printable(answer)}" for question, answer in zip(QUESTIONS, answers, strict=True)]
    ran = run("ask", image_paths[0].parent, QUESTIONS[0], "-m", tiny_model_folder)
    assert ran.lines == [
        f"{image_path}: {printable(tiny_model.ask(image_path, QUESTIONS[0]))}" for image_path in image_paths
    ]


def test_json_has_an_object_for_every_answer(
    run: Run, tiny_model: Model, tiny_model_folder: Path, mixed_folder: Path, tmp_path: Path
) -> None:
    ran = run("ask", mixed_folder, *QUESTIONS, "-m", tiny_model_folder, "--json", "--max-new-tokens", "4")
    assert ran.code == 1
    assert [(Path(record["image"]).name, record.get("question")) for record in ran.records] == [
        ("a.png", QUESTIONS[0]),
        ("a.png", QUESTIONS[1]),
        ("b.jpg", None),
        ("c.png", QUESTIONS[0]),
        ("c.png", QUESTIONS[1]),
    ]
    expected = tiny_model.ask(mixed_folder / "a.png", QUESTIONS, max_new_tokens=4, details=True)
    assert [one["answer"] for one in ran.records[:2]] == [answer.text for answer in expected]
    # The model at hand may have seen the image in a batch before, where sums round otherwise.
    assert [one["score"] for one in ran.records[:2]] == pytest.approx([answer.score for answer in expected], rel=1e-5)
    assert ran.err.count("\n") == 1
    assert "b.jpg" in ran.err


def test_an_unquoted_pattern_is_noticed(run: Run, image_paths: list[Path]) -> None:
    for command in ("ask", "match"):
        ran = run(command, *image_paths, "what is it?")
        assert ran.code == 2
        assert f"{image_paths[1]} is an image, not words" in ran.err


def test_streamed_answers_are_the_greedy_ones(
    run: Run, tiny_model: Model, tiny_model_folder: Path, mixed_folder: Path, image_paths: list[Path]
) -> None:
    ran = run("ask", image_paths[0], QUESTIONS[0], "-m", tiny_model_folder, "--stream")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == printable(tiny_model.ask(image_paths[0], QUESTIONS[0], num_beams=1)) + "\n"
    ran = run("ask", mixed_folder, *QUESTIONS, "-m", tiny_model_folder, "--stream")
    good = [mixed_folder / name for name in ("a.png", "c.png")]
    assert ran.lines == [
        f"{path}: {asked} {printable(tiny_model.ask(path, asked, num_beams=1))}" for path in good for asked in QUESTIONS
    ]
    assert ran.code == 1 and "b.jpg" in ran.err
    for options, told in ((["--json"], "leave out --json"), (["--num-beams", "2"], "a beam search chooses its text")):
        ran = run("ask", image_paths[0], QUESTIONS[0], "-m", tiny_model_folder, "--stream", *options)
        assert (ran.code, ran.out) == (2, "") and told in ran.err
