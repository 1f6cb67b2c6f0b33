"""`openblip chat`."""

from __future__ import annotations

import builtins
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openblip.cli import chat as cli_chat
from openblip.errors import printable
from openblip.models.model import Model

from .conftest import Run


def test_piped_questions_get_one_answer_a_line(
    run: Run, tiny_model: Model, tiny_model_folder: Path, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = ["what color is the ball?", "how many children?"]
    chat = tiny_model.chat(image_paths[0])
    expected = [chat.ask(question) for question in questions]
    chat.turns.clear()
    expected.append(chat.ask(questions[1]))
    assert expected[2] != expected[1], "the test model must mind what was said before"
    typed = "\n".join([*questions, "/reset", questions[1], "", "never asked"])
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    ran = run("chat", image_paths[0], "-m", tiny_model_folder)
    assert (ran.code, ran.err) == (0, "")
    assert ran.lines == expected


def test_a_wrong_question_ends_a_piped_conversation(
    run: Run, tiny_model_folder: Path, image_paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("?\nwhat color is the ball?\n"))
    ran = run("chat", image_paths[0], "-m", tiny_model_folder)
    assert (ran.code, ran.out) == (2, "")
    assert "the question is empty" in ran.err


@pytest.mark.parametrize(
    ("given", "options", "greedy"),
    [
        ([], {"num_beams": 1}, True),
        (["--num-beams", "3"], {"num_beams": 3}, False),
        (["--top-p", "0.9", "--seed", "3"], {"top_p": 0.9, "seed": 3}, True),
    ],
)
def test_a_person_is_prompted_and_may_err(
    run: Run,
    tiny_model: Model,
    tiny_model_folder: Path,
    image_paths: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    given: list[str],
    options: Any,
    greedy: bool,
) -> None:
    """Answers that are not searched for appear piece by piece."""
    streamed = []
    show = cli_chat.print_pieces
    monkeypatch.setattr(cli_chat, "print_pieces", lambda pieces: streamed.append(True) or show(pieces))

    def typed() -> Iterator[str]:
        yield from ("?", "what color is the ball?")
        raise EOFError

    keyboard = typed()

    def read(prompt: str) -> str:
        assert prompt == "> "
        try:
            return next(keyboard)
        except RuntimeError as ended:
            raise EOFError from ended

    monkeypatch.setattr(builtins, "input", read)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    ran = run("chat", image_paths[0], "-m", tiny_model_folder, *given)
    assert ran.code == 0
    assert "the question is empty" in ran.err
    assert ran.lines == [printable(tiny_model.ask(image_paths[0], "what color is the ball?", **options)), ""]
    assert streamed == ([True] if greedy else [])
