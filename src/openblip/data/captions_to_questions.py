"""Make questions from captions, and statements from questions, by rules.

COCO-QA was made from captions by rules (Ren et al. 2015, https://arxiv.org/abs/1505.02074): the colours, numbers,
objects and places in a caption become questions. The same rules give more training questions for captioned images, and
their inverse gives captions for images that only have questions.
"""

from __future__ import annotations

from dataclasses import dataclass

COLORS = frozenset("black white red blue green yellow brown gray grey orange pink purple tan".split())
NUMBERS = frozenset("one two three four five six seven eight nine ten".split())
DETERMINERS = frozenset("a an the his her their its another some".split())
PLACE_PREPOSITIONS = frozenset("in on at through across along near into".split())
CLAUSE_ENDS = frozenset(
    "in on at with while and by near through across along over under into behind beside from to of as next "
    "down up around against for that which who is are , off onto outside inside during above below past".split()
)
NOT_THINGS = frozenset("front other top each back air one it them him her there something way side middle".split())


@dataclass(frozen=True)
class Question:
    """A question with its answer, both lower case.

    Attributes:
        answer: the most frequent answer.
        answers: the answer of each person, with repetitions; empty if there is only one.
    """

    question: str
    answer: str
    kind: str
    answers: tuple[str, ...] = ()


def questions_from_caption(caption: str) -> list[Question]:
    """All colour, number, object and location questions that the rules find in a clean caption."""
    words = caption.split()
    found: list[Question] = []
    for index, word in enumerate(words):
        following = words[index + 1] if index + 1 < len(words) else ""
        if word in COLORS and is_thing(following) and following not in COLORS:
            color = "gray" if word == "grey" else word
            found.append(Question(f"what is the color of the {following}", color, "color"))
        if word in NUMBERS and following.endswith("s") and not following.endswith("ss"):
            rest = _clause(words, index + 2)
            if rest:
                found.append(Question(f"how many {following} {rest}", word, "number"))
        if word.endswith("ing") and len(word) > 4 and index >= 2 and words[index - 1] in ("is", "are"):
            found += _about_action(words, index)
    return found


def statement_from_question(question: str, answer: str) -> str | None:
    """About the caption that a question of COCO-QA was made from; None if no rule applies.

    >>> statement_from_question("what is laying in the street", "hydrant")
    'hydrant is laying in the street'
    """
    words = question.split()
    if "what" not in words and "where" not in words and words[:2] != ["how", "many"]:
        return None
    if words[:2] == ["how", "many"]:
        return " ".join([answer, *words[2:]])
    if words[:6] == ["what", "is", "the", "color", "of", "the"]:
        return f"the {answer} {' '.join(words[6:])}"
    if words[0] == "where":
        verb, rest = words[1:2], words[2:]
        return " ".join([*rest, *verb, "in", "a", answer]) if verb and rest else None
    if words[0] == "what" and _asks_for_object(words):
        return " ".join([*words[2:], "a", answer])
    return " ".join(answer if word == "what" else word for word in words)


def _about_action(words: list[str], verb: int) -> list[Question]:
    """Questions about "the <subject> is <verb>ing [determiner] <object> ... in the <place>"."""
    start = verb - 2
    while start > 0 and words[start - 1] not in CLAUSE_ENDS and words[start] not in DETERMINERS:
        start -= 1
    if words[start] not in DETERMINERS | NUMBERS:
        return []
    subject = ["the", *words[start + 1 : verb - 1]] if words[start] in DETERMINERS else words[start : verb - 1]
    if len(subject) < 2:
        return []
    be, found = words[verb - 1], []
    after = words[verb + 1 :]
    thing = _head_noun(after)
    if thing is not None:
        found.append(Question(f"what {be} {' '.join(subject)} {words[verb]}", thing, "object"))
    clause = " ".join(words[verb : min(len(words), verb + 9)])
    found.append(Question(f"what {be} {clause}", subject[-1], "object"))
    for index in range(verb + 1, len(words) - 1):
        if words[index] in PLACE_PREPOSITIONS:
            place = _head_noun(words[index + 1 :])
            if place is not None:
                found.append(Question(f"where {be} {' '.join(subject)} {words[verb]}", place, "location"))
            break
    return found


def _head_noun(words: list[str]) -> str | None:
    """The last word of the noun phrase that `words` begins with, if it begins with a determiner."""
    if not words or words[0] not in DETERMINERS:
        return None
    phrase: list[str] = []
    for word in words[1:5]:
        if word in CLAUSE_ENDS or word.endswith("ing") or word in DETERMINERS:
            break
        phrase.append(word)
    return phrase[-1] if phrase and is_thing(phrase[-1]) else None


def _clause(words: list[str], start: int) -> str:
    """Up to eight words that continue a count: "are running in the snow"."""
    rest = words[start : start + 8]
    if not rest:
        return ""
    if rest[0].endswith("ing"):
        rest = ["are", *rest]
    return " ".join(rest) if rest[0] in ("are", "run", "play", "sit", "stand", "walk", "jump") else ""


def _asks_for_object(words: list[str]) -> bool:
    """Whether "what" is the object, as in "what is the man carrying" and "what does the man carry"."""
    if len(words) <= 3 or words[2] not in DETERMINERS:
        return False
    verb_follows = any(word.endswith("ing") for word in words[3:])
    return words[1] in ("does", "do") or (words[1] in ("is", "are") and verb_follows)


def is_thing(word: str) -> bool:
    """Whether a word may be a noun for a thing: no function word, no side or part of an image."""
    return word.isalpha() and len(word) > 2 and word not in NOT_THINGS and word not in CLAUSE_ENDS
