"""Our engine against transformers on the same weights: captions, beams, questions, the image encoder.

    python benchmarks/real_size.py opt blip2-random/
    python benchmarks/engine.py blip2-random/ --dtype int8 [--theirs float32] [--rounds 3] [--threads 2]
    python benchmarks/engine.py blip2-random/ --dtype int8 --theirs none

Both read one folder of transformers (random weights do). In each round the two take turns over every task; the table
has medians and how many times faster ours is. In float32 the weights are shared, so that one copy is in memory, and the
words have to be the same. Each round has a new picture, so no features are kept from the last one; the first round
does not count, and layers of 8 bits have packed themselves before. How fast a step of ours reads weights, and how fast
memory can be read just before and after, is measured in every round, too. With `--theirs none` that is all: beside
transformers' copy of the weights there may be no huge pages of memory left, which ours is slower without.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from results import Row, add_json_option, finish
from torch import Tensor

from openblip.checkpoints.loading import load_parts
from openblip.checkpoints.native import empty_network
from openblip.checkpoints.transformers_names import fresh, is_theirs, sources
from openblip.devices import choose_placement
from openblip.images import to_pixels
from openblip.model import Blip2
from openblip.nn.int8 import Int8Linear
from openblip.nn.quantised import quantised_layers
from openblip.nn.t5 import T5

QUESTIONS = [f"is it {number}?" for number in range(8)]
"""As short as they are in words; the vocabulary is one of letters."""
NEW_TOKENS, ANSWER_TOKENS = 20, 5
PROBE_NUMBERS = 2**27


@dataclass(frozen=True)
class Task:
    """One thing that both do: how each does it with a picture, and the words that come out, if any."""

    name: str
    theirs: Callable[[Image.Image], list[str]]
    ours: Callable[[Image.Image], list[str]]


class Theirs:
    """transformers' model, used as its documentation shows."""

    def __init__(self, folder: Path, dtype: str) -> None:
        loaded: Any = transformers.Blip2ForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype))
        self.model = loaded.eval()
        self.processor: Any = transformers.Blip2Processor.from_pretrained(folder)

    @torch.inference_mode()
    def say(self, image: Image.Image, prompts: list[str], beams: int, tokens: int) -> list[str]:
        said = []
        for prompt in prompts:
            inputs = self.processor(images=image, text=prompt, return_tensors="pt")
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
            ids = self.model.generate(
                **inputs, max_new_tokens=tokens, min_new_tokens=tokens, num_beams=beams, do_sample=False
            )
            new = ids[0, -tokens:]
            said.append(self.processor.tokenizer.decode(new, skip_special_tokens=True))
        return said

    @torch.inference_mode()
    def see(self, image: Image.Image) -> list[str]:
        pixels = self.processor.image_processor(image, return_tensors="pt")["pixel_values"]
        self.model.vision_model(pixels.to(self.model.dtype))
        return []


class Ours:
    """The same of ours."""

    def __init__(self, folder: Path, dtype: str, theirs: Theirs | None) -> None:
        placement = choose_placement("cpu", dtype)
        bits = placement.bits or 0
        shared = not bits and theirs is not None
        parts = load_parts(folder, dtype=placement.dtype, bits=8 if shared else bits)
        if shared and theirs is not None:
            network = empty_network(parts.network.config, folder)
            network.load_state_dict(shared_weights(network, theirs.model.state_dict()), assign=True)
            parts = replace(parts, network=network)
        self.model = Blip2(parts, placement)

    def caption(self, image: Image.Image, beams: int) -> list[str]:
        return [self.model.caption(image, prompt="", beams=beams, max_tokens=NEW_TOKENS, min_tokens=NEW_TOKENS)]

    def ask(self, image: Image.Image, prompts: list[str]) -> list[str]:
        found = self.model.complete(
            self.model.visual_prompt(image), prompts, beams=1, max_tokens=ANSWER_TOKENS, min_tokens=ANSWER_TOKENS
        )
        return [answer.text for answer in found]

    @torch.inference_mode()
    def see(self, image: Image.Image) -> list[str]:
        self.model.network.vision(to_pixels([image], self.model.parts.transform))
        return []


def shared_weights(network: torch.nn.Module, theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors as views of theirs; what is one matrix in ours and three in theirs is copied."""
    state = {}
    for name, tensor in network.state_dict().items():
        if not is_theirs(name):
            state[name] = fresh(name, tuple(tensor.shape))
            continue
        parts = [theirs[row.name].chunk(row.count)[row.index] for row in sources(name)]
        state[name] = (parts[0] if len(parts) == 1 else torch.cat(parts)).float()
    return state


def read_speed() -> float:
    """Bytes a second that all threads read together."""
    numbers = torch.ones(PROBE_NUMBERS)
    numbers.sum()
    start = time.perf_counter()
    numbers.sum()
    return numbers.nbytes / (time.perf_counter() - start)


def step_bytes(model: Blip2) -> int:
    """What the language model reads of its weights for one token."""
    language = model.network.own_language_model
    part = language.decoder if isinstance(language, T5) else language
    plain = sum(parameter.nbytes for parameter in part.parameters())
    return plain + sum(
        layer.packed.nbytes
        for layer in quantised_layers(part).values()
        if isinstance(layer, Int8Linear) and layer.packed is not None
    )


def settle(model: Blip2) -> None:
    """Caption until no layer packs itself any more, as a program of many captions would have."""
    layers = [layer for layer in quantised_layers(model.network).values() if isinstance(layer, Int8Linear)]
    packed = -1
    while packed < (packed := sum(layer.packed is not None for layer in layers)) or packed < len(layers) // 2:
        for number in range(3):
            model.caption(Image.effect_noise((64, 48), 50 + number + packed).convert("RGB"), beams=5, min_tokens=20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="int8", help="ours: float32, int8 or int4")
    parser.add_argument("--theirs", default="float32", help="float32 or bfloat16; none leaves them out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tasks", default="greedy,beam 5,8 questions,image encoder")
    add_json_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    theirs = None if options.theirs == "none" else Theirs(options.folder, options.theirs)
    ours = Ours(options.folder, options.dtype, theirs)
    tasks = [] if theirs is None else [task for task in tasks_of(ours, theirs) if task.name in options.tasks.split(",")]
    taken: dict[tuple[str, str], list[float]] = defaultdict(list)
    same: dict[str, list[bool]] = defaultdict(list)
    speeds, steps, shares = [], [], []
    if options.dtype == "int8":
        settle(ours.model)
    for number in range(options.rounds + 1):
        image = Image.effect_noise((640, 480), 60 + number).convert("RGB")
        before = read_speed()
        steps.append(step_seconds(ours.model, number))
        speeds.append((before + read_speed()) / 2)
        shares.append(step_bytes(ours.model) / steps[-1] / speeds[-1])
        for task in tasks:
            said = {}
            for side in ("theirs", "ours"):
                # Features that the task before has computed would be used again.
                picture = image.rotate(0.1 * tasks.index(task))
                start = time.perf_counter()
                said[side] = getattr(task, side)(picture)
                taken[task.name, side].append(time.perf_counter() - start)
            same[task.name].append([text.split() for text in said["theirs"]] == [text.split() for text in said["ours"]])
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, {options.threads} threads, "
        f"{platform.machine()}, memory is read at {statistics.median(speeds) / 1e9:.1f} GB/s"
    )
    if tasks:
        print(
            f"| task | theirs {options.theirs}, s | ours {options.dtype}, s | times as fast | ours first, s "
            "| same words |"
        )
        print("|---|---|---|---|---|---|")
    rows = []
    for task in tasks:
        (warm, *them), (first, *us) = taken[task.name, "theirs"], taken[task.name, "ours"]
        del warm
        slow, fast = statistics.median(them), statistics.median(us)
        told = "" if task.name == "image encoder" else f"{sum(same[task.name])} of {len(same[task.name])}"
        print(f"| {task.name} | {slow:.2f} | {fast:.2f} | {slow / fast:.2f} | {first:.2f} | {told} |")
        rows.append(Row(task.name, slow / fast, ours=fast, theirs=slow))
    step = statistics.median(steps[1:])
    rate = step_bytes(ours.model) / step
    share = statistics.median(shares[1:])
    print(
        f"\na greedy step of ours: {step * 1e3:.1f} ms, {rate / 1e9:.1f} GB/s, {share:.0%} of what memory gives "
        f"({min(shares[1:]):.0%} to {max(shares[1:]):.0%})"
    )
    rows.append(Row("decode", 100 * share, "% of what memory gives"))
    settings = f"{options.folder.name}, ours {options.dtype}, theirs {options.theirs}, {options.threads} threads"
    finish(rows, options.json, f"{settings}, {options.rounds} rounds")


def tasks_of(ours: Ours, theirs: Theirs) -> list[Task]:
    return [
        Task("greedy", lambda image: theirs.say(image, [""], 1, NEW_TOKENS), lambda image: ours.caption(image, 1)),
        Task("beam 5", lambda image: theirs.say(image, [""], 5, NEW_TOKENS), lambda image: ours.caption(image, 5)),
        Task(
            "8 questions",
            lambda image: theirs.say(image, QUESTIONS, 1, ANSWER_TOKENS),
            lambda image: ours.ask(image, QUESTIONS),
        ),
        Task("image encoder", theirs.see, ours.see),
    ]


def step_seconds(model: Blip2, number: int) -> float:
    """How long a greedy step takes: what 20 more of them add."""
    return (timed_caption(model, 25, number) - timed_caption(model, 5, number)) / 20


def timed_caption(model: Blip2, tokens: int, number: int) -> float:
    image = Image.effect_noise((64, 48), 10 + number).convert("RGB")
    model.caption(image, prompt="", beams=1, max_tokens=1)
    start = time.perf_counter()
    model.caption(image, prompt="", beams=1, max_tokens=tokens, min_tokens=tokens)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
