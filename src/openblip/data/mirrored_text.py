"""Swap "left" and "right" in texts about a mirrored image."""

from __future__ import annotations

import re

BEFORE = frozenset(
    "the to on at in from its his her their far extreme top bottom upper lower front back rear middle".split()
)
AFTER = frozenset(
    "side sides hand corner edge end of most half part top bottom to arm leg foot wall lane shoulder".split()
)
SIDE = re.compile(r"\b(left|right)(?=most\b|\b)", re.IGNORECASE)
WORD = re.compile(r"[a-z]+")
OTHER = {"left": "right", "right": "left"}


def swap_sides(text: str) -> str:
    """The text for the mirror image.

    Only "left" and "right" as sides change, not "he has left" or "that is right".

    >>> swap_sides("what is on the left side of the lamp")
    'what is on the right side of the lamp'
    """
    return SIDE.sub(_swapped, text)


def _swapped(found: re.Match[str]) -> str:
    word = found[1]
    if not _names_a_side(found):
        return word
    other = OTHER[word.lower()]
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other


def _names_a_side(found: re.Match[str]) -> bool:
    text = found.string.lower()
    before, after = WORD.findall(text[: found.start()]), WORD.findall(text[found.end() :])
    if not before and not after:
        return True  # an answer
    return not BEFORE.isdisjoint(before[-1:]) or not AFTER.isdisjoint(after[:1])
