"""What it saves to read an image's visual prompt once for all questions about it, and a prompt once for all its beams.

    python benchmarks/prefix_sharing.py [--questions 8] [--num-beams 5] [--rounds 3] [--threads 1]

A decoder of OPT's layout (by default 12 layers of 1024) with random weights answers questions of 6 to 14 tokens behind
a visual prompt of 32. Three ways take turns: as OpenBLIP did before, with a copy of the whole prompt for every beam,
whose keys and values move when beams change places; with beams that share their prompt; with questions that share the
visual prompt, too. The last comes twice: with the visual prompt's keys and values computed in the run, and with those
kept from an earlier question. Seconds are those of the processor; all ways must give the same ids.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from results import Row, add_json_option, finish
from torch import Tensor

from openblip.generation.engine import generate
from openblip.generation.options import Generation, GenerationOptions
from openblip.generation.prefix import Prefix
from openblip.nn.kv_cache import KeyValueCache
from openblip.nn.opt import Opt, OptConfig

VISUAL = 32
VOCABULARY = 16000

Texts = list[list[Generation]]


def build(width: int, depth: int) -> Opt:
    torch.manual_seed(0)
    config = OptConfig(VOCABULARY, width, depth, width // 64, 4 * width, max_positions=256)
    return Opt(config).eval().requires_grad_(False)


@dataclass
class Copying:
    """A decoder whose beams each have a row with a copy of their prompt."""

    decoder: Opt

    @property
    def config(self) -> OptConfig:
        return self.decoder.config

    def embed(self, ids: Tensor) -> Tensor:
        return self.decoder.embed(ids)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.decoder.logits(hidden)

    def hidden_before(self, prompts: Tensor, mask: Tensor | None, labels: Tensor) -> Tensor:
        return self.decoder.hidden_before(prompts, mask, labels)

    def read_prefix(self, embeds: Tensor) -> None:
        return None

    def new_slots(self, texts: int) -> None:
        return None

    def read(
        self, prompts: Tensor, mask: Tensor | None, new_tokens: int, texts: int = 1
    ) -> tuple[CopyingReading, Tensor]:
        cache = self.decoder.new_cache(len(prompts), prompts.shape[1] + new_tokens)
        hidden = self.decoder(prompts, mask, cache)
        return CopyingReading(self.decoder, cache, texts), self.decoder.logits(hidden[:, -1]).float()


class CopyingReading:
    def __init__(self, decoder: Opt, cache: KeyValueCache, texts: int) -> None:
        self.decoder = decoder
        self.cache = cache
        self.texts = texts
        self.prompt_length = cache.length
        cache.take_rows(torch.arange(cache.batch).repeat_interleave(texts))

    def step(self, tokens: Tensor, parents: Tensor | None = None) -> Tensor:
        if parents is not None:
            rows = (torch.arange(len(parents))[:, None] * self.texts + parents).flatten()
            own = slice(self.prompt_length, self.cache.length)
            self.cache.keys[:, :, :, own] = self.cache.keys[:, rows, :, own]
            self.cache.values[:, :, :, own] = self.cache.values[:, rows, :, own]
        hidden = self.decoder(self.decoder.embed(tokens.view(-1, 1)), None, self.cache)
        return self.decoder.logits(hidden[:, -1]).float().view(*tokens.shape, -1)

    def take_prompts(self, rows: Tensor) -> None:
        self.cache.take_rows((rows[:, None] * self.texts + torch.arange(self.texts)).flatten())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--num-beams", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=10)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    add_json_option(parser)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = build(given.width, given.depth)
    visual = torch.randn(VISUAL, given.width)
    lengths = torch.randint(6, 15, (given.questions,)).tolist()
    questions = [model.embed(torch.randint(VOCABULARY, (length,))) for length in lengths]
    whole = [torch.cat([visual, question]) for question in questions]
    options = GenerationOptions(max_new_tokens=given.new_tokens, num_beams=given.num_beams)
    kept = Prefix(model, visual)
    ways: dict[str, Callable[[], Texts]] = {
        "every beam with a copy of its prompt": lambda: generate(Copying(model), whole, options),
        "beams share their prompt": lambda: generate(model, whole, options),
        "questions share the visual prompt": lambda: generate(model, questions, options, prefix=Prefix(model, visual)),
        "it was read before": lambda: generate(model, questions, options, prefix=kept),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    first: list[tuple[int, ...]] | None = None
    for turn in range(given.rounds + 1):
        for name, way in ways.items():
            start = time.process_time()
            texts = way()
            if turn:  # the first is a warm-up
                taken[name].append(time.process_time() - start)
            ids = [text.ids for group in texts for text in group]
            first = first or ids
            if ids != first:
                raise SystemExit(f"{name} gives other texts")
    print(
        f"{given.questions} questions, beam {given.num_beams}, {given.new_tokens} tokens each, "
        f"{given.threads} threads, torch {torch.__version__}\n"
    )
    print("| what | s, median | lowest to highest | times as fast |\n|---|---|---|---|")
    slowest = statistics.median(next(iter(taken.values())))
    for name, seconds in taken.items():
        low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
        print(f"| {name} | {middle:.2f} | {low:.2f} to {high:.2f} | {slowest / middle:.2f} |")
    rows = [
        Row(name, slowest / (one := statistics.median(all)), ours=one, theirs=slowest) for name, all in taken.items()
    ]
    settings = f"{given.questions} questions, beam {given.num_beams}, {given.depth} layers of {given.width}"
    finish(rows[1:], given.json, f"{settings}, {given.threads} threads, {given.rounds} rounds")


if __name__ == "__main__":
    main()
