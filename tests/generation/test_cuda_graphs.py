"""Captured decoding steps say what ordinary ones say, and come back from whoever used them."""

from __future__ import annotations

import copy
import pickle
import random
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from openblip.errors import OptionError
from openblip.generation.cuda_graphs import CAPACITY_STEP, CapturedStep, Graphs, Step
from openblip.generation.engine import generate, stream
from openblip.generation.options import Generation, GenerationOptions
from openblip.generation.prefix import Prefix
from openblip.images.encoded_image import ImageCache
from openblip.models.blip2 import compose_blip2
from openblip.models.model import Model
from openblip.nn.kv_cache import KeyValueCache
from openblip.nn.language_model import LanguageModel
from openblip.nn.opt import Opt, OptConfig
from openblip.nn.static_kv_cache import FixedCache
from openblip.nn.t5 import T5, T5Config
from tests.generation.test_prefix import (
    VOCABULARY,
    StoppedError,
    fail_at_step,
    lively,
    random_decoder,
    random_options,
    rows,
    small_t5,
)

TRIALS = {"repeated": 6, "taped": 3}


class Tape(TorchDispatchMode):
    """Records the operations of a step with the memory they read and write, as a CUDA graph does.

    Replaying makes the same operations on the same memory: whatever Python would decide otherwise, and whatever would
    be allocated anew, is as it was. Reading a number of the device from Python is impossible, as it is there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "_local_scalar_dense" not in str(func) and "nonzero" not in str(func), "a step asks the device"
        found = func(*args, **(kwargs or {}))
        self.made.append((func, args, kwargs or {}, found))
        return found

    def replay(self) -> None:
        for func, args, kwargs, found in self.made:
            if func._schema.is_mutable:
                func(*args, **kwargs)
                continue
            given = {one.untyped_storage().data_ptr() for one in flat((args, kwargs))}
            fresh = [one for one in flat(found) if one.untyped_storage().data_ptr() not in given]
            if fresh:
                again = flat(func(*args, **kwargs))
                for one, other in zip(flat(found), again, strict=True):
                    one.copy_(other)


def flat(value: Any) -> list[Tensor]:
    return [one for one in torch.utils._pytree.tree_leaves(value) if isinstance(one, Tensor)]


def taped(step: Step) -> Step:
    step()
    with Tape() as tape:
        scores = step()

    def replay() -> Tensor:
        tape.replay()
        return scores

    return replay


def repeated(step: Step) -> Step:
    for _ in range(2):
        step()
    return step


CAPTURES: dict[str, Callable[[Step], Step]] = {"repeated": repeated, "taped": taped}


def random_t5(rng: random.Random) -> T5:
    heads = rng.randint(1, 3)
    config = T5Config(VOCABULARY, 24, 2, rng.randint(1, 2), heads, 8, 40, relative_buckets=8, relative_reach=12)
    built = lively(T5(config), rng.randrange(2**31))
    assert isinstance(built, T5)
    return built


def random_model(rng: random.Random, kind: str) -> Opt | T5:
    torch.manual_seed(rng.randrange(2**31))
    return random_decoder(rng) if kind == "decoder" else random_t5(rng)


def assert_same(found: list[list[Generation]], expected: list[list[Generation]]) -> int:
    """Ids, and scores within rounding; how many texts ended early."""
    for texts, others in zip(found, expected, strict=True):
        assert [text.ids for text in texts] == [text.ids for text in others]
        for text, other in zip(texts, others, strict=True):
            assert text.stopped == other.stopped
            assert text.log_probs == pytest.approx(other.log_probs, abs=1e-5, rel=1e-5)
    return sum(text.stopped for texts in expected for text in texts)


@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("way", ["greedy", "beam", "sample"])
@pytest.mark.parametrize("kind", ["decoder", "t5"])
def test_captured_steps_say_the_same(kind: str, way: str, capture: str) -> None:
    """Models, prompts of different lengths and options at random; steps are captured once and serve further calls."""
    rng, stopped, captured = random.Random(f"{kind} {way}"), 0, 0

    def counted(step: Step) -> Step:
        nonlocal captured
        captured += 1
        return CAPTURES[capture](step)

    calls = 0
    for _ in range(TRIALS[capture]):
        model = random_model(rng, kind)
        graphs = Graphs(model, counted)
        width = model.config.token_width
        prefix, other = (Prefix(one, rows(random.Random(1), [5], width)[0]) for one in (graphs, model))
        for _ in range(3):
            prompts = rows(rng, [rng.randint(1, 12) for _ in range(rng.randint(1, 6))], width)
            options = random_options(rng, way)
            stopped += assert_same(generate(graphs, prompts, options), generate(model, prompts, options))
            found = generate(graphs, prompts, options, prefix=prefix)
            assert_same(found, generate(model, prompts, options, prefix=other))
            calls += 2
    assert stopped > 0
    assert 0 < captured < 2 * calls, "steps are captured anew each time"


def test_many_prompts_end_one_after_the_other() -> None:
    """Half of them done, the rest go on in smaller memory, with beams and with samples."""
    rng = random.Random(3)
    torch.manual_seed(3)
    sizes = OptConfig(VOCABULARY, 32, 2, 4, 64, max_positions=64)
    for model in (lively(Opt(sizes), 5), small_t5()):
        prompts = rows(rng, [rng.randint(1, 12) for _ in range(19)], model.config.token_width)
        for options in (
            GenerationOptions(max_new_tokens=20, repetition_penalty=1.5, stop_ids=tuple(range(10))),
            GenerationOptions(max_new_tokens=20, num_beams=3, early_stopping=True, stop_ids=tuple(range(10))),
            GenerationOptions(
                max_new_tokens=20, do_sample=True, num_return_sequences=2, seed=1, stop_ids=tuple(range(10))
            ),
        ):
            graphs = Graphs(model, taped)
            assert assert_same(generate(graphs, prompts, options), generate(model, prompts, options)) > 12
            assert len({key[0] for key in graphs.idle}) > 1


def test_steps_are_shared_by_all_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(4)
    model = random_decoder(rng)
    graphs = Graphs(model, repeated)
    for count, length, tokens in [(3, 9, 5), (4, 30, 12), (4, 2, 3)]:
        generate(
            graphs, rows(rng, [length] * count, model.config.token_width), GenerationOptions(max_new_tokens=tokens)
        )
    assert graphs.idle == ((4, 1, CAPACITY_STEP, 0),)
    generate(graphs, rows(rng, [40], model.config.token_width), GenerationOptions(max_new_tokens=24))
    assert graphs.idle[-1] == (1, 1, CAPACITY_STEP, 0)


def test_a_stream_is_the_text_and_gives_its_step_back() -> None:
    rng = random.Random(5)
    for model in (random_decoder(rng), small_t5()):
        graphs, options = Graphs(model, taped), GenerationOptions(max_new_tokens=12)
        prompts = rows(rng, [6, 4], model.config.token_width)
        expected = [text.ids for (text,) in generate(model, prompts, options)]
        # Two at once have memory of their own.
        both = [stream(graphs, prompt, options) for prompt in prompts]
        told = [(next(both[0]), next(both[1])) for _ in range(12)]
        assert [tuple(ids) for ids in zip(*told, strict=True)] == expected
        assert graphs.idle == ()
        both[0].close()
        del both
        assert len(graphs.idle) == 2
        for _ in range(3):
            begun = stream(graphs, prompts[0], options)
            assert [next(begun), next(begun)] == list(expected[0][:2])
            assert len(graphs.idle) == 1
            del begun
            assert len(graphs.idle) == 2


def test_threads_do_not_meet() -> None:
    rng = random.Random(6)
    model = random_decoder(rng)
    graphs, options = Graphs(model, repeated), GenerationOptions(max_new_tokens=15, num_beams=2)
    prompts = rows(rng, [7, 3, 9, 1, 5, 2], model.config.token_width)
    expected = [generate(model, [prompt], options)[0][0].ids for prompt in prompts]
    found: dict[int, list[tuple[int, ...]]] = {}

    def ask(number: int) -> None:
        found[number] = [generate(graphs, [prompts[number]], options)[0][0].ids for _ in range(5)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=600)
    assert found == {number: [ids] * 5 for number, ids in enumerate(expected)}
    assert 1 <= len(graphs.idle) <= len(prompts)


def test_a_failure_gives_the_step_back_and_spoils_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(7)
    for model in (random_decoder(rng), small_t5()):
        graphs, options = Graphs(model, repeated), GenerationOptions(max_new_tokens=9, num_beams=2)
        prompts = rows(rng, [6, 4], model.config.token_width)
        expected = generate(model, prompts, options)
        assert_same(generate(graphs, prompts, options), expected)
        before = graphs.idle
        # A prompt of no numbers fills the memory with them.
        generate(graphs, [torch.full_like(prompt, torch.nan) for prompt in prompts], options)
        with monkeypatch.context() as patch:
            begun = fail_at_step(model, patch, 3)
            with pytest.raises(StoppedError):
                generate(graphs, prompts, options)
            assert begun() == 3
        assert graphs.idle == before
        # A longer prompt in the row of a shorter one, and the other way round, see nothing of one another.
        assert_same(generate(graphs, prompts[::-1], options), expected[::-1])
        assert_same(generate(graphs, prompts[:1], options), expected[:1])


def test_idle_memory_is_bounded_and_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    made: weakref.WeakSet[CapturedStep] = weakref.WeakSet()
    begin = CapturedStep.__init__

    def noted(self: CapturedStep, *given: Any) -> None:
        begin(self, *given)
        made.add(self)

    monkeypatch.setattr(CapturedStep, "__init__", noted)
    rng = random.Random(8)
    model = random_decoder(rng)
    prompts = rows(rng, [4] * 8, model.config.token_width)
    options = GenerationOptions(max_new_tokens=3)
    graphs = Graphs(model, repeated)
    generate(graphs, prompts[:1], options)
    (smallest,) = made
    size = smallest.reading.cache.nbytes
    graphs.idle_bytes = 6 * size
    del smallest
    for count in (2, 4, 8, 1, 2):
        generate(graphs, prompts[:count], options)
    assert [key[0] for key in graphs.idle] == [1, 2]  # 8 alone are more than may wait, until others come
    assert len(made) == 2
    del graphs
    assert len(made) == 0


def test_copies_capture_anew() -> None:
    rng = random.Random(9)
    model = random_decoder(rng)
    graphs, options = Graphs(model, repeated), GenerationOptions(max_new_tokens=5)
    prompts = rows(rng, [4], model.config.token_width)
    expected = generate(graphs, prompts, options)
    for other in (copy.deepcopy(graphs), pickle.loads(pickle.dumps(graphs))):
        assert other.idle == () and other.model is not model
        assert_same(generate(other, prompts, options), expected)


def test_limits_are_those_of_the_model() -> None:
    rng = random.Random(10)
    model = random_decoder(rng)
    graphs: LanguageModel = Graphs(model, repeated)
    (prompt,) = rows(rng, [54], model.config.token_width)
    assert len(generate(graphs, [prompt], GenerationOptions(max_new_tokens=10))[0][0].ids) == 10
    with pytest.raises(OptionError, match="exceed the model's 64 positions"):
        generate(graphs, [prompt], GenerationOptions(max_new_tokens=11))
    with torch.inference_mode():
        cache = FixedCache(KeyValueCache(1, 1, 1, 4, 2, torch.float32, torch.device("cpu")), 2, 3, 64)
        for _ in range(21):
            cache.advance()
        with pytest.raises(ValueError, match="holds 64 tokens, 66 were asked for"):
            cache.advance()
        with pytest.raises(ValueError, match="3 prompts of 0 tokens do not fit into 2 of 64"):
            cache.hold(KeyValueCache(1, 3, 1, 4, 2, torch.float32, torch.device("cpu")))


def test_a_whole_model_says_the_same(tiny_model: Model, image_paths: list[Path]) -> None:
    captured = copy.copy(tiny_model)
    captured.components = compose_blip2(tiny_model.parts, tiny_model.placement, ImageCache())
    assert captured.components.writer is not None and tiny_model.components.writer is not None
    graphs = captured.components.writer.language_model = Graphs(tiny_model.network.own_language_model, taped)
    questions = ["what color is the ball?", "how many children?"]
    for options in ({}, {"num_beams": 1}, {"top_p": 0.9, "seed": 1}):
        assert captured.caption(image_paths, **options) == tiny_model.caption(image_paths, **options)
        for _ in range(2):
            assert captured.ask(image_paths[0], questions, **options) == tiny_model.ask(
                image_paths[0], questions, **options
            )
    chat, other = captured.chat(image_paths[1]), tiny_model.chat(image_paths[1])
    for question in questions:
        assert "".join(chat.ask(question, stream=True)) == other.ask(question, num_beams=1)
    assert graphs.idle and tiny_model.components.writer.language_model is tiny_model.network.language_model


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["greedy", "beam", "sample"])
@pytest.mark.parametrize("kind", ["decoder", "t5"])
def test_cuda_graphs_say_the_same(kind: str, way: str) -> None:
    rng = random.Random(f"{kind} {way}")
    for _ in range(3):
        model = random_model(rng, kind).cuda()
        graphs = Graphs(model)
        for _ in range(3):
            lengths = [rng.randint(1, 12) for _ in range(rng.randint(1, 6))]
            prompts = [row.cuda() for row in rows(rng, lengths, model.config.token_width)]
            options = random_options(rng, way)
            assert_same(generate(graphs, prompts, options), generate(model, prompts, options))
