"""Metrics take one text or several, in any iterable, and never a text's letters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from openblip.data.plain_questions import plain_questions
from openblip.data.sources.annotations import Questioned
from openblip.errors import OptionError
from openblip.evaluation.metrics.accuracy import exact_match, label_accuracy
from openblip.evaluation.metrics.captions import score_captions
from openblip.evaluation.metrics.recall import score_retrieval
from openblip.evaluation.metrics.vqa import exact_accuracy, lemma_accuracy, simple_accuracy, vqa_accuracy
from openblip.models.abilities import matcher_of
from openblip.models.model import Model

KINDS: list[Callable[[Iterable[str]], Iterable[str]]] = [list, tuple, iter, lambda texts: (text for text in texts)]
RULES = [vqa_accuracy, lemma_accuracy, simple_accuracy, exact_accuracy]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
def test_answers_in_any_iterable(rule: Callable[..., float], kind: Callable[[Iterable[str]], Iterable[str]]) -> None:
    assert rule("yes", kind(["yes"] * 9 + ["no"])) == 1
    assert rule("no", kind(["yes"] * 10)) == 0


def test_a_lone_answer_is_one_persons() -> None:
    assert exact_accuracy("yes", "yes") == 1
    assert exact_accuracy("y", "yes") == 0
    assert simple_accuracy("e", "eee") == 0
    assert simple_accuracy("yes", "yes") == pytest.approx(1 / 3)
    for rule in (vqa_accuracy, lemma_accuracy):
        with pytest.raises(OptionError, match="answers of several people, 1 given"):
            rule("yes", "yes")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("truths", [None, 3, [1, 2], {"yes": 10}])
def test_what_are_no_answers(rule: Callable[..., float], truths: object) -> None:
    with pytest.raises(OptionError, match="the answers to compare with"):
        rule("yes", truths)


@pytest.mark.parametrize("kind", KINDS)
def test_captions_and_references_in_any_iterable(kind: Callable[[Iterable[str]], Iterable[str]]) -> None:
    said = {"1": "a dog runs on the beach", "2": "two red balls lie here"}
    expected = score_captions(said, {name: [text] for name, text in said.items()}, official=False)
    assert expected.bleu[0] == pytest.approx(1)
    assert score_captions(said, said, official=False) == expected
    found = score_captions(
        {name: kind([text]) for name, text in said.items()},  # type: ignore[misc]
        {name: kind([text]) for name, text in said.items()},
        official=False,
    )
    assert found == expected
    with pytest.raises(OptionError, match="1 has 2 captions"):
        score_captions({"1": kind(["a", "b"])}, {"1": "a"})  # type: ignore[dict-item]
    with pytest.raises(OptionError, match="captions are a list: give a dict"):
        score_captions(["a"], {"1": "a"})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_labels_and_exact_answers(kind: Callable[[Iterable[str]], Iterable[str]]) -> None:
    assert label_accuracy("cat", "cat")["accuracy"] == 1
    assert label_accuracy(kind(["cat", "dog"]), kind(["cat", "cat"]))["accuracy"] == 0.5
    asked = Questioned(image=Path("a.jpg"), question="what is it?", answers=("red",))
    assert exact_match(asked, "red") == {"all": 1}
    others = [asked, replace(asked, answers=("blue",))]
    assert exact_match(kind(others), kind(["red", "red"])) == {"all": 0.5}  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_questions_from_captions(kind: Callable[[Iterable[str]], Iterable[str]]) -> None:
    caption = "a dog is running on the beach"
    assert plain_questions(caption) == plain_questions(kind([caption]))
    assert plain_questions(caption)


def test_a_matcher_takes_a_lone_image_and_a_lone_text(tiny_model: Model, image_paths: list[Path]) -> None:
    matcher = matcher_of(tiny_model, "match")
    one = matcher.scores(image_paths[0], "a dog", itm=True, batch_size=2)
    several = matcher.scores([str(image_paths[0])], iter(["a dog"]), itm=True, batch_size=2)
    assert one.itc.shape == (1, 1)
    assert one.itc.equal(several.itc)
    assert matcher.embed_images(image_paths[0].read_bytes(), 2).equal(matcher.embed_images([image_paths[0]], 2))
    assert matcher.embed_texts("a dog", 2).equal(matcher.embed_texts(("a dog",), 2))
    found = tiny_model.rank_both(image_paths[:2], "a dog")
    assert score_retrieval(found, 0) == score_retrieval(found, iter([0]))
    with pytest.raises(OptionError, match="image_of_text names image 7"):
        score_retrieval(found, [7])
