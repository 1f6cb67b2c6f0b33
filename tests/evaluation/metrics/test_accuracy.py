"""Exact match, overall and by kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from openblip.data.sources.annotations import Questioned
from openblip.errors import OptionError
from openblip.evaluation.metrics.accuracy import exact_match


def ask(answers: tuple[str, ...], kind: str = "") -> Questioned:
    return Questioned(Path("a.jpg"), "what is it?", answers, kind)


def test_shares_by_kind() -> None:
    questions = [
        ask(("red",), "color"),
        ask(("Two",), "number"),
        ask(("lamp", "table"), "object"),
        ask(("blue",), "color"),
    ]
    scores = exact_match(questions, ["red", " two. ", "lamp, table", "green"])
    assert scores == {"all": 0.75, "color": 0.5, "number": 1.0, "object": 1.0}
    assert exact_match([ask(("lamp", "table"))], ["lamp"]) == {"all": 0.0}


def test_counts_must_agree() -> None:
    with pytest.raises(OptionError, match="1 answers to 2 questions"):
        exact_match([ask(("a",)), ask(("b",))], ["a"])
