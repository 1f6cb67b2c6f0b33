"""Our engine against transformers on the same weights: captions, beams, questions, the image encoder.

    python benchmarks/real_size.py opt blip2-random/
    python benchmarks/engine.py blip2-random/ --dtype int8 [--theirs float32] [--rounds 3] [--threads 2]
    python benchmarks/engine.py blip2-random/ --dtype int8 --theirs none
    python benchmarks/engine.py blip2-random/ --device cuda --dtype bfloat16 --theirs bfloat16

Both read one folder of transformers (random weights do). In each round the two take turns over every task; the table
has medians and how many times faster ours is. In float32 the weights are shared, so that one copy is in memory, and the
words have to be the same. Each round has a new image, so no features are kept from the last one; the first round
does not count, and layers of 8 bits have packed themselves before. How fast a step of ours reads weights, and how fast
memory can be read just before and after, is measured in every round, too. With `--theirs none` that is all: beside
transformers' copy of the weights there may be no huge pages of memory left, which ours is slower without. How long the
first token of a caption takes, vision included, is told as well.
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
from openblip.checkpoints.names.transformers import fresh, is_theirs, sources
from openblip.checkpoints.openblip.folder import empty_network
from openblip.checkpoints.read_options import ReadOptions
from openblip.devices import choose_placement
from openblip.images.transform import to_pixels
from openblip.models.load import model_of
from openblip.models.model import Model
from openblip.nn.quant.int8 import Int8Linear
from openblip.nn.quant.swap import quantized_layers
from openblip.nn.t5 import T5

ALL_TASKS = "greedy, beam 5, 8 questions, image encoder, batch of 64"
BATCH = 64
QUESTIONS = [f"is it {number}?" for number in range(8)]
"""As short as they are in words; the vocabulary is one of letters."""
NEW_TOKENS, ANSWER_TOKENS = 20, 5
PROBE_NUMBERS = 2**27


@dataclass(frozen=True)
class Task:
    """One thing that both do: how each does it with images, and the words that come out, if any."""

    name: str
    theirs: Callable[[list[Image.Image]], list[str]]
    ours: Callable[[list[Image.Image]], list[str]]
    images: int = 1


class Theirs:
    """transformers' model, used as its documentation shows."""

    def __init__(self, folder: Path, dtype: str, device: str) -> None:
        loaded: Any = transformers.Blip2ForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype))
        self.model = loaded.to(device).eval()
        self.processor: Any = transformers.Blip2Processor.from_pretrained(folder)

    @torch.inference_mode()
    def say(self, images: list[Image.Image], prompts: list[str], beams: int, tokens: int) -> list[str]:
        """Each prompt about all of the images."""
        said = []
        for prompt in prompts:
            inputs = self.processor(images=images, text=[prompt] * len(images), return_tensors="pt")
            inputs = inputs.to(self.model.device)
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
            ids = self.model.generate(
                **inputs, max_new_tokens=tokens, min_new_tokens=tokens, num_beams=beams, do_sample=False
            )
            said += self.processor.tokenizer.batch_decode(ids[:, -tokens:], skip_special_tokens=True)
        return said

    @torch.inference_mode()
    def see(self, images: list[Image.Image]) -> list[str]:
        pixels = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        self.model.vision_model(pixels.to(self.model.device, self.model.dtype))
        return []


class Ours:
    """The same of ours."""

    def __init__(self, folder: Path, dtype: str, device: str, theirs: Theirs | None) -> None:
        placement = choose_placement(device, dtype)
        bits = placement.bits or 0
        shared = theirs is not None and placement.dtype == theirs.model.dtype == torch.float32 and not bits
        parts = load_parts(folder, ReadOptions(placement.dtype, placement.device, 8 if shared else bits))
        if shared and theirs is not None:
            network = empty_network(parts.network.config, folder)
            network.load_state_dict(shared_weights(network, theirs.model.state_dict()), assign=True)
            parts = replace(parts, network=network)
        self.model = model_of(parts, placement)

    def caption(self, images: list[Image.Image], beams: int) -> list[str]:
        found = self.model.caption_many(
            images, prompt="", batch_size=BATCH, num_beams=beams, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS
        )
        return [caption.text for one in found for caption in one.captions]

    def ask(self, images: list[Image.Image], prompts: list[str]) -> list[str]:
        found = self.model.generate(
            self.model.encode_image(images[0]),
            prompts,
            num_beams=1,
            max_new_tokens=ANSWER_TOKENS,
            min_new_tokens=ANSWER_TOKENS,
        )
        return found

    @torch.inference_mode()
    def see(self, images: list[Image.Image]) -> list[str]:
        place = self.model.network.vision_norm.weight
        self.model.network.vision(to_pixels(images, self.model.parts.transform).to(place))
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


def read_speed(device: str = "cpu") -> float:
    """Bytes a second that all threads, or a GPU, read together."""
    numbers = torch.ones(PROBE_NUMBERS, device=device)
    numbers.sum().item()
    start = time.perf_counter()
    numbers.sum().item()
    return numbers.nbytes / (time.perf_counter() - start)


def step_bytes(model: Model) -> int:
    """What the language model reads of its weights for one token."""
    language = model.network.own_language_model
    part = language.decoder if isinstance(language, T5) else language
    plain = sum(parameter.nbytes for parameter in part.parameters())
    return plain + sum(
        layer.packed.nbytes
        for layer in quantized_layers(part).values()
        if isinstance(layer, Int8Linear) and layer.packed is not None
    )


def settle(model: Model) -> None:
    """Caption until no layer packs itself any more, as a program of many captions would have."""
    layers = [layer for layer in quantized_layers(model.network).values() if isinstance(layer, Int8Linear)]
    packed = -1
    while packed < (packed := sum(layer.packed is not None for layer in layers)) or packed < len(layers) // 2:
        for number in range(3):
            model.caption(
                Image.effect_noise((64, 48), 50 + number + packed).convert("RGB"), num_beams=5, min_new_tokens=20
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="int8", help="ours: float32, bfloat16, int8 or int4")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--theirs", default="float32", help="float32 or bfloat16; none leaves them out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tasks", default="greedy,beam 5,8 questions,image encoder", help=f"of {ALL_TASKS}")
    add_json_option(parser)
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error("this PyTorch sees no GPU: use --device cpu")
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    theirs = None if options.theirs == "none" else Theirs(options.folder, options.theirs, options.device)
    ours = Ours(options.folder, options.dtype, options.device, theirs)
    tasks = [] if theirs is None else [task for task in tasks_of(ours, theirs) if task.name in options.tasks.split(",")]
    taken: dict[tuple[str, str], list[float]] = defaultdict(list)
    same: dict[str, list[bool]] = defaultdict(list)
    speeds, steps, shares, firsts = [], [], [], []
    if options.dtype == "int8" and options.device == "cpu":
        settle(ours.model)
    for number in range(options.rounds + 1):
        image = Image.effect_noise((640, 480), 60 + number).convert("RGB")
        before = read_speed(options.device)
        steps.append(step_seconds(ours.model, number))
        speeds.append((before + read_speed(options.device)) / 2)
        firsts.append(first_token_seconds(ours.model, image))
        shares.append(step_bytes(ours.model) / steps[-1] / speeds[-1])
        for task in tasks:
            said = {}
            for side in ("theirs", "ours"):
                # Features that the task before has computed would be used again.
                shown = [image.rotate(0.1 * (tasks.index(task) + one + 1)) for one in range(task.images)]
                settled(options.device)
                start = time.perf_counter()
                said[side] = getattr(task, side)(shown)
                settled(options.device)
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
    first = statistics.median(firsts[1:])
    print(f"the first token of a caption of ours, vision included: {first * 1e3:.1f} ms")
    rows.append(Row("first token", first * 1e3, "ms", less_is_better=True))
    rows.append(Row("each further token", step * 1e3, "ms", less_is_better=True))
    rows.append(Row("decode", 100 * share, "% of what memory gives"))
    settings = f"{options.folder.name}, ours {options.dtype}, theirs {options.theirs}, {options.threads} threads"
    finish(rows, options.json, f"{settings}, {options.rounds} rounds")


def tasks_of(ours: Ours, theirs: Theirs) -> list[Task]:
    return [
        Task("greedy", lambda images: theirs.say(images, [""], 1, NEW_TOKENS), lambda images: ours.caption(images, 1)),
        Task("beam 5", lambda images: theirs.say(images, [""], 5, NEW_TOKENS), lambda images: ours.caption(images, 5)),
        Task(
            "8 questions",
            lambda images: theirs.say(images, QUESTIONS, 1, ANSWER_TOKENS),
            lambda images: ours.ask(images, QUESTIONS),
        ),
        Task("image encoder", theirs.see, ours.see),
        Task(
            f"batch of {BATCH}",
            lambda images: theirs.say(images, [""], 1, NEW_TOKENS),
            lambda images: ours.caption(images, 1),
            BATCH,
        ),
    ]


def settled(device: str) -> None:
    """Wait until a GPU has done what it was told."""
    if device != "cpu":
        torch.cuda.synchronize()


def first_token_seconds(model: Model, image: Image.Image) -> float:
    start = time.perf_counter()
    model.caption(image, prompt="", num_beams=1, max_new_tokens=1)
    return time.perf_counter() - start


def step_seconds(model: Model, number: int) -> float:
    """How long a greedy step takes: what 20 more of them add."""
    return (timed_caption(model, 25, number) - timed_caption(model, 5, number)) / 20


def timed_caption(model: Model, tokens: int, number: int) -> float:
    image = Image.effect_noise((64, 48), 10 + number).convert("RGB")
    model.caption(image, prompt="", num_beams=1, max_new_tokens=1)
    start = time.perf_counter()
    model.caption(image, prompt="", num_beams=1, max_new_tokens=tokens, min_new_tokens=tokens)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
