"""Greedy and beam ids equal those of transformers' generate on the same weights."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from openblip.generation.engine import generate
from openblip.generation.options import GenerationOptions
from tests.pairs.generation import TRIALS, VOCABULARY, compare, cut, models, opts, pad_left, random_prompts


@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty`", "ignore:Passing `no_repeat_ngram_size`")
@pytest.mark.parametrize("beams", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", TRIALS)
def test_ids_and_scores_equal_transformers(kind: str, beams: int) -> None:
    compared = compare(kind, beams)
    assert compared.unequal == []
    assert compared.score_gap <= 1e-5
    # Both ways of ending were really met.
    assert min(compared.stopped[True], compared.stopped[False]) >= 8


@pytest.mark.filterwarnings("ignore:Passing `no_repeat_ngram_size`")
@pytest.mark.parametrize("kind", TRIALS)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_sampled_ids_without_repetitions_equal_transformers(kind: str, size: int) -> None:
    repeating = 0
    for trial in range(12):
        theirs, ours = models(kind, trial % 4)
        prompts = random_prompts(random.Random(trial), 1)
        options = GenerationOptions(max_new_tokens=14, temperature=0.7, top_k=8, no_repeat_ngram_size=size)
        embeds, mask = pad_left(prompts)
        torch.manual_seed(trial)
        expected = theirs.generate(
            inputs_embeds=embeds,
            attention_mask=mask,
            max_new_tokens=14,
            eos_token_id=None,
            do_sample=True,
            temperature=0.7,
            top_k=8,
            no_repeat_ngram_size=size,
        )[0]
        torch.manual_seed(trial)
        ids = generate(ours, prompts, options)[0][0].ids
        assert ids == tuple(expected[int(kind == "t5") :].tolist())
        torch.manual_seed(trial)
        repeating += generate(ours, prompts, replace(options, no_repeat_ngram_size=0))[0][0].ids != ids
    assert repeating >= 3


@pytest.mark.parametrize(
    "options", [{"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 1}]
)
@pytest.mark.parametrize("beams", [1, 3])
def test_prompt_ids_count_as_repetitions(beams: int, options: dict[str, Any]) -> None:
    rng = random.Random(0)
    for trial in range(10):
        theirs, ours = opts(trial % 4)
        ids = torch.randint(0, VOCABULARY, (2, rng.randint(2, 8)))
        asked = GenerationOptions(max_new_tokens=8, num_beams=beams, stop_ids=(5,), **options)
        expected = theirs.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=8,
            num_beams=beams,
            do_sample=False,
            **options,
        )
        found = generate(ours, list(ours.embed(ids).detach()), asked, prompt_ids=list(ids))
        for row, texts in enumerate(found):
            assert texts[0].ids == cut(expected[row, ids.shape[1] :].tolist(), (5,))
