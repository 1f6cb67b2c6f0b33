"""What holds of any generation: batches equal singles, log-probabilities are the model's, draws are fair."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from openblip.errors import OptionError
from openblip.generation.engine import generate, stream
from openblip.generation.logits_processors import shape_distribution
from openblip.generation.options import GenerationOptions
from openblip.nn.opt import Opt, OptConfig
from openblip.nn.t5 import T5, T5Config

VOCABULARY, WIDTH = 40, 32


@pytest.fixture(scope="module")
def decoder() -> Opt:
    torch.manual_seed(3)
    built = Opt(OptConfig(VOCABULARY, WIDTH, 2, 4, 64, max_positions=64)).eval()
    for parameter in built.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    return built.requires_grad_(False)


@pytest.fixture(scope="module")
def t5() -> T5:
    torch.manual_seed(3)
    built = T5(T5Config(VOCABULARY, WIDTH, 2, 2, 3, 8, 64, relative_buckets=8, relative_reach=12)).eval()
    for parameter in built.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return built.requires_grad_(False)


@pytest.fixture(scope="module", params=["decoder", "t5"])
def model(request: pytest.FixtureRequest) -> Opt | T5:
    built: Opt | T5 = request.getfixturevalue(request.param)
    return built


def prompts(seed: int, count: int) -> list[Tensor]:
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rng.randint(1, 12), WIDTH, generator=generator) for _ in range(count)]


OPTIONS = {
    "greedy": GenerationOptions(max_new_tokens=12, stop_ids=(3, 4, 5)),
    "beam": GenerationOptions(max_new_tokens=12, num_beams=4, num_return_sequences=3, stop_ids=(3, 4, 5)),
    "sample": GenerationOptions(
        max_new_tokens=12, do_sample=True, num_return_sequences=3, top_p=0.9, seed=11, stop_ids=(3, 4, 5)
    ),
    "penalized": GenerationOptions(
        max_new_tokens=12, num_beams=3, repetition_penalty=1.4, min_new_tokens=4, stop_ids=(3, 4)
    ),
}


@pytest.mark.parametrize("name", list(OPTIONS))
def test_a_batch_equals_its_prompts_one_by_one(model: Opt | T5, name: str) -> None:
    """In float64: how a batch rounds depends on the CPU's instructions, and two beams may be as near as that."""
    precise = copy.deepcopy(model).double()
    for seed in range(8):
        rows = [row.double() for row in prompts(seed, 6)]
        together = generate(precise, rows, OPTIONS[name])
        alone = [generate(precise, [row], OPTIONS[name])[0] for row in rows]
        for one, other in zip(together, alone, strict=True):
            assert [text.ids for text in one] == [text.ids for text in other]
            for text, twin in zip(one, other, strict=True):
                # Scores are summed in float32.
                assert text.score == pytest.approx(twin.score, rel=1e-6)
                assert text.log_probs == pytest.approx(twin.log_probs, rel=1e-6)


@pytest.mark.parametrize("name", list(OPTIONS))
def test_log_probabilities_are_the_models_own(model: Opt | T5, name: str) -> None:
    row = prompts(5, 1)[0]
    for text in generate(model, [row], OPTIONS[name])[0]:
        ids = torch.tensor(text.ids)
        if isinstance(model, T5):
            # One label more than there are tokens, for what comes after the last.
            hidden = model.hidden_before(row[None], None, torch.cat([ids, ids.new_zeros(1)])[None])[0]
        else:
            hidden = model(torch.cat([row, model.embed(ids)])[None])[0, len(row) - 1 :]
        table = model.logits(hidden).log_softmax(dim=-1)
        expected = table[torch.arange(len(ids)), ids].tolist()
        assert text.log_probs == pytest.approx(expected, abs=1e-4)
        if text.stop_log_prob is not None:
            last = table[len(ids)]
            assert any(
                text.stop_log_prob == pytest.approx(float(last[stop]), abs=1e-4) for stop in OPTIONS[name].stop_ids
            )


def test_results_are_sorted_and_different(model: Opt | T5) -> None:
    texts = generate(model, prompts(2, 1), GenerationOptions(max_new_tokens=9, num_beams=5, num_return_sequences=5))[0]
    scores = [text.score for text in texts]
    assert scores == sorted(scores, reverse=True)
    assert len({text.ids for text in texts}) == 5
    assert all(len(text.ids) == 9 for text in texts), "the prompt counted as new tokens"


def test_the_best_beam_is_at_least_as_likely_as_greedy(model: Opt | T5) -> None:
    for seed in range(10):
        rows = prompts(seed, 2)
        greedy = generate(model, rows, GenerationOptions(max_new_tokens=6))
        wide = generate(model, rows, GenerationOptions(max_new_tokens=6, num_beams=40, length_penalty=0.0))
        for one, other in zip(greedy, wide, strict=True):
            assert other[0].score >= one[0].score - 1e-5


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.0, 5, 1.0), (1.0, 0, 0.8), (1.3, 12, 0.6), (1.0, 0, 0.05), (1.0, 99, 1.0)],
)
def test_distribution_equals_transformers_warpers(temperature: float, top_k: int, top_p: float) -> None:
    logits = torch.randn(50, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 3
    expected = TemperatureLogitsWarper(temperature)(None, logits) if temperature != 1 else logits
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    options = GenerationOptions(do_sample=True, temperature=temperature, top_k=top_k, top_p=top_p).resolved()
    torch.testing.assert_close(shape_distribution(logits, options), expected.softmax(dim=1))


def test_draws_follow_the_distribution(decoder: Opt) -> None:
    row = prompts(1, 1)[0]
    options = GenerationOptions(max_new_tokens=1, do_sample=True, num_return_sequences=4000, top_k=4, seed=0).resolved()
    drawn = torch.tensor([text.ids[0] for text in generate(decoder, [row], options)[0]])
    chances = shape_distribution(decoder.logits(decoder(row[None])[:, -1]), options)[0]
    counts = torch.bincount(drawn, minlength=VOCABULARY).float()
    assert counts[chances == 0].sum() == 0
    expected = chances[chances > 0] * 4000
    chi_square = ((counts[chances > 0] - expected) ** 2 / expected).sum()
    assert chi_square < 16.3  # three degrees of freedom, one in a thousand


def test_seeds_repeat_and_differ(model: Opt | T5) -> None:
    rows = prompts(4, 2)

    def draw(seed: int | None) -> list[tuple[int, ...]]:
        options = GenerationOptions(max_new_tokens=10, do_sample=True, seed=seed)
        return [texts[0].ids for texts in generate(model, rows, options)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(None) != draw(None)


def test_stream_gives_the_same_tokens_one_by_one(model: Opt | T5) -> None:
    for name in ("greedy", "sample"):
        options = GenerationOptions(**{**vars(OPTIONS[name]), "num_return_sequences": 1})
        for row in prompts(6, 3):
            tokens = []
            for token in stream(model, row, options):
                tokens.append(token)
                assert not torch.is_inference_mode_enabled()
            assert tuple(tokens) == generate(model, [row], options)[0][0].ids


def test_a_prompt_at_the_limit_fits_and_one_beyond_is_refused(decoder: Opt) -> None:
    row = torch.randn(54, WIDTH)
    assert len(generate(decoder, [row], GenerationOptions(max_new_tokens=10))[0][0].ids) == 10
    with pytest.raises(OptionError, match="55 tokens and 10 new ones exceed the model's 64 positions"):
        generate(decoder, [torch.randn(55, WIDTH), row], GenerationOptions(max_new_tokens=10))
    assert generate(decoder, [], GenerationOptions()) == []


def test_t5_reads_its_prompts_once(t5: T5, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    encode = t5.encode
    monkeypatch.setattr(t5, "encode", lambda embeds, mask: read.append(embeds.shape) or encode(embeds, mask))
    generate(t5, prompts(1, 3), OPTIONS["beam"])
    assert len(read) == 1 and read[0][0] == 3


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"min_new_tokens": 31, "max_new_tokens": 30}, "min_new_tokens"),
        ({"num_beams": 0}, "num_beams"),
        ({"num_return_sequences": 2, "num_beams": 1}, "2 texts from num_beams=1"),
        ({"num_beams": 2, "do_sample": True}, "one or the other"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"num_return_sequences": 0}, "at least 1"),
    ],
)
def test_wrong_options_are_named(values: dict[str, float], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        GenerationOptions(**values)  # type: ignore[arg-type]
