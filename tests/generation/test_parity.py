"""Greedy and beam ids equal those of transformers' generate on the same weights."""

from __future__ import annotations

import random

import pytest
import torch

from openblip.generation.engine import generate
from openblip.generation.options import GenerationOptions
from tests.pairs.generation import TRIALS, VOCABULARY, compare, cut, opts


@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty`")
@pytest.mark.parametrize("beams", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", TRIALS)
def test_ids_and_scores_equal_transformers(kind: str, beams: int) -> None:
    compared = compare(kind, beams)
    assert compared.unequal == []
    assert compared.score_gap <= 1e-5
    # Both ways of ending were really met.
    assert min(compared.stopped[True], compared.stopped[False]) >= 8


@pytest.mark.parametrize("beams", [1, 3])
def test_prompt_ids_count_as_repetitions(beams: int) -> None:
    draw = random.Random(0)
    for trial in range(10):
        theirs, ours = opts(trial % 4)
        ids = torch.randint(0, VOCABULARY, (2, draw.randint(2, 8)))
        options = GenerationOptions(max_new_tokens=8, num_beams=beams, repetition_penalty=1.5, stop_ids=(5,))
        expected = theirs.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            num_beams=beams,
            repetition_penalty=1.5,
            do_sample=False,
        )
        found = generate(ours, list(ours.embed(ids).detach()), options, prompt_ids=list(ids))
        for row, texts in enumerate(found):
            assert texts[0].ids == cut(expected[row, ids.shape[1] :].tolist(), (5,))
