"""What this machine computes fast, measured with the layers that models are made of, and what follows for captions."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openblip.checkpoints.sizes import PATCH, QUERIES, LanguageModel
from openblip.checkpoints.zoo import PROJECTION, QFORMER, VISION, ZOO, ZooModel
from openblip.devices import Placement, choose_placement
from openblip.nn.quant.int8 import Int8Linear
from openblip.nn.quant.int8_packing import LEVELS, input_levels
from openblip.nn.quant.linear import Linear

INPUTS, OUTPUTS = 2560, 10240
"""Sizes of OPT-2.7b's largest layers."""
MATRICES = 3
"""Layers that take turns: more weights than a processor's cache holds."""
READ_NUMBERS = 2**26
PATCHES, PROMPT, NEW_TOKENS = 257, 33, 20
"""Rows of the products: patches of an image at 224 px, a visual prompt and its start, tokens of a caption."""


@dataclass(frozen=True)
class Speed:
    """How fast one number format multiplies.

    Attributes:
        many: operations a second (two a weight) with the rows of an image; few: with those of a prompt.
        row: bytes of weights a second with one row, as for every new token.
        weight_bytes: of one weight.
    """

    dtype: str
    many: float
    few: float
    row: float
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
    """

    processor: str
    cores: int
    threads: int
    placement: Placement
    reason: str
    reads: float
    exact_int8: bool
    speeds: tuple[Speed, ...]

    def estimates(self) -> list[Estimate]:
        """For every official model that writes; models of the same parts are told once."""
        found: dict[tuple[object, ...], Estimate] = {}
        for model in ZOO:
            if model.language is not None:
                parts = (model.encoder, model.language, model.image_size)
                seconds = {speed.dtype: caption_seconds(model, model.language, speed) for speed in self.speeds}
                found.setdefault(parts, Estimate(model.name, seconds))
        return list(found.values())


def measure(rounds: int = 5) -> Machine:
    """A few seconds of work."""
    placement = choose_placement()
    device = placement.device
    layers: dict[str, tuple[float, list[nn.Module]]] = {}
    if device.type == "cpu":
        layers["float32"] = (4, [Linear(INPUTS, OUTPUTS) for _ in range(MATRICES)])
        layers["int8"] = (1, [_int8_layer() for _ in range(MATRICES)])
    else:
        name = str(placement.dtype).removeprefix("torch.")
        layers[name] = (2, [Linear(INPUTS, OUTPUTS).to(device, placement.dtype) for _ in range(MATRICES)])
    speeds = []
    for dtype, (weight_bytes, modules) in layers.items():
        seconds = []
        for few_rows, row_counts in ((True, (1, PROMPT)), (False, (PATCHES,))):
            for module in modules:
                if isinstance(module, Int8Linear):
                    module.unpack()
                    module.pack(few_rows)
            inputs = (torch.randn(rows, INPUTS, device=device, dtype=placement.dtype) for rows in row_counts)
            seconds += [_seconds(modules, x, rounds) for x in inputs]
        one, few, many = seconds
        weights = INPUTS * OUTPUTS
        speeds.append(
            Speed(
                dtype,
                2 * weights * PATCHES / many,
                2 * weights * PROMPT / few,
                weights * weight_bytes / one,
                weight_bytes,
            )
        )
    return Machine(
        processor=_processor(device),
        cores=_cores(),
        threads=torch.get_num_threads(),
        placement=placement,
        reason=_reason(placement, speeds),
        reads=_read_speed(device, rounds),
        exact_int8=input_levels() == LEVELS,
        speeds=tuple(speeds),
    )


def caption_seconds(model: ZooModel, language: LanguageModel, speed: Speed) -> float:
    """An estimate: products and the reading of weights, nothing else."""
    parts = model.part_parameters()
    patches = (model.image_size // PATCH) ** 2 + 1
    total, table = language.parameters(), language.vocab_size * language.width
    # Every token reads the table of words once, for its scores. Of a T5's layers less than half only encode.
    encoder, decoder = (total, total) if language.kind == "opt" else (total // 2 - table, total // 2)
    return (
        2 * parts[VISION] * patches / speed.many
        + 2 * (parts[QFORMER] + parts[PROJECTION]) * QUERIES / speed.few
        + 2 * encoder * PROMPT / speed.few
        + NEW_TOKENS * decoder * speed.weight_bytes / speed.row
    )


def _int8_layer() -> Int8Linear:
    layer = Int8Linear(INPUTS, OUTPUTS)
    codes = torch.randint(-LEVELS, LEVELS + 1, (OUTPUTS, INPUTS), dtype=torch.int8)
    layer.put(codes, torch.full((OUTPUTS,), 1e-3))
    layer.bias = nn.Parameter(torch.zeros(OUTPUTS), requires_grad=False)
    return layer


def _seconds(layers: Sequence[Callable[[Tensor], Tensor]], x: Tensor, rounds: int) -> float:
    """Median of one product, layers taking turns."""
    taken = []
    with torch.inference_mode():
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
    gain = f"int8 multiplies {codes.many / floats.many:.1f} times as fast and reads a quarter"
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
