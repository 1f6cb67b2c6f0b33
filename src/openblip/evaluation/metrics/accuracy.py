"""Exact-match accuracy of answers, overall and by kind of question."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from openblip.data.sources.annotations import Questioned
from openblip.errors import OptionError
from openblip.text import text_list


def normalise_answer(answer: str) -> str:
    """Lower case, single spaces, no full stop at the end."""
    return " ".join(answer.lower().split()).rstrip(".")


def exact_match(questions: Questioned | Iterable[Questioned], answers: str | Iterable[str]) -> dict[str, float]:
    """Share of answers equal to the truth: under "all", and under each kind where kinds are given.

    Raises:
        OptionError: not one answer a question.
    """
    questions = [questions] if isinstance(questions, Questioned) else list(questions)
    answers = text_list(answers, "the answers")
    if len(questions) != len(answers) or not questions:
        raise OptionError(f"{len(answers)} answers to {len(questions)} questions: give one for each")
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for question, answer in zip(questions, answers, strict=True):
        correct = normalise_answer(answer) == normalise_answer(question.answer)
        for kind in ("all", question.kind) if question.kind else ("all",):
            total[kind] += 1
            right[kind] += correct
    return {kind: right[kind] / total[kind] for kind in total}
