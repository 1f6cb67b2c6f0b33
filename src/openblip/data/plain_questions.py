"""Questions that people ask about any photo, made from its captions by rules.

The questions of data sets are specific ("what is running in the grass"). People who try a model ask "what is this",
"what is the dog doing", "is there a cat in the picture". A small model only knows the kinds of questions that it was
trained on, so these are made from what several captions of an image agree on.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Sequence

from openblip.data.captions_to_questions import (
    CLAUSE_ENDS,
    COLORS,
    DETERMINERS,
    NUMBERS,
    PLACE_PREPOSITIONS,
    Question,
    is_thing,
)
from openblip.text import text_list

ANIMALS = frozenset(
    "dog cat horse bird cow sheep elephant giraffe zebra bear duck goat monkey fish deer camel goose penguin "
    "turtle rabbit lion tiger swan pigeon seagull parrot owl bull pig chicken frog snake butterfly".split()
)
PLURALS = {"sheep": "sheep", "fish": "fish", "deer": "deer", "geese": "goose", "puppy": "dog", "puppies": "dog"} | {
    "kitten": "cat", "kittens": "cat", "ponies": "horse", "pony": "horse", "butterflies": "butterfly"
}  # fmt: skip
PEOPLE = frozenset(
    "man woman boy girl child baby person people men women boys girls children kids kid toddler couple lady guy "
    "player players surfer skier skateboarder snowboarder climber cyclist biker".split()
)
NAMED_IN = {
    "dog": 0.226, "ball": 0.037, "bike": 0.025, "horse": 0.02, "hat": 0.019, "cat": 0.016, "skateboard": 0.016,
    "tree": 0.014, "car": 0.012, "bird": 0.012, "giraffe": 0.011, "bicycle": 0.01, "bench": 0.01, "boat": 0.009,
    "elephant": 0.008, "bear": 0.008, "motorcycle": 0.008, "zebra": 0.007, "cow": 0.005, "frisbee": 0.005,
    "sheep": 0.004, "snowboard": 0.003, "truck": 0.002,
}  # fmt: skip
"""Things that "is there a ..." asks about, with the share of images in Flickr8k and COCO-QA that name them."""
KIN = {"bike", "bicycle", "motorcycle"}
"""Names of one thing, or of things that are often confused."""
NO_ACTIONS = frozenset(
    "building something nothing clothing wearing being having trying making getting attempting".split()
)
TRANSITIVE = frozenset("holding carrying doing riding catching chasing using taking pulling throwing".split())
NO_PLACES = frozenset("mouth camera background area hand hands arms head photo picture circle line".split())
MEN = frozenset("people men women children".split())
THING_QUESTIONS = (
    "what is this", "what is in the picture", "what do you see", "what is in this photo", "what is it", "what is shown"
)  # fmt: skip
PERSON_QUESTIONS = ("who is this", "who is in the picture", "who do you see")
ANIMAL_QUESTIONS = (
    "what animal is this", "what animal is in the picture", "what kind of animal is this", "which animal do you see"
)  # fmt: skip
PRESENT_QUESTIONS = ("is there {} {}", "is there {} {} in the picture", "do you see {} {}", "can you see {} {}")


def plain_questions(captions: str | Iterable[str], others: str | Iterable[str] = ()) -> list[Question]:
    """The questions that the rules find, always the same: one of each kind, and one about the presence of each thing.

    Args:
        captions: the cleaned captions of one image (see `clean_caption`).
        others: other sentences about it; they are used for animals only, not for the main subject.
    """
    captions, others = text_list(captions, "the captions"), text_list(others, "the others")
    rng = random.Random(hashlib.md5("\n".join((*captions, *others)).encode()).digest())
    split = [caption.split() for caption in captions]
    animals = _about_animal([*split, *map(str.split, others)], rng)
    animal = animals[0].answer if animals else None
    found = [*_about_subject(split, rng), *animals, *_about_color(split), *_about_number(split)]
    return [*found, *_about_presence(split, animal, rng)]


def singular(word: str) -> str:
    """The singular of a regular noun; other words unchanged.

    >>> [singular(word) for word in ("dogs", "puppies", "benches", "glass")]
    ['dog', 'dog', 'bench', 'glass']
    """
    if word in PLURALS:
        return PLURALS[word]
    if word.endswith(("ches", "shes", "xes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _about_subject(captions: Sequence[list[str]], rng: random.Random) -> list[Question]:
    """What or who this is, what it is doing and where it is."""
    subjects = [(subject, words) for words in captions if (subject := _subject(words)) is not None]
    head = _commonest(words[verb - 1] for (verb, _), words in subjects)
    if head is None or sum(head in words for words in captions) < min(2, len(captions)):
        return []
    templates = PERSON_QUESTIONS if head in PEOPLE and rng.random() < 0.5 else THING_QUESTIONS
    found = [Question(rng.choice(templates), head, "thing")]
    acts = [
        (" ".join(words[action : action + 1] + _complement(words, action + 1)), words, action)
        for (verb, action), words in subjects
        if action and words[verb - 1] == head
    ]
    acts = [act for act in acts if act[0] not in TRANSITIVE]
    if not acts:
        return found
    be = _be(head)
    verb = _commonest(words[action] for _, words, action in acts)
    answer = rng.choice([answer for answer, words, action in acts if words[action] == verb])
    found.append(Question(f"what {be} the {head} doing", answer, "action"))
    places = [place for _, words, action in acts for place in _places(words, action + 1)]
    if places:
        found.append(Question(f"where {be} the {head}", rng.choice(places), "location"))
    return found


def _subject(words: list[str]) -> tuple[int, int] | None:
    """The end of the noun phrase at the beginning of a caption, and the index of its "-ing" verb (0: none).

    Only phrases before "is", "are" or an "-ing" form count: in "a dog jumps", rules cannot tell which word is the noun.
    """
    if len(words) < 3 or words[0] not in DETERMINERS | NUMBERS:
        return None
    for index in range(2, min(len(words), 7)):
        act = _is_action(words[index])
        if act or words[index] in ("is", "are", "wearing"):
            if not is_thing(words[index - 1]) or words[index - 1] in COLORS | {"group"}:
                return None
            if not act and words[index] != "wearing" and index + 1 < len(words) and _is_action(words[index + 1]):
                return index, index + 1
            return index, index if act else 0
        if words[index] in CLAUSE_ENDS:
            return None
    return None


def _is_action(word: str) -> bool:
    return word.endswith("ing") and len(word) > 4 and word not in NO_ACTIONS


def _complement(words: list[str], start: int) -> list[str]:
    """ "a frisbee" of "a red frisbee in", "in the grass" of "in the tall grass and"; else nothing."""
    preposition = words[start : start + 1] if words[start : start + 1] and words[start] in CLAUSE_ENDS else []
    if preposition and preposition[0] not in PLACE_PREPOSITIONS | {"over", "down", "up", "with", "for", "off", "under"}:
        return []
    phrase = words[start + len(preposition) :]
    head = _head(phrase)
    return [] if head is None else [*preposition, phrase[0], head]


def _head(phrase: list[str]) -> str | None:
    """The noun of a phrase that begins with a determiner and has a recognizable end."""
    if not phrase or phrase[0] not in DETERMINERS:
        return None
    for index in range(1, min(len(phrase), 5) + 1):
        if _ends(phrase, index):
            noun = phrase[index - 1]
            return noun if index > 1 and is_thing(noun) and noun not in COLORS else None
    return None


def _places(words: list[str], start: int) -> list[str]:
    found = []
    for index in range(start, len(words) - 2):
        if words[index] in PLACE_PREPOSITIONS:
            place = _head(words[index + 1 :])
            found += [place] if place is not None and place not in NO_PLACES else []
    return found[:1]


def _about_animal(sentences: Sequence[list[str]], rng: random.Random) -> list[Question]:
    """Which animal it is, if most sentences that name an animal name the same one."""
    named = Counter(animal for words in sentences for animal in {singular(word) for word in words} if animal in ANIMALS)
    if not named:
        return []
    (animal, times), *rest = named.most_common(2)
    if times < min(2, len(sentences)) or (rest and rest[0][1] > times / 2):
        return []
    return [Question(rng.choice(ANIMAL_QUESTIONS), animal, "animal")]


def _about_color(captions: Sequence[list[str]]) -> list[Question]:
    """The colour that most captions give a thing whose noun phrase has a recognizable end."""
    stated = [
        (words[index + 1], "gray" if words[index] == "grey" else words[index])
        for words in captions
        for index in range(len(words) - 1)
        if words[index] in COLORS and is_thing(words[index + 1]) and words[index + 1] not in COLORS
        and not _is_action(words[index + 1]) and _ends(words, index + 2)
    ]  # fmt: skip
    if not stated:
        return []
    (thing, color), _ = Counter(stated).most_common(1)[0]
    return [Question(f"what color {_be(thing)} the {thing}", color, "color")]


def _about_number(captions: Sequence[list[str]]) -> list[Question]:
    """How many things there are, if captions begin with a number and most of them agree."""
    counted = Counter(
        (words[1], words[0]) for words in captions if len(words) > 1 and words[0] in NUMBERS and _ends(words, 2)
    )
    if not counted:
        return []
    (things, number), _ = counted.most_common(1)[0]
    return [Question(f"how many {things} are there", number, "number")] if singular(things) != things else []


def _ends(words: Sequence[str], index: int) -> bool:
    """Whether a noun phrase ends here: before a preposition, "is", an "-ing" form, or a verb in "-s" ("jumps")."""
    if index >= len(words) or words[index] in CLAUSE_ENDS or words[index] in ("is", "are"):
        return True
    return words[index].endswith("ing") or (words[index].endswith("s") and not words[index].endswith("ss"))


def _be(noun: str) -> str:
    plural = noun in MEN or (noun.endswith("s") and singular(noun) != noun)
    return "are" if plural else "is"


def _about_presence(captions: Sequence[list[str]], animal: str | None, rng: random.Random) -> list[Question]:
    """Whether a thing is there: "yes" if two captions name it or it is the animal, "no" if it is surely absent.

    A thing is surely absent if none of at least three captions names it, or if it is an animal and there is another
    animal. "yes" and "no" are equally frequent for each thing: otherwise a model would learn "no" without looking.
    """
    named = Counter(thing for words in captions for thing in {singular(word) for word in words} if thing in NAMED_IN)
    present = {thing for thing, times in named.items() if times >= 2} | ({animal} & NAMED_IN.keys())
    enough = len(captions) >= 3
    absent = [
        thing
        for thing, share in NAMED_IN.items()
        if (enough or (animal is not None and thing in ANIMALS))
        and not named[thing]
        and thing != animal
        and not (thing in KIN and any(named[other] for other in KIN))
        and rng.random() < share / (1 - share)
    ]
    answers = [*((thing, "yes") for thing in NAMED_IN if thing in present), *((thing, "no") for thing in absent)]
    return [
        Question(rng.choice(PRESENT_QUESTIONS).format(_article(thing), thing), answer, "presence")
        for thing, answer in answers
    ]


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def _commonest(words: Iterable[str]) -> str | None:
    counted = Counter(words).most_common(1)
    return counted[0][0] if counted else None
