"""The reward is the captioning world's CIDEr-D."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openblip.training.tasks.scst import CiderReward

WORDS = ["a", "dog", "cat", "runs", "red", "ball", "the", "on", "."]
sentences = st.lists(st.sampled_from(WORDS), min_size=1, max_size=9).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(sentences, st.lists(sentences, min_size=1, max_size=4)), min_size=2, max_size=5))
def test_the_reward_is_cider_d(rows: list[tuple[str, list[str]]]) -> None:
    cider = pytest.importorskip("pycocoevalcap.cider.cider")
    references = {str(name): texts for name, (_, texts) in enumerate(rows)}
    said = {str(name): [text] for name, (text, _) in enumerate(rows)}
    _, expected = cider.Cider().compute_score(references, said)
    reward = CiderReward(references)
    assert [reward.score(name, said[name][0]) for name in said] == pytest.approx(list(expected), abs=1e-9)


def test_a_persons_words_earn_more_than_a_strangers() -> None:
    reward = CiderReward({"a": ["a dog runs .", "the red dog runs ."], "b": ["a cat on the ball ."]})
    assert reward.score("a", "a dog runs .") > reward.score("a", "a dog") > reward.score("a", "a cat on the ball .")
    assert reward.score("a", "") == 0
