"""Questions that people ask of any photo, on captions of the kind that data sets have."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from openblip.data.captions_to_questions import Question
from openblip.data.pairs import pair_of
from openblip.data.plain_questions import ANIMALS, KIN, NAMED_IN, plain_questions, singular
from openblip.data.sample import Sample
from openblip.data.sources.open import DataSource
from openblip.text import clean_caption

DOG = (
    "a dog is catching a red frisbee in the tall grass",
    "a brown dog jumps for a frisbee",
    "a brown dog is catching a frisbee",
    "the dog has a frisbee in its mouth",
)


def asked(captions: tuple[str, ...], others: tuple[str, ...] = ()) -> dict[str, Question]:
    return {question.kind: question for question in plain_questions(captions, others) if question.kind != "presence"}


def test_what_several_captions_agree_on() -> None:
    found = asked(DOG)
    assert found["thing"].answer == "dog"
    assert found["animal"].answer == "dog"
    assert found["action"] == Question("what is the dog doing", "catching a frisbee", "action")
    assert found["color"] == Question("what color is the dog", "brown", "color")
    assert "number" not in found


def test_what_a_single_caption_says_is_not_what_the_image_shows() -> None:
    assert "thing" not in asked(("a helmet is hanging on a bike", "two men ride", "people on the street"))
    assert "animal" not in asked(("a dog runs", "a man runs", "somebody runs in the street"))


@pytest.mark.parametrize(
    ("captions", "question"),
    [
        (("three dogs running in the snow", "dogs running"), Question("how many dogs are there", "three", "number")),
        (("two men are sitting on a bench",), Question("what are the men doing", "sitting on a bench", "action")),
        (("a man wearing a hat is in the sand",), None),
        (("a man is holding",), None),
        (("a man wearing hiking boots",), None),
        (("a girl is running on the beach",), Question("where is the girl", "beach", "location")),
        (("a dog is running with a ball in its mouth",), None),
    ],
)
def test_rules(captions: tuple[str, ...], question: Question | None) -> None:
    found = asked(captions)
    if question is None:
        assert not {"action", "location"} & found.keys() or found["action"].answer == "running with a ball"
        assert "location" not in found
    else:
        assert found[question.kind] == question


def test_animals_of_images_that_have_questions_alone() -> None:
    assert (
        asked((), ("what is eating leaves giraffe", "how many giraffes are standing two"))["animal"].answer == "giraffe"
    )
    assert not asked((), ("what is a cat chasing dog", "what is chasing a dog cat"))
    row = Sample((Path("x.jpg"),), question="what is sleeping on the bed?", answers=("cat",))
    made = pair_of(row, DataSource("coco", plain_questions=True)).made_questions
    assert {question.answer for question in made if question.kind != "presence"} == {"cat"}
    assert not pair_of(row, DataSource("coco")).made_questions


def presence(captions: tuple[str, ...], others: tuple[str, ...] = ()) -> dict[str, str]:
    found = [question for question in plain_questions(captions, others) if question.kind == "presence"]
    return {next(word for word in question.question.split() if word in NAMED_IN): question.answer for question in found}


def test_presence_is_asked_as_often_of_what_is_not_there_as_of_what_is() -> None:
    rng = random.Random(1)
    said = {thing: {"yes": 0, "no": 0} for thing in NAMED_IN}
    for number in range(20_000):
        things = [thing for thing, share in NAMED_IN.items() if rng.random() < share]
        captions = tuple(f"photo {number} {' '.join(things)}" for _ in range(3))
        for thing, answer in presence(captions).items():
            assert (thing in things) == (answer == "yes")
            said[thing][answer] += 1
    for thing, share in NAMED_IN.items():
        # four standard deviations of a count, and the kin that is not asked about beside its kin
        room = 4 * (2 * 20_000 * share) ** 0.5 + (0.06 * 20_000 * share if thing in KIN else 0)
        assert abs(said[thing]["yes"] - said[thing]["no"]) < room, thing


def test_absence_is_said_only_where_it_is_known() -> None:
    assert not presence(("a photo of something", "a photo of it"))
    assert presence((), ("what is eating leaves giraffe", "where is the giraffe field"))["giraffe"] == "yes"
    for number in range(500):
        found = presence((), (f"what is on sofa {number} cat", "what color is the cat black"))
        assert found.pop("cat") == "yes"
        assert found.keys() <= ANIMALS
        assert set(found.values()) <= {"no"}


def test_the_same_questions_each_time_and_one_of_a_kind() -> None:
    found = plain_questions(DOG)
    assert found == plain_questions(DOG)
    kinds = [question.kind for question in found if question.kind != "presence"]
    assert len(kinds) == len(set(kinds))


def test_no_caption_breaks_the_rules() -> None:
    rng = random.Random(2)
    words = [*"a an the is are in on of dog dogs red two running wearing with and its mouth".split(), ""]
    for _ in range(2000):
        captions = [clean_caption(" ".join(rng.choices(words, k=rng.randrange(9)))) for _ in range(rng.randrange(4))]
        for question in plain_questions(captions):
            assert question.question and question.answer


def test_singular() -> None:
    assert [singular(word) for word in ("dogs", "puppies", "benches", "glass", "sheep", "geese", "boxes", "man")] == [
        "dog", "dog", "bench", "glass", "sheep", "goose", "box", "man"
    ]  # fmt: skip
