"""VQA accuracy: cases worked by hand from the challenge's rules, and what must hold of any answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openblip.errors import OptionError
from openblip.evaluation.metrics.vqa import (
    CONTRACTIONS,
    exact_accuracy,
    lemma_accuracy,
    lemmas,
    normalize,
    simple_accuracy,
    vqa_accuracy,
)

# What the challenge's own evaluation gives; its rules were run on 200,000 strings when this was written.
NORMALIZED = {
    "The two Dogs, dont bark.": "2 dogs don't bark",
    "A An THE": "",
    "none": "0",
    "black/white": "black white",
    "black / white": "black white",
    "black -white": "black white",
    "half-eaten": "half eaten",
    "1,000": "1000",
    "1,000 half-eaten": "1000 halfeaten",  # a comma in a number drops all marks
    "3.5": "3.5",
    "3.": "3",
    "u.s.": "us",
    "yes\n": "yes",
    "10:30": "10:30",
    "'twas": "'twas",
    "twas couldntve couldnt've": "'twas couldntve couldn't've",
    "Im": "im",  # the challenge lists "Im", but looks for it in lower case
    "let's": "let's",
    "somebody'd": "somebodyd",
    "what?": "what",
    " one  two ": "1 2",
}


def test_normalizing() -> None:
    assert {text: normalize(text) for text in NORMALIZED} == NORMALIZED


def test_only_so_many_full_stops_go() -> None:
    assert normalize("a" + ".b" * 40) == "a" + "b" * 32 + ".b" * 8


def test_contractions_get_their_apostrophe() -> None:
    assert len(CONTRACTIONS) == 115
    assert CONTRACTIONS["wouldnt"] == "wouldn't"
    assert CONTRACTIONS["wouldn'tve"] == CONTRACTIONS["wouldnt've"] == "wouldn't've"
    assert "ill" not in CONTRACTIONS
    assert "its" not in CONTRACTIONS


@pytest.mark.parametrize(("agree", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1)])
def test_leave_one_out_over_ten_answers(agree: int, accuracy: float) -> None:
    truths = ["yes"] * agree + [f"no {number}" for number in range(10 - agree)]
    assert vqa_accuracy("Yes.", truths) == pytest.approx(accuracy)
    assert simple_accuracy("Yes.", truths) == pytest.approx(min(1, agree / 3))


def test_unanimous_answers_are_compared_as_they_are() -> None:
    assert vqa_accuracy("two", ["2"] * 10) == 0
    assert vqa_accuracy("2", ["2"] * 10) == 1
    assert vqa_accuracy("two", ["2"] * 9 + ["3"]) == 1
    assert simple_accuracy("two", ["2"] * 10) == 1


def test_lemmas() -> None:
    assert lemmas("racing dogs") == "race dog"
    truths = ["race"] * 5 + ["run"] * 5
    assert vqa_accuracy("racing", truths) == 0
    assert lemma_accuracy("racing", truths) == 1
    assert lemma_accuracy("walking", truths) == 0


def test_exact() -> None:
    assert exact_accuracy("The Dog.", ["dog"]) == 1
    assert exact_accuracy("cat", ["dog", "a cat"]) == 1
    assert exact_accuracy("a dog and a cat", ["dog"]) == 0


def test_one_person_cannot_be_left_out() -> None:
    with pytest.raises(OptionError, match="accuracy=exact"):
        vqa_accuracy("yes", ["yes"])


@given(st.lists(st.sampled_from(["yes", "no", "two", "2", "the 2", "a dog"]), min_size=2, max_size=12), st.randoms())
def test_the_order_of_people_does_not_matter(truths: list[str], random: object) -> None:
    shuffled = list(truths)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    for said in ("yes", "two", "dog"):
        for rule in (vqa_accuracy, simple_accuracy, lemma_accuracy, exact_accuracy):
            assert rule(said, truths) == pytest.approx(rule(said, shuffled))
            assert 0 <= rule(said, truths) <= 1
            assert rule(said, [*truths, "yes", said]) >= 0


@given(st.text(max_size=40))
def test_normalizing_any_text(text: str) -> None:
    words = normalize(text).split(" ")
    assert not {"a", "an", "the", "two"} & set(words)
