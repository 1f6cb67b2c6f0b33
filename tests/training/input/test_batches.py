"""Which images make the batches of an epoch."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from openblip.data.captions_to_questions import Question
from openblip.data.pairs import DataSource, ImageText
from openblip.data.views import MIRRORED_VIEW
from openblip.training.input.batches import BatchPlan


def images(name: str, count: int) -> list[ImageText]:
    return [ImageText(Path(f"{name}{number}.jpg"), (f"text {number}",)) for number in range(count)]


def test_an_epoch_shows_each_image_as_often_as_its_source_says() -> None:
    sources = [DataSource("a", views=4), DataSource("b", repeat=3, mirror=False, views=4)]
    plan = BatchPlan(sources, [images("a", 5), images("b", 5)], batch_size=4, seed=1)
    drawn = [each for batch in plan.batches(epoch=0) for each in batch]
    assert plan.steps == len(list(plan.batches(0))) == 5
    times = Counter(each.pair.image.name for each in drawn)
    assert {times[f"a{number}.jpg"] for number in range(5)} == {1}
    assert {times[f"b{number}.jpg"] for number in range(5)} == {3}
    # each time with other randomness, and never as its mirror image
    again = [each for each in drawn if each.pair.image.name == "b0.jpg"]
    assert len({each.rng.random() for each in again}) == 3
    assert MIRRORED_VIEW not in {each.view for each in drawn if each.source == 1}


def test_a_resumed_epoch_goes_on_with_the_same_batches() -> None:
    def shown(skip: int) -> list[list[tuple[str, int, float]]]:
        plan = BatchPlan([DataSource("a", repeat=2)], [images("a", 9)], batch_size=3, seed=7)
        return [[(each.pair.image.name, each.view, each.rng.random()) for each in b] for b in plan.batches(2, skip)]

    assert shown(0)[4:] == shown(4)
    assert shown(0) != sorted(shown(0))


def test_questions_lose_a_share_of_their_words_others_each_time_and_nothing_else_does() -> None:
    asked = Question("what is on the right side of the old lamp", "a chair with four legs", "object")
    image = ImageText(Path("a.jpg"), ("a lamp",), (), (asked, Question("where", "here", "place")), (asked,))
    source = DataSource("a", repeat=400, word_dropout=0.3)

    def shown() -> list[ImageText]:
        return [row.pair for batch in BatchPlan([source], [[image]], 4, seed=1).batches(0) for row in batch]

    seen = shown()
    assert seen == shown()
    words = asked.question.split()
    kept = [len(each.questions[0].question.split()) for each in seen]
    assert abs(sum(kept) / len(kept) / len(words) - 0.7) < 0.03
    assert len({each.questions[0].question for each in seen}) > 150
    for each in seen:
        rest = iter(words)
        assert all(word in rest for word in each.questions[0].question.split())  # in their order
        assert each.questions[1].question == "where"  # all of it is never left out
        assert [question.answer for question in each.questions] == [asked.answer, "here"]
        assert replace(each, questions=()) == replace(image, questions=())
