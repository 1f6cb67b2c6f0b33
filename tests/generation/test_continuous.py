"""Requests that come and go at random while others are decoded get the texts that they get alone."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from openblip.errors import OptionError
from openblip.generation.cohort import DecodeRequest
from openblip.generation.continuous import ContinuousBatch
from openblip.generation.cuda_graphs import Graphs
from openblip.generation.engine import generate
from openblip.generation.options import Generation, GenerationOptions
from openblip.generation.prefix import Prefix
from openblip.generation.repeated_words import Vocabulary
from openblip.models.blip import ImageBeside
from openblip.nn.blip import BlipConfig, BlipLanguageModel, BlipNetwork
from openblip.nn.language_model import LanguageModel
from openblip.nn.opt import Opt
from openblip.nn.slots import COLUMN_STEP
from openblip.nn.t5 import T5, T5Config
from tests.language_models import both, write_language_model
from tests.models.blip_models import small_config

from .test_prefix import VOCABULARY, StoppedError, lively, random_decoder, random_options, rows

TOKENS = [f"\u0120w{number // 2}" if number % 2 else f"x{number}" for number in range(VOCABULARY)]
Rng = random.Random


def options_of(rng: Rng) -> GenerationOptions:
    """Of all ways to write, with what each may forbid."""
    kind = rng.choice(["greedy", "greedy", "beam", "beam", "sample"])
    chosen = replace(random_options(rng, kind), max_new_tokens=rng.randint(1, 14), min_new_tokens=rng.choice([0, 1]))
    if rng.random() < 0.3:
        chosen = replace(chosen, no_repeat_ngram_size=rng.choice([1, 2]))
    if rng.random() < 0.3:
        chosen = replace(chosen, bad_words=["w3", "w4 w5"], no_repeat_words=True, vocabulary=Vocabulary(TOKENS))
    return chosen


def opt_and_prefixes(rng: Rng) -> tuple[LanguageModel, list[Prefix]]:
    model = random_decoder(rng)
    embeds = rows(rng, [rng.randint(1, 20) for _ in range(3)], model.config.token_width)
    return model, [Prefix(model, one) for one in embeds]


def t5_and_prefixes(rng: Rng) -> tuple[LanguageModel, list[Prefix]]:
    torch.manual_seed(rng.randrange(2**31))
    config = T5Config(VOCABULARY, 24, 2, rng.randint(1, 2), 3, 8, 40, relative_buckets=8, relative_reach=12)
    model = lively(T5(config), rng.randrange(2**31))
    return model, [Prefix(model, one) for one in rows(rng, [3, 9], model.config.token_width)]


def blip_and_prefixes(rng: Rng, task: str) -> tuple[LanguageModel, list[Prefix]]:
    torch.manual_seed(rng.randrange(2**31))
    config: BlipConfig = small_config(task)
    network = BlipNetwork(config)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model = BlipLanguageModel(network.double().eval().requires_grad_(False))
    images = rows(rng, [7, 7], config.vision.width)
    return model, [ImageBeside(model, one) for one in images]


MODELS: dict[str, Callable[[Rng], tuple[LanguageModel, list[Prefix]]]] = {
    "opt": opt_and_prefixes,
    "t5": t5_and_prefixes,
    "blip-caption": lambda rng: blip_and_prefixes(rng, "caption"),
    "blip-answer": lambda rng: blip_and_prefixes(rng, "answer"),
}


def requests_of(rng: Rng, model: LanguageModel, prefixes: list[Prefix], count: int) -> list[DecodeRequest]:
    needed = isinstance(prefixes[0], ImageBeside)
    shared = [options_of(rng) for _ in range(4)]  # several requests have the same
    made = []
    for prompt in rows(rng, [rng.randint(1, 12) for _ in range(count)], model.config.token_width):
        ids = torch.tensor([rng.randrange(VOCABULARY) for _ in prompt]) if rng.random() < 0.5 else None
        prefix = rng.choice(prefixes if needed else [*prefixes, None])
        options = rng.choice([*shared, options_of(rng)])
        made.append(DecodeRequest(prompt, options.resolved(), prefix, ids))
    return made


def alone(model: LanguageModel, request: DecodeRequest) -> list[Generation]:
    ids = None if request.prompt_ids is None else [request.prompt_ids]
    return generate(model, [request.prompt], request.options, ids, request.prefix)[0]


def run(batch: ContinuousBatch, waves: dict[int, list[DecodeRequest]], steps: int = 400) -> dict[int, list[Generation]]:
    """Requests join before the step that they have; the texts of each, by its place among all."""
    found: dict[int, list[Generation]] = {}
    streamed: dict[int, list[int]] = {}
    for step in range(steps):
        for request in waves.pop(step, ()):
            batch.join(request)
        advance = batch.step()
        for key, token in advance.tokens:
            streamed.setdefault(key, []).append(token)
        for key, texts in advance.finished.items():
            assert key not in found
            found[key] = texts
            assert key not in batch.running
        if not waves and not batch.running and not batch.waiting:
            break
    assert not batch.running and not waves
    for key, ids in streamed.items():
        assert tuple(ids) == found[key][0].ids[-len(ids) :], "a stream is not the text"
    return dict(sorted(found.items()))


def random_waves(rng: Rng, requests: list[DecodeRequest]) -> dict[int, list[DecodeRequest]]:
    waves: dict[int, list[DecodeRequest]] = {}
    for request, step in zip(requests, sorted(rng.randint(0, 25) for _ in requests), strict=True):
        waves.setdefault(step, []).append(request)
    return waves


def assert_same(found: list[Generation], expected: list[Generation], tolerance: float = 1e-6) -> None:
    assert [text.ids for text in found] == [text.ids for text in expected]
    for text, other in zip(found, expected, strict=True):
        assert text.stopped == other.stopped
        assert text.score == pytest.approx(other.score, abs=tolerance, rel=tolerance)
        assert text.log_probs == pytest.approx(other.log_probs, abs=tolerance, rel=tolerance)


def check_come_and_go(name: str, trials: int, count: int) -> None:
    """In float64: how a batch rounds depends on its size, and two tokens may be as near as that."""
    rng, stopped = Rng(name), 0
    for _ in range(trials):
        model, prefixes = MODELS[name](rng)
        requests = requests_of(rng, model, prefixes, count)
        expected = [alone(model, request) for request in requests]
        batch = ContinuousBatch(model, max_texts=rng.choice([1, 6, 64]), max_tokens=rng.choice([60, 10_000]))
        found = run(batch, random_waves(rng, requests))
        assert len(found) == len(requests)
        for own, texts in zip(found.values(), expected, strict=True):
            assert_same(own, texts)
        stopped += sum(text.stopped for texts in expected for text in texts)
    assert stopped > 0


@pytest.mark.parametrize("name", list(MODELS))
def test_requests_come_and_go_and_say_what_they_say_alone(name: str) -> None:
    check_come_and_go(name, 2, 9)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODELS))
def test_many_requests_come_and_go_and_say_what_they_say_alone(name: str) -> None:
    check_come_and_go(name, 12, 24)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bart"])
def test_models_whose_batches_are_whole_say_the_same(name: str, tmp_path: Path) -> None:
    rng = Rng(name)
    model: LanguageModel = both(write_language_model(name, tmp_path / name))[1].model
    requests = []
    for prompt in rows(rng, [3, 9, 1, 5, 2, 7], model.config.token_width, torch.float32):
        options = replace(random_options(rng, rng.choice(["greedy", "beam", "sample"])), max_new_tokens=6)
        requests.append(DecodeRequest(prompt, options.resolved()))
    expected = [alone(model, request) for request in requests]
    found = run(ContinuousBatch(model, max_texts=8), {0: requests[:3], 3: requests[3:5], 4: requests[5:]})
    for own, texts in zip(found.values(), expected, strict=True):
        assert_same(own, texts, 1e-4)


def test_captured_models_say_the_same() -> None:
    rng = Rng(11)
    model, prefixes = opt_and_prefixes(rng)
    assert isinstance(model, Opt)
    graphs = Graphs(model, lambda step: step)
    requests = requests_of(rng, model, prefixes, 8)
    expected = [alone(model, request) for request in requests]
    moved = {prefix: Prefix(graphs, prefix.embeds) for prefix in prefixes}
    again = [
        request if request.prefix is None else replace(request, prefix=moved[request.prefix]) for request in requests
    ]
    found = run(ContinuousBatch(graphs), random_waves(rng, again))
    for own, texts in zip(found.values(), expected, strict=True):
        assert_same(own, texts)
    with torch.inference_mode():
        reading, _ = graphs.read(torch.zeros(1, 2, model.config.token_width, dtype=torch.float64), None, 3)
        reading.step(torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="already"):
        graphs.new_slots(1).join(reading)


def greedy(prompt: Tensor, tokens: int, **more: object) -> DecodeRequest:
    return DecodeRequest(prompt, GenerationOptions(max_new_tokens=tokens, **more).resolved())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def decoder() -> Opt:
    return random_decoder(Rng(3))


def prompts(decoder: Opt, *lengths: int) -> list[Tensor]:
    return rows(Rng(9), list(lengths), decoder.config.token_width)


def test_one_that_is_done_leaves_at_once_and_gives_its_memory_back(decoder: Opt) -> None:
    batch = ContinuousBatch(decoder)
    long, *short = prompts(decoder, 3, *[9] * 20)
    key = batch.join(greedy(long, 40))
    batch.step()
    small = batch.nbytes
    keys = [batch.join(greedy(prompt, 2)) for prompt in short]
    batch.step()
    batch.step()
    full = batch.nbytes
    assert batch.texts == 21 and full > 5 * small
    assert batch.step().finished.keys() == set(keys)
    assert batch.running == [key] and batch.nbytes < full / 4
    found = run(batch, {})
    assert_same(found[key], alone(decoder, greedy(long, 40)))
    assert batch.nbytes == 0


def test_a_long_text_among_many_short_ones_does_not_use_up_memory(decoder: Opt) -> None:
    """Columns that short texts have left are written again; positions are those of each text."""
    batch = ContinuousBatch(decoder)
    (long,) = prompts(decoder, 4)
    batch.join(greedy(long, 50))
    others = [greedy(prompt, 3, num_beams=2) for prompt in prompts(decoder, *[5] * 60)]
    found = run(batch, {step: [other] for step, other in enumerate(others)})
    assert_same(found[1], alone(decoder, greedy(long, 50)))
    sizes = set()
    rolling = ContinuousBatch(decoder)
    for step, prompt in enumerate(prompts(decoder, *[5] * 120)):
        rolling.join(greedy(prompt, 3))
        rolling.step()
        if step > 8:
            sizes.add(rolling._lanes[0].slots.cache.capacity)  # type: ignore[attr-defined]
    assert sizes == {COLUMN_STEP}


def test_those_for_whom_there_is_no_room_wait_in_order(decoder: Opt) -> None:
    one, two, three, four = prompts(decoder, 5, 5, 5, 5)
    batch = ContinuousBatch(decoder, max_texts=3)
    keys = [batch.join(one_of) for one_of in (greedy(one, 3), greedy(two, 3, num_beams=3), greedy(three, 3))]
    batch.step()
    assert batch.running == keys[:1] and batch.waiting == keys[1:]  # the third does not overtake the second
    order: list[int] = []
    while batch.running or batch.waiting:
        order += batch.step().finished
        assert batch.texts <= 3
    assert order == keys
    # What needs more than all the room is decoded alone.
    wide = batch.join(greedy(four, 2, num_beams=8))
    batch.join(greedy(one, 2))
    batch.step()
    assert batch.running == [wide]
    by_tokens = ContinuousBatch(decoder, max_tokens=20)
    keys = [by_tokens.join(greedy(prompt, 4)) for prompt in (one, two, three)]
    by_tokens.step()
    assert by_tokens.running == keys[:2] and by_tokens.waiting == keys[2:]


def test_reading_and_writing_take_turns(decoder: Opt) -> None:
    """However many come, those that are being decoded go on."""
    batch = ContinuousBatch(decoder)
    first, *others = prompts(decoder, *[3] * 20)
    key = batch.join(greedy(first, 5))
    steps = 0
    while key in batch.running or not steps:
        batch.join(greedy(others.pop(), 2))
        batch.step()
        steps += 1
    assert steps == 8  # it has been read and went on by four tokens, while three others were read


def test_cancelled_ones_leave_and_disturb_nobody(decoder: Opt) -> None:
    rng = Rng(5)
    model, prefixes = opt_and_prefixes(rng)
    made = requests_of(rng, model, prefixes, 9)
    requests = [replace(one, options=replace(one.options, max_new_tokens=9)) for one in made]
    expected = [alone(model, request) for request in requests]
    batch = ContinuousBatch(model, max_texts=20)
    keys = [batch.join(request) for request in requests[:6]]
    assert batch.cancel(keys[2]) and not batch.cancel(keys[2]) and not batch.cancel(99)
    batch.step()
    found = batch.step().finished
    running = list(batch.running)
    gone = {running[1], running[-1], keys[2]}
    assert all(batch.cancel(key) for key in gone - {keys[2]})
    keys += [batch.join(request) for request in requests[6:]]
    found |= run(batch, {})
    assert found.keys() == set(keys) - gone
    for key, texts in found.items():
        assert_same(texts, expected[keys.index(key)])


def test_what_is_no_number_stays_where_it_is(decoder: Opt) -> None:
    """Memory that it leaves is given to others."""
    odd, good, other = prompts(decoder, 4, 4, 6)
    batch = ContinuousBatch(decoder)
    keys = [batch.join(greedy(odd * torch.nan, 2)), batch.join(greedy(good, 8))]
    batch.step()
    batch.step()
    batch.step()
    keys.append(batch.join(greedy(other, 8)))
    found = run(batch, {})
    assert_same(found[keys[1]], alone(decoder, greedy(good, 8)))
    assert_same(found[keys[2]], alone(decoder, greedy(other, 8)))


def test_too_long_a_prompt_is_refused_and_the_others_go_on(decoder: Opt) -> None:
    batch = ContinuousBatch(decoder)
    long, good = prompts(decoder, 60, 5)
    key = batch.join(greedy(good, 5))
    with pytest.raises(OptionError, match="60 tokens and 5 new ones exceed the model's 64 positions"):
        batch.join(greedy(long, 5))
    assert run(batch, {}).keys() == {key}


def test_after_an_error_nothing_runs_and_the_batch_is_as_new(decoder: Opt, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = ContinuousBatch(decoder)
    one, two = prompts(decoder, 5, 7)
    batch.join(greedy(one, 5))
    batch.step()
    batch.join(greedy(two, 5))

    def fail(*_: object) -> Tensor:
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(Opt, "decode_step", fail)
        with pytest.raises(StoppedError):
            batch.step()
    assert not batch.running and not batch.waiting and batch.nbytes == 0
    key = batch.join(greedy(two, 5))
    assert_same(run(batch, {})[key], alone(decoder, greedy(two, 5)))


def test_samples_without_a_seed_differ(decoder: Opt) -> None:
    (prompt,) = prompts(decoder, 5)
    batch = ContinuousBatch(decoder)
    keys = [batch.join(greedy(prompt, 12, do_sample=True)) for _ in range(2)]
    found = run(batch, {})
    assert found[keys[0]][0].ids != found[keys[1]][0].ids


@pytest.mark.parametrize("name", ["opt", "t5"])
def test_in_float32_scores_differ_by_rounding_alone(name: str) -> None:
    rng = Rng(f"float32 {name}")
    for _ in range(2):
        model, _ = MODELS[name](rng)
        assert isinstance(model, Opt | T5)
        single = copy.deepcopy(model).float()
        requests = [
            replace(one, prompt=one.prompt.float(), prefix=None)
            for one in requests_of(rng, single, [Prefix(single, torch.zeros(1, 1))], 10)
        ]
        expected = [alone(single, request) for request in requests]
        found = run(ContinuousBatch(single), random_waves(rng, requests))
        for own, texts in zip(found.values(), expected, strict=True):
            for text, other in zip(own, texts, strict=True):
                assert text.ids == other.ids
                assert text.score == pytest.approx(other.score, abs=1e-5, rel=1e-6)
