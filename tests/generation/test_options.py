"""Options of generation: one set of names, checked once, merged once."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, get_type_hints

import numpy as np
import pytest

from openblip.errors import OptionError
from openblip.generation.options import (
    PLAIN,
    USER_OPTIONS,
    GenerationOptions,
    ResolvedOptions,
    TextOptions,
    read_options,
    user_options,
)

MODEL = GenerationOptions(num_beams=5, max_new_tokens=30, min_new_tokens=8, length_penalty=1.0)


def test_typed_keywords_are_the_users_fields() -> None:
    hints = get_type_hints(GenerationOptions)
    assert get_type_hints(TextOptions) == {name: hints[name] for name in USER_OPTIONS}


def test_resolved_options_narrow_every_field_but_the_seed() -> None:
    narrowed = ResolvedOptions.__annotations__.keys()
    assert narrowed == GenerationOptions.__dataclass_fields__.keys() - {"seed", "vocabulary"}
    assert {name for name, value in asdict(GenerationOptions().resolved()).items() if value is None} == {
        "seed",
        "vocabulary",
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"num_beams": None}, {}),
        ({"num_beams": 1}, {"num_beams": 1}),
        ({"max_new_tokens": 5}, {"max_new_tokens": 5, "min_new_tokens": 5}),
        ({"max_new_tokens": 50}, {"max_new_tokens": 50}),
        ({"num_return_sequences": 3}, {"num_return_sequences": 3}),
        ({"num_return_sequences": 7}, {"num_return_sequences": 7, "num_beams": 7}),
        ({"top_p": 0.9}, {"top_p": 0.9, "num_beams": 1, "do_sample": True}),
        ({"temperature": 2.0, "seed": 0}, {"temperature": 2.0, "seed": 0, "num_beams": 1, "do_sample": True}),
        (
            {"top_k": 0, "num_return_sequences": 7},
            {"top_k": 0, "num_return_sequences": 7, "num_beams": 1, "do_sample": True},
        ),
    ],
)
def test_what_is_not_said_is_the_models_own(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert GenerationOptions(**given).merged(MODEL) == GenerationOptions(**(user_options(MODEL) | expected))


def test_a_beam_search_takes_the_place_of_a_model_that_samples() -> None:
    sampling = GenerationOptions(top_p=0.9, seed=1, max_new_tokens=9)
    assert GenerationOptions(num_beams=3).merged(sampling) == GenerationOptions(num_beams=3, max_new_tokens=9)
    assert GenerationOptions(num_return_sequences=3).merged(sampling).resolved().do_sample
    assert not GenerationOptions(num_beams=1).merged(sampling).resolved().do_sample


@pytest.mark.parametrize("defaults", [MODEL, PLAIN, GenerationOptions(top_p=0.5), GenerationOptions()])
@pytest.mark.parametrize("given", [{}, {"num_beams": 3}, {"top_k": 4}, {"num_return_sequences": 2}])
def test_merging_again_changes_nothing(given: dict[str, Any], defaults: GenerationOptions) -> None:
    merged = GenerationOptions(**given).merged(defaults)
    assert merged.merged(defaults).resolved() == merged.resolved()
    resolved = merged.resolved()
    assert resolved.resolved() == resolved
    assert resolved.do_sample is (resolved.num_beams == 1 and ("top_k" in given or defaults.top_p == 0.5))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("beams", "did you mean num_beams?"),
        ("num_beam", "did you mean num_beams?"),
        ("max_tokens", "did you mean max_new_tokens?"),
        ("min_tokens", "did you mean min_new_tokens?"),
        ("max_length", "did you mean max_new_tokens?"),
        ("no_repeat_ngrams", "did you mean no_repeat_ngram_size?"),
        ("do_sample", "did you mean top_p, top_k or temperature?"),
        ("num_return_sequences", "did you mean num_captions?"),
        ("stop_ids", "use num_beams, max_new_tokens"),
        ("colour", "use num_beams, max_new_tokens"),
    ],
)
def test_a_wrong_name_is_told_the_right_one(name: str, told: str) -> None:
    with pytest.raises(OptionError, match="unknown option") as caught:
        read_options({name: 3})
    assert told in str(caught.value)


@pytest.mark.parametrize("name", USER_OPTIONS)
@pytest.mark.parametrize("value", ["3", "true", float("nan"), [1], 1j])
def test_a_value_of_the_wrong_kind_is_named(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=f"^{name} is "):
        read_options({name: value})


@pytest.mark.parametrize("name", sorted(set(USER_OPTIONS) - {"no_repeat_words"}))
def test_true_is_no_number(name: str) -> None:
    with pytest.raises(OptionError, match=f"^{name} is True"):
        read_options({name: True})


def test_numbers_of_numpy_are_numbers() -> None:
    assert read_options({"num_beams": np.int64(3), "length_penalty": np.float32(0.5)}) == GenerationOptions(
        num_beams=3, length_penalty=0.5
    )


def test_a_seed_needs_something_that_is_sampled() -> None:
    with pytest.raises(OptionError, match="a seed is for sampling"):
        GenerationOptions(seed=1).merged(MODEL).resolved()
