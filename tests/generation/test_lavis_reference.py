"""Ids that LAVIS' own generation recorded on small random weights (tests/fixtures/lavis)."""

from __future__ import annotations

import pytest

from tests.pairs.lavis import opt_answers, opt_captions, t5_captions


@pytest.mark.parametrize("beams", [1, 5])
def test_captions(beams: int) -> None:
    ours, expected = opt_captions(beams)
    assert ours == expected


@pytest.mark.parametrize("beams", [1, 5])
def test_answers_to_questions_of_different_lengths(beams: int) -> None:
    ours, expected = opt_answers(beams)
    assert ours == expected


@pytest.mark.parametrize("beams", [1, 5])
def test_captions_of_t5(beams: int) -> None:
    ours, expected = t5_captions(beams)
    assert ours == expected
