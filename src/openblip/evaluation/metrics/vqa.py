"""Accuracy of answers as the VQA challenge computes it (Antol et al. 2015, https://arxiv.org/abs/1505.00468).

The rules for normalizing answers are those of the challenge's evaluation, with its oddities, so that scores are
comparable with published ones: https://github.com/GT-Vision-Lab/VQA.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from openblip.errors import OpenBlipError, OptionError
from openblip.text import text_list

ANSWERS = "the answers to compare with"
"""The name of the answers in errors."""
ARTICLES = frozenset(("a", "an", "the"))
NUMBERS = {"none": "0", "zero": "0"} | {
    word: str(number) for number, word in enumerate("one two three four five six seven eight nine ten".split(), start=1)
}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
MOST_PERIODS = 32
"""At most this many full stops are removed: the challenge passes a flag of `re` as a count."""

_PERIOD = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")

_CONTRACTIONS = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's "
    "isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've "
    "shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're "
    "there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd "
    "where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're "
    "you've"
)
_DOUBLE_CONTRACTIONS = (
    "couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've "
    "there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've"
)
_ODD_CONTRACTIONS = {
    "somebody'd": "somebodyd",
    "ow's'at": "'ow's'at",
    "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at",
    "y'all'd've": "y'all'd've",
    "yall'd've": "y'all'd've",
    "y'alld've": "y'all'd've",
    "y'all'dve": "y'all'd've",
}


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:place] + word[place + 1 :] for place, letter in enumerate(word) if letter == "'"]


CONTRACTIONS = {
    short: word
    for word in (*_CONTRACTIONS.split(), *_DOUBLE_CONTRACTIONS.split())
    for short in _without_one_apostrophe(word)
} | _ODD_CONTRACTIONS
"""Contractions without their apostrophe, and with it."""


def normalize(answer: str) -> str:
    """An answer as the challenge compares it: no punctuation, articles or number words, contractions spelt out.

    >>> normalize("The two Dogs, dont bark.")
    "2 dogs don't bark"
    """
    text = _on_one_line(answer)
    plain = text
    joined = _COMMA_IN_NUMBER.search(text) is not None
    for mark in PUNCTUATION:
        beside_space = mark + " " in text or " " + mark in text
        plain = plain.replace(mark, "" if beside_space or joined else " ")
    plain = _PERIOD.sub("", plain, count=MOST_PERIODS)
    words = (NUMBERS.get(word, word) for word in plain.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _on_one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def vqa_accuracy(answer: str, truths: str | Iterable[str]) -> float:
    """The challenge's accuracy of one answer, from 0 to 1.

    Each person's answer is left out in turn, and scores min(1, agreeing others / 3); the accuracy is the mean. If one
    of ten people agrees, it is 0.3; for two it is 0.6, for three 0.9, for four 1. If all people give the same answer,
    nothing is normalized, neither their answer nor the model's.

    Args:
        truths: the answer of each person, usually ten; at least two.

    Raises:
        OptionError: there are fewer than two answers of people.
    """
    cleaned, people = _on_one_line(answer), [_on_one_line(truth) for truth in text_list(truths, ANSWERS)]
    if len(set(people)) > 1:
        cleaned, people = normalize(cleaned), [normalize(truth) for truth in people]
    return leave_one_out(cleaned, people)


def leave_one_out(answer: str, people: str | Iterable[str]) -> float:
    """The mean of min(1, agreeing others / 3), with each person left out in turn.

    Raises:
        OptionError: there are fewer than two people.
    """
    people = text_list(people, ANSWERS)
    if len(people) < 2:
        raise OptionError(f"VQA accuracy needs the answers of several people, {len(people)} given: use accuracy=exact")
    agree = [person == answer for person in people]
    total = sum(agree)
    return sum(min(1.0, (total - one) / 3) for one in agree) / len(agree)


def lemma_accuracy(answer: str, truths: str | Iterable[str]) -> float:
    """For OK-VQA: as `vqa_accuracy`, comparing the dictionary forms of the words ("racing dogs": "race dog").

    Raises:
        OptionError: there are fewer than two answers of people.
        OpenBlipError: simplemma is not installed.
    """
    return leave_one_out(lemmas(normalize(answer)), [lemmas(normalize(truth)) for truth in text_list(truths, ANSWERS)])


def lemmas(text: str) -> str:
    """Each word's dictionary form in English. Raises OpenBlipError when simplemma is not installed."""
    try:
        from simplemma import lemmatize
    except ImportError:
        raise OpenBlipError('lemmas need more packages: pip install "openblip[eval]"') from None
    return " ".join(lemmatize(word, lang="en").lower() for word in text.split())


def simple_accuracy(answer: str, truths: str | Iterable[str]) -> float:
    """The short formula that tutorials give: min(1, people who agree / 3), after normalizing both sides."""
    cleaned = normalize(answer)
    return min(1.0, sum(normalize(truth) == cleaned for truth in text_list(truths, ANSWERS)) / 3)


def exact_accuracy(answer: str, truths: str | Iterable[str]) -> float:
    """GQA's: 1 if the answer is one of the right ones after normalizing both sides, as in LAVIS, otherwise 0."""
    cleaned = normalize(answer)
    return float(any(normalize(truth) == cleaned for truth in text_list(truths, ANSWERS)))
