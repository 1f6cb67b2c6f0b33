"""What this machine computes fast, measured with layers of real models, and what follows for captions.

On a CPU whole layers are measured, attention, norms and the rounding of inputs included, in the state that int8 layers
have after some captions. On a GPU it is matrix products alone: there the kernels of a step are replayed in one go.
"""

from __future__ import annotations

import copy
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from openblip.checkpoints.model_entry import PROJECTION, QFORMER, VISION, ImageEncoder, LanguageModel, ModelEntry
from openblip.checkpoints.registry import all_models
from openblip.devices import Placement, choose_placement
from openblip.nn.opt import Opt, OptConfig
from openblip.nn.quant.int8 import Int8Linear
from openblip.nn.quant.int8_packing import GATHER_AFTER, LEVELS, input_levels
from openblip.nn.quant.linear import HALF_TYPES, Linear, cpu_computes
from openblip.nn.quant.swap import quantize, quantized_layers
from openblip.nn.vit import EVA_VIT_G, VisionTransformer

LANGUAGE = OptConfig(vocab_size=10_000, width=2560, depth=1, num_heads=32, ffn_width=10_240)
"""Of OPT-2.7b as many layers and words as no processor's cache holds."""
IMAGE = replace(EVA_VIT_G, depth=1)
TOKENS_A_ROUND = 5
MATRICES = 3
"""Of a GPU, layers that take turns."""
READ_NUMBERS = 2**26
PATCHES, QUERIES, PROMPT, NEW_TOKENS = 257, 32, 33, 20
"""Rows of the products: patches of an image at 224 px, a visual prompt, the same and its start, tokens of a text."""


@dataclass(frozen=True)
class Speed:
    """How fast one number format multiplies.

    Attributes:
        many: operations a second (two a weight) with the rows of an image; few: with those of a prompt.
        row: bytes of weights a second in the layers for a new token; scores: of the word table for its scores.
        weight_bytes: of one weight.
    """

    dtype: str
    many: float
    few: float
    row: float
    scores: float
    weight_bytes: float


@dataclass(frozen=True)
class Estimate:
    """Expected seconds for a greedy caption of 20 tokens, in each format that was measured."""

    name: str
    seconds: dict[str, float]


@dataclass(frozen=True)
class Machine:
    """What was found.

    Attributes:
        reads: bytes a second that all threads read from memory together.
        exact_int8: whether products of 8 bits are exact with all levels (VNNI or its like).
        half_types: whether the CPU computes each by itself; otherwise products are made in float32.
    """

    processor: str
    cores: int
    threads: int
    placement: Placement
    reason: str
    reads: float
    exact_int8: bool
    half_types: dict[str, bool]
    speeds: tuple[Speed, ...]

    def estimates(self) -> list[Estimate]:
        """For every official model that writes; models of the same parts are told once."""
        found: dict[tuple[object, ...], Estimate] = {}
        for model in all_models():
            if model.vision is not None and model.language is not None:
                parts = (model.vision, model.language, model.image_size)
                seconds = {
                    speed.dtype: caption_seconds(model, model.vision, model.language, speed) for speed in self.speeds
                }
                found.setdefault(parts, Estimate(model.name, seconds))
        return list(found.values())


def measure(rounds: int = 5) -> Machine:
    """Some seconds of work."""
    placement = choose_placement()
    device = placement.device
    speeds = cpu_speeds(rounds) if device.type == "cpu" else [_product_speed(placement, rounds)]
    return Machine(
        processor=_processor(device),
        cores=_cores(),
        threads=torch.get_num_threads(),
        placement=placement,
        reason=_reason(placement, speeds),
        reads=_read_speed(device, rounds),
        exact_int8=input_levels() == LEVELS,
        half_types={str(dtype).removeprefix("torch."): cpu_computes(dtype) for dtype in HALF_TYPES},
        speeds=tuple(speeds),
    )


@torch.inference_mode()
def cpu_speeds(rounds: int) -> list[Speed]:
    """float32's and int8's, of the same layers, which take turns: what else the machine does then slows down both."""
    parts = nn.ModuleDict({"language": _random(LANGUAGE.build), "vision": _random(IMAGE.build)})
    kinds = {"float32": (4.0, parts), "int8": (1.0, copy.deepcopy(parts))}
    quantize(kinds["int8"][1], 8)
    _round(kinds["int8"][1], 1)
    for layer in quantized_layers(kinds["int8"][1]).values():
        if isinstance(layer, Int8Linear):
            layer.pack()  # for what it has just had to multiply: so it will be after some captions
    _round(kinds["int8"][1], GATHER_AFTER)
    taken: dict[str, list[tuple[float, float, float, float]]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, (_, layers) in kinds.items():
            taken[kind].append(_round(layers, TOKENS_A_ROUND))
    speeds = []
    weights = sum(map(_weights, cast(Opt, parts["language"]).layers))
    block = _weights(cast(VisionTransformer, parts["vision"]).blocks[0])
    for kind, (weight_bytes, _) in kinds.items():
        image, prompt, token, scores = (statistics.median(times) for times in zip(*taken[kind], strict=True))
        speeds.append(
            Speed(
                kind,
                many=2 * block * PATCHES / image,
                few=2 * weights * PROMPT / prompt,
                row=weights * weight_bytes / token,
                scores=LANGUAGE.vocab_size * LANGUAGE.width * weight_bytes / scores,
                weight_bytes=weight_bytes,
            )
        )
    return speeds


def _round(parts: nn.ModuleDict, tokens: int) -> tuple[float, float, float, float]:
    """Seconds for an image, a prompt, a token's way through the layers, and its scores."""
    decoder, vision = cast(Opt, parts["language"]), cast(VisionTransformer, parts["vision"])
    image, prompt = torch.randn(1, PATCHES, IMAGE.width), torch.randn(1, PROMPT, LANGUAGE.width)
    cache, token = decoder.new_cache(1, PROMPT + tokens), torch.randn(1, 1, LANGUAGE.width)
    looking = _timed(lambda: vision.blocks[0](image))
    reading = _timed(lambda: decoder(prompt, None, cache))
    steps = [
        (_timed(lambda: decoder.decode_step(token, cache)), _timed(lambda: decoder.logits(token)))
        for _ in range(tokens)
    ]
    going, scoring = (statistics.median(times) for times in zip(*steps, strict=True))
    return looking, reading, going, scoring


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _random(build: Callable[[], nn.Module]) -> nn.Module:
    """A module in evaluation mode; its numbers are drawn evenly, which is fast, and small, so that none overflows."""
    with torch.device("meta"):
        module = build()
    module = module.to_empty(device="cpu").eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.uniform_(-0.02, 0.02)
    return module


def _weights(module: nn.Module) -> int:
    """Of the matrices in a module, quantized or not."""
    layers = [layer for layer in module.modules() if isinstance(layer, Linear | Int8Linear)]
    return sum(layer.in_features * layer.out_features for layer in layers)


def _product_speed(placement: Placement, rounds: int) -> Speed:
    """Of products alone, in the type that a GPU was given."""
    device, dtype = placement.device, placement.dtype
    layers = [Linear(LANGUAGE.width, LANGUAGE.ffn_width).to(device, dtype) for _ in range(MATRICES)]
    inputs = [torch.randn(rows, LANGUAGE.width, device=device, dtype=dtype) for rows in (1, PROMPT, PATCHES)]
    with torch.inference_mode():
        one, few, many = (_seconds(layers, x, rounds) for x in inputs)
    weights = LANGUAGE.width * LANGUAGE.ffn_width
    row = 2 * weights / one
    name = str(dtype).removeprefix("torch.")
    return Speed(name, 2 * weights * PATCHES / many, 2 * weights * PROMPT / few, row, row, 2)


def caption_seconds(model: ModelEntry, vision: ImageEncoder, language: LanguageModel, speed: Speed) -> float:
    """An estimate, from layers of OPT-2.7b and ViT-g: others take as long a weight."""
    patches = vision.tokens(model.image_size)
    read = model.params.get(QFORMER, 0) + model.params.get(PROJECTION, 0)
    total, table = language.params, language.vocab_size * language.width
    # Every token reads the table of words once, for its scores. Of a T5's layers less than half only encode.
    encoder, decoder = (total // 2 - table, total // 2) if language.encodes_prompts else (total, total)
    return (
        2 * model.params[VISION] * patches / speed.many
        + 2 * read * QUERIES / speed.few
        + 2 * encoder * PROMPT / speed.few
        + NEW_TOKENS * (decoder - table) * speed.weight_bytes / speed.row
        + NEW_TOKENS * table * speed.weight_bytes / speed.scores
    )


def _seconds(layers: Sequence[Callable[[Tensor], Tensor]], x: Tensor, rounds: int) -> float:
    """Median of one product, layers taking turns."""
    taken = []
    for turn in range(rounds + 1):
        for layer in layers:
            _wait(x.device)
            start = time.perf_counter()
            layer(x)
            _wait(x.device)
            if turn:
                taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _read_speed(device: torch.device, rounds: int) -> float:
    numbers = torch.ones(READ_NUMBERS, device=device)
    taken = []
    for _ in range(rounds + 1):
        _wait(device)
        start = time.perf_counter()
        numbers.sum()
        _wait(device)
        taken.append(time.perf_counter() - start)
    return numbers.nbytes / statistics.median(taken[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reason(placement: Placement, speeds: Sequence[Speed]) -> str:
    if placement.device.type == "cuda":
        return "the official models were made for half precision, and this GPU has it"
    floats, codes = speeds[0], speeds[1]
    tokens = (codes.row / codes.weight_bytes) / (floats.row / floats.weight_bytes)
    gain = f"int8 encodes images {codes.many / floats.many:.1f} times and generates text {tokens:.1f} times as fast"
    return f"exact everywhere; {gain}: --dtype int8 when speed or memory counts"


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        return os.cpu_count() or 1
