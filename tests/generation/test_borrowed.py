"""External language models say what transformers' own generate says, in batches of ragged prompts and step by step."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from openblip.checkpoints.language_models import LoadedLanguage
from openblip.errors import OptionError
from openblip.generation.engine import generate, stream
from openblip.generation.options import Generation, GenerationOptions

from ..language_models import CAUSAL, SEQ2SEQ, STOP, both, write_language_model

LENGTHS = (7, 2, 11, 5)
SEEDS = 3
STOPS = tuple(range(STOP, STOP + 60))
"""So many that some texts end by themselves."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """Their model and ours by family and seed."""

    @cache
    def load(kind: str, seed: int = 0) -> tuple[PreTrainedModel, LoadedLanguage]:
        return both(write_language_model(kind, tmp_path_factory.mktemp("external") / kind, seed))

    return load


def ragged(width: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, width, generator=generator) for length in LENGTHS]


def padded(prompts: list[Tensor], left: bool) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    embeds = torch.zeros(len(prompts), longest, prompts[0].shape[1])
    mask = torch.zeros(len(prompts), longest, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        place = slice(longest - len(prompt), None) if left else slice(len(prompt))
        embeds[row, place], mask[row, place] = prompt, 1
    return embeds, mask


def theirs_says(model: PreTrainedModel, prompts: list[Tensor], start: tuple[int, ...], **options: object) -> Tensor:
    """New ids, as many rows a prompt as are returned."""
    # An encoder with learnt positions counts padding in front.
    embeds, mask = padded(prompts, left=not start)
    begun = {"decoder_input_ids": torch.tensor([start] * len(prompts))} if start else {}
    found = model.generate(inputs_embeds=embeds, attention_mask=mask, do_sample=False, **begun, **options)
    return found[:, len(start) :]


def cut(ids: list[int]) -> tuple[int, ...]:
    ends = [place for place, token in enumerate(ids) if token in STOPS]
    return tuple(ids[: ends[0]] if ends else ids)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", [*CAUSAL, *SEQ2SEQ])
def test_ids_equal_transformers(pair, kind: str, beams: int) -> None:  # type: ignore[no-untyped-def]
    said: list[Generation] = []
    for seed in range(SEEDS):
        theirs, language = pair(kind, seed)
        ours, config = language.model, language.model.config
        prompts = ragged(config.token_width, seed)
        settings = {"max_new_tokens": 12, "num_beams": beams, "min_new_tokens": 2 * (seed % 2)}
        their_names = {**settings, "num_return_sequences": beams, "eos_token_id": list(STOPS), "pad_token_id": STOP}
        expected = theirs_says(theirs, prompts, config.start_ids, **their_names)
        options = GenerationOptions(**settings, num_return_sequences=beams, stop_ids=STOPS)
        found = [text for texts in generate(ours, prompts, options) for text in texts]
        assert [text.ids for text in found] == [cut(row) for row in expected.tolist()], seed
        said += found
    assert len({text.ids for text in said}) > len(said) / 2, "what is said hardly depends on what was read"
    assert {text.stopped for text in said} == {True, False}, "texts end in one way only"


@pytest.mark.parametrize("kind", ["llama", "gemma2", "bart"])
@pytest.mark.parametrize(
    "options",
    [
        GenerationOptions(
            max_new_tokens=9, do_sample=True, num_return_sequences=3, top_p=0.9, seed=4, stop_ids=(STOP,)
        ),
        GenerationOptions(
            max_new_tokens=9, num_beams=4, num_return_sequences=2, repetition_penalty=1.4, stop_ids=(STOP,)
        ),
    ],
    ids=["sample", "penalized-beam"],
)
def test_a_batch_equals_its_prompts_one_by_one(pair, kind: str, options: GenerationOptions) -> None:  # type: ignore[no-untyped-def]
    model = pair(kind)[1].model
    prompts = ragged(model.config.token_width, 5)
    together = generate(model, prompts, options)
    for texts, prompt in zip(together, prompts, strict=True):
        alone = generate(model, [prompt], options)[0]
        assert [text.ids for text in texts] == [text.ids for text in alone]
        for text, twin in zip(texts, alone, strict=True):
            assert text.log_probs == pytest.approx(twin.log_probs, abs=1e-4)
    assert len({text.ids for texts in together for text in texts}) > len(prompts)


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_a_stream_is_the_greedy_text(pair, kind: str) -> None:  # type: ignore[no-untyped-def]
    model = pair(kind)[1].model
    options = GenerationOptions(max_new_tokens=7, stop_ids=(STOP,))
    (prompt,) = ragged(model.config.token_width, 1)[:1]
    assert tuple(stream(model, prompt, options)) == generate(model, [prompt], options)[0][0].ids


@pytest.mark.parametrize(("kind", "prompt", "new"), [("llama", 90, 7), ("bart", 97, 1), ("bart", 5, 95)])
def test_more_tokens_than_positions_are_refused(pair, kind: str, prompt: int, new: int) -> None:  # type: ignore[no-untyped-def]
    model = pair(kind)[1].model
    with pytest.raises(OptionError, match="exceed the model's 96 positions"):
        generate(model, [torch.zeros(prompt, model.config.token_width)], GenerationOptions(max_new_tokens=new))
    generate(model, [torch.zeros(prompt - 1, model.config.token_width)], GenerationOptions(max_new_tokens=min(new, 6)))


def test_models_are_frozen_and_no_part_of_the_network(pair) -> None:  # type: ignore[no-untyped-def]
    model = pair("llama")[1].model.model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_paths_of_the_models_are_absolute(pair) -> None:  # type: ignore[no-untyped-def]
    assert Path(pair("llama")[1].source.place).is_absolute()
