"""Left and right change places in what is said of a mirror image."""

from __future__ import annotations

from pathlib import Path

import pytest

from openblip.data.captions_to_questions import Question
from openblip.data.mirrored_text import swap_sides
from openblip.data.pairs import ImageText

SWAPPED = [
    ("what is on the left side of the lamp?", "what is on the right side of the lamp?"),
    ("what is right of the bed and left to the door", "what is left of the bed and right to the door"),
    ("the left most chair, the rightmost one", "the right most chair, the leftmost one"),
    ("A dog in his Right hand.", "A dog in his Left hand."),
    ("two men in the bottom left corner look to the right", "two men in the bottom right corner look to the left"),
    ("left", "right"),
]
KEPT = [
    "a man right next to a dog",
    "the ball he has left behind",
    "the bike stands bright and upright by the lefty",
    "water left by the tide",
    "",
]


@pytest.mark.parametrize(("text", "other"), SWAPPED)
def test_named_sides_change_places_and_back(text: str, other: str) -> None:
    assert swap_sides(text) == other
    assert swap_sides(other) == text


@pytest.mark.parametrize("text", KEPT)
def test_words_that_name_no_side_stay(text: str) -> None:
    assert swap_sides(text) == text


def test_everything_said_of_an_image_is_turned() -> None:
    asked = Question("which side is the dog on", "left", "place", ("left", "left", "right"))
    image = ImageText(Path("a.jpg"), ("a dog on the left",), ("left of a cat",), (asked,), (asked,))
    turned = image.mirrored()
    assert turned.captions == ("a dog on the right",) and turned.statements == ("right of a cat",)
    assert turned.questions == turned.made_questions
    assert turned.questions[0] == Question("which side is the dog on", "right", "place", ("right", "right", "left"))
    assert turned.mirrored() == image
