"""Questions from captions and statements from questions, on sentences of the kind they were written for."""

from __future__ import annotations

import pytest

from openblip.data.captions_to_questions import Question, questions_from_caption, statement_from_question


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        (
            "a black dog is running in the grass",
            {
                Question("what is the color of the dog", "black", "color"),
                Question("what is running in the grass", "dog", "object"),
                Question("where is the black dog running", "grass", "location"),
            },
        ),
        (
            "three dogs are playing",
            {
                Question("how many dogs are playing", "three", "number"),
                Question("what are playing", "dogs", "object"),
            },
        ),
        ("a grey cat", {Question("what is the color of the cat", "gray", "color")}),
        (
            "the man is riding a bicycle",
            {
                Question("what is the man riding", "bicycle", "object"),
                Question("what is riding a bicycle", "man", "object"),
            },
        ),
        ("a man and a woman", set()),
        ("", set()),
    ],
)
def test_questions_a_caption_answers(caption: str, expected: set[Question]) -> None:
    assert set(questions_from_caption(caption)) == expected


def test_every_answer_stands_in_its_caption() -> None:
    caption = "two brown dogs are chasing a red ball through the deep snow"
    questions = questions_from_caption(caption)
    assert questions
    for question in questions:
        assert question.answer in caption.split()
        assert question.answer not in question.question.split()


@pytest.mark.parametrize(
    ("question", "answer", "statement"),
    [
        ("what is laying in the street", "hydrant", "hydrant is laying in the street"),
        ("how many giraffes are eating", "four", "four giraffes are eating"),
        ("what is the color of the bus", "red", "the red bus"),
        ("the man wearing what rides an elephant", "hat", "the man wearing hat rides an elephant"),
        ("what is the man carrying", "bag", "the man carrying a bag"),
        ("where are many dishes", "sink", "many dishes are in a sink"),
        ("is it raining", "yes", None),
    ],
)
def test_statements(question: str, answer: str, statement: str | None) -> None:
    assert statement_from_question(question, answer) == statement
