"""Prompts behind a prefix that is read once say what they say in one piece, and nothing is left behind."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from openblip.errors import OptionError
from openblip.generation.engine import generate, stream
from openblip.generation.options import GenerationOptions
from openblip.generation.prefix import Prefix
from openblip.nn.kv_cache import KeyValueCache
from openblip.nn.language_model import LanguageModel
from openblip.nn.opt import Opt, OptConfig
from openblip.nn.t5 import T5, T5Config

from ..language_models import both, write_language_model

VOCABULARY, POSITIONS = 40, 64
TRIALS = 25


def lively(model: Opt | T5, seed: int) -> Opt | T5:
    """Weights so large that what is said depends on what was read, in float64: no rounding decides between tokens."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.25, generator=generator)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return model.double().eval().requires_grad_(False)


def random_decoder(rng: random.Random) -> Opt:
    heads, norm = rng.choice([1, 2, 4]), rng.random() < 0.7
    config = OptConfig(
        vocab_size=VOCABULARY,
        width=heads * rng.choice([4, 8, 12]),
        depth=rng.randint(1, 3),
        num_heads=heads,
        ffn_width=rng.choice([16, 48]),
        max_positions=POSITIONS,
        embed_width=rng.choice([None, None, 20]),
        pre_norm=norm,
        final_norm=norm,
    )
    built = lively(Opt(config), rng.randrange(2**31))
    assert isinstance(built, Opt)
    return built


def small_t5() -> T5:
    built = lively(T5(T5Config(VOCABULARY, 32, 2, 2, 3, 8, 64, relative_buckets=8, relative_reach=12)), 3)
    assert isinstance(built, T5)
    return built


def random_options(rng: random.Random, kind: str) -> GenerationOptions:
    longest = rng.randint(1, 12)
    shared = GenerationOptions(
        max_new_tokens=longest,
        min_new_tokens=rng.choice([0, longest // 2]),
        repetition_penalty=rng.choice([1.0, 1.3]),
        stop_ids=rng.choice([(), (3,), tuple(range(3, 12))]),
    )
    if kind == "beam":
        beams = rng.randint(2, 5)
        return replace(
            shared, num_beams=beams, num_return_sequences=rng.randint(1, beams), length_penalty=rng.choice([-1.0, 1])
        )
    if kind == "sample":
        return replace(
            shared, do_sample=True, num_return_sequences=rng.randint(1, 4), top_p=0.9, seed=rng.randrange(99)
        )
    return shared


def rows(rng: random.Random, lengths: list[int], width: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    return [torch.randn(length, width, generator=generator).to(dtype) for length in lengths]


def assert_shared_equals_apart(
    model: LanguageModel, prefix: Prefix, prompts: list[Tensor], options: GenerationOptions
) -> int:
    """Each prompt in one piece and alone, against all behind the prefix: how many texts there were."""
    together = generate(model, prompts, options, prefix=prefix)
    for texts, prompt in zip(together, prompts, strict=True):
        (alone,) = generate(model, [torch.cat([prefix.embeds, prompt])], options)
        assert [text.ids for text in texts] == [text.ids for text in alone]
        for text, twin in zip(texts, alone, strict=True):
            assert text.stopped == twin.stopped
            assert text.score == pytest.approx(twin.score, abs=1e-5, rel=1e-5)
            assert text.log_probs == pytest.approx(twin.log_probs, abs=1e-5, rel=1e-5)
    return sum(map(len, together))


@pytest.mark.parametrize("kind", ["greedy", "beam", "sample"])
def test_questions_that_share_a_prefix_say_what_they_say_alone(kind: str) -> None:
    """Models, lengths and options at random; the prefix is used twice, as by the next turn of a chat."""
    rng, texts = random.Random(kind), 0
    for _ in range(TRIALS):
        model = random_decoder(rng)
        width = model.config.token_width
        (embeds,) = rows(rng, [rng.randint(1, 20)], width)
        prefix = Prefix(model, embeds)
        for _ in range(2):
            prompts = rows(rng, [rng.randint(1, 12) for _ in range(rng.randint(1, 8))], width)
            texts += assert_shared_equals_apart(model, prefix, prompts, random_options(rng, kind))
    assert texts > 4 * TRIALS


@pytest.mark.parametrize("kind", ["greedy", "beam", "sample"])
def test_models_that_cannot_share_say_the_same(kind: str, tmp_path: Path) -> None:
    rng = random.Random(kind)
    models: list[LanguageModel] = [small_t5()]
    models += [both(write_language_model(name, tmp_path / name))[1].model for name in ("llama", "bart")]
    for model in models:
        dtype = torch.float64 if isinstance(model, T5) else torch.float32
        embeds, *prompts = rows(rng, [6, 3, 9, 1], model.config.token_width, dtype)
        prefix = Prefix(model, embeds)
        # Seeds make draws alike in any batch; these models compute in another order there.
        options = replace(random_options(rng, kind), max_new_tokens=6)
        assert_shared_equals_apart(model, prefix, prompts, options)
        assert prefix.nbytes == embeds.nbytes


def test_the_prefix_is_read_once_and_only_when_a_second_prompt_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(2)
    model = random_decoder(rng)
    embeds, *prompts = rows(rng, [9, 4, 2, 5], model.config.token_width)
    read: list[tuple[int, ...]] = []
    forward = Opt.forward

    def noted(self: Opt, tokens: Tensor, *others: object) -> Tensor:
        read.append(tuple(tokens.shape[:2]))
        return forward(self, tokens, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(Opt, "forward", noted)
    prefix, options = Prefix(model, embeds), GenerationOptions(max_new_tokens=3, num_beams=2)
    generate(model, prompts[:1], options, prefix=prefix)
    assert read == [(1, 13)] and prefix.nbytes == embeds.nbytes
    generate(model, prompts, options, prefix=prefix)
    assert read[1:] == [(1, 9), (3, 5)] and prefix.nbytes > embeds.nbytes
    generate(model, prompts[:1], options, prefix=prefix)
    assert read[3:] == [(1, 4)]


def test_an_empty_prompt_behind_a_prefix_is_the_prefix() -> None:
    rng = random.Random(3)
    model = random_decoder(rng)
    embeds, prompt = rows(rng, [5, 3], model.config.token_width)
    assert_shared_equals_apart(model, Prefix(model, embeds), [prompt, prompt[:0]], GenerationOptions(max_new_tokens=5))


def test_positions_are_counted_with_the_prefix() -> None:
    rng = random.Random(4)
    model = random_decoder(rng)
    embeds, prompt, longer = rows(rng, [20, 34, 35], model.config.token_width)
    prefix, options = Prefix(model, embeds), GenerationOptions(max_new_tokens=10)
    assert len(generate(model, [prompt, prompt], options, prefix=prefix)[0][0].ids) == 10
    with pytest.raises(OptionError, match="55 tokens and 10 new ones exceed the model's 64 positions"):
        generate(model, [prompt, longer], options, prefix=prefix)


def test_a_stream_behind_a_prefix_is_the_text() -> None:
    rng = random.Random(5)
    model = random_decoder(rng)
    embeds, prompt = rows(rng, [7, 4], model.config.token_width)
    prefix, options = Prefix(model, embeds), GenerationOptions(max_new_tokens=9)
    expected = generate(model, [torch.cat([embeds, prompt])], options)[0][0].ids
    for _ in range(3):  # in one piece, then behind the prefix
        assert tuple(stream(model, prompt, options, prefix)) == expected
    assert prefix.nbytes > embeds.nbytes


def test_beams_and_samples_take_the_prompt_once() -> None:
    rng = random.Random(6)
    for model in (random_decoder(rng), small_t5()):
        prompts = torch.randn(2, 30, model.config.token_width, dtype=torch.float64)
        reading, _ = model.read(prompts, None, 4, texts=5)
        tokens = torch.ones(2, 5, dtype=torch.int64)
        address, size = reading.cache.keys.data_ptr(), reading.cache.nbytes  # type: ignore[attr-defined]
        for _ in range(4):
            reading.step(tokens, torch.randint(5, (2, 5)))
            assert reading.cache.keys.data_ptr() == address  # type: ignore[attr-defined]
        cache = reading.cache  # type: ignore[attr-defined]
        assert cache.length == cache.capacity == (1 if isinstance(model, T5) else 30) + 5 * 4
        assert cache.nbytes == size == 2 * cache.keys[0, :, :, :1].nbytes * cache.capacity * cache.keys.shape[0]


# Nothing is left behind


class StoppedError(Exception):
    pass


def caches() -> int:
    gc.collect()
    return sum(type(thing) is KeyValueCache for thing in gc.get_objects())


def fail_at_step(model: Opt | T5, monkeypatch: pytest.MonkeyPatch, step: int) -> Callable[[], int]:
    """The model fails at a step; returns how many were begun."""
    begun = 0
    decode_step = type(model).decode_step

    def failing(*given: object) -> Tensor:
        nonlocal begun
        begun += 1
        if begun == step:
            raise StoppedError
        return decode_step(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(type(model), "decode_step", failing)
    return lambda: begun


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", ["decoder", "t5"])
def test_a_failure_halfway_leaves_nothing_but_the_prefix(
    kind: str, beams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(7)
    model = random_decoder(rng) if kind == "decoder" else small_t5()
    embeds, *prompts = rows(rng, [6, 4, 2], model.config.token_width)
    prefix, options = Prefix(model, embeds), GenerationOptions(max_new_tokens=8, num_beams=beams)
    expected = generate(model, prompts, options, prefix=prefix)
    before, size = caches(), prefix.nbytes
    with monkeypatch.context() as patch:
        begun = fail_at_step(model, patch, 3)
        with pytest.raises(StoppedError):
            generate(model, prompts, options, prefix=prefix)
        assert begun() == 3
    assert (caches(), prefix.nbytes) == (before, size)
    assert generate(model, prompts, options, prefix=prefix) == expected
    del prefix
    assert caches() == before - (kind == "decoder")


def test_a_stream_abandoned_halfway_leaves_nothing_but_the_prefix() -> None:
    rng = random.Random(8)
    model = random_decoder(rng)
    embeds, prompt = rows(rng, [6, 4], model.config.token_width)
    prefix, options = Prefix(model, embeds), GenerationOptions(max_new_tokens=20)
    for _ in range(2):
        whole = tuple(stream(model, prompt, options, prefix))
    before, size = caches(), prefix.nbytes
    begun = stream(model, prompt, options, prefix)
    assert [next(begun), next(begun)] == list(whole[:2])
    assert caches() == before + 1
    del begun
    assert (caches(), prefix.nbytes) == (before, size)
    assert tuple(stream(model, prompt, options, prefix)) == whole
