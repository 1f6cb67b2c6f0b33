"""Training captions by their score instead of by examples (self-critical sequence training)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from openblip.checkpoints.model_parts import ModelParts
from openblip.data.pairs import ImageText
from openblip.errors import CheckpointError, OptionError
from openblip.generation.engine import generate
from openblip.generation.options import Generation, GenerationOptions
from openblip.nn.opt import Opt
from openblip.text import pad_ids, trim_prompt
from openblip.training.input.batches import BatchRow
from openblip.training.losses import IGNORED, TextBatch, read_behind, self_critical_loss
from openblip.training.parallel.processes import ALONE, World

WORD = re.compile(r"[a-z0-9'-]+")
END = "."
"""A word of the reward for the end of a caption, without which captions that break off score best."""
MAX_NGRAM = 4
LENGTH_SPREAD = 6.0

NGram = tuple[str, ...]
Weights = list[dict[NGram, float]]


class CiderReward:
    """CIDEr-D (Vedantam et al. 2015, https://arxiv.org/abs/1411.5726) against each image's own captions.

    How much an n-gram tells is counted over all images given.
    """

    def __init__(self, references: Mapping[str, Sequence[str]]) -> None:
        self.references = {name: [text.split() for text in texts] for name, texts in references.items()}
        self.seen_in: Counter[NGram] = Counter()
        for texts in self.references.values():
            self.seen_in.update({gram for words in texts for gram in _ngrams(words)})
        self.log_images = math.log(max(1, len(self.references)))

    def score(self, name: str, text: str) -> float:
        """The score of one caption of the named image: 0 to 10; about 0.8 for a caption by a person."""
        words = text.split()
        found = self._weigh(words)
        total = 0.0
        for reference in self.references[name]:
            nearness = math.exp(-((_bigrams(words) - _bigrams(reference)) ** 2) / (2 * LENGTH_SPREAD**2))
            total += nearness * sum(map(_clipped_cosine, found, self._weigh(reference))) / MAX_NGRAM
        return 10 * total / len(self.references[name])

    def _weigh(self, words: Sequence[str]) -> Weights:
        weights: Weights = [{} for _ in range(MAX_NGRAM)]
        for gram, count in _ngrams(words).items():
            weights[len(gram) - 1][gram] = count * (self.log_images - math.log(max(1, self.seen_in[gram])))
        return weights


def _ngrams(words: Sequence[str]) -> Counter[NGram]:
    return Counter(
        tuple(words[start : start + size]) for size in range(1, MAX_NGRAM + 1) for start in range(len(words) - size + 1)
    )


def _bigrams(words: Sequence[str]) -> int:
    return max(0, len(words) - 1)


def _clipped_cosine(found: Mapping[NGram, float], reference: Mapping[NGram, float]) -> float:
    """Cosine in which an n-gram counts at most as often as the reference has it."""
    norms = math.hypot(*found.values()) * math.hypot(*reference.values())
    if not norms:
        return 0.0
    return sum(min(value, reference.get(gram, 0.0)) * reference.get(gram, 0.0) for gram, value in found.items()) / norms


class SelfCritic:
    """Samples captions for the images of a batch and turns their rewards into a loss."""

    def __init__(self, parts: ModelParts, images: Sequence[ImageText], draws: int) -> None:
        """Raises OptionError when no image has a caption, CheckpointError when the model cannot write."""
        references = {str(pair.image): [_marked(text) for text in pair.captions] for pair in images if pair.captions}
        if not references:
            raise OptionError(
                "self_critical needs images with captions: give a data source that has them, or set it to 0"
            )
        if parts.tokenizer is None:
            raise CheckpointError(f"{parts.name} has no language model: give one that can write text")
        self.parts, self.tokenizer = parts, parts.tokenizer
        self.reward = CiderReward(references)
        self.stop_id = self.tokenizer.only_id(parts.defaults.stop_token)
        self.before = [self.tokenizer.start_id, *self.tokenizer.encode(trim_prompt(parts.prompts.caption))]
        self.options = GenerationOptions(
            max_new_tokens=parts.defaults.captions.max_new_tokens,
            do_sample=True,
            num_return_sequences=draws,
            stop_ids=(self.stop_id,),
        ).resolved()

    def losses(
        self,
        batch: Sequence[BatchRow],
        prompt: Tensor,
        generator: torch.Generator | None = None,
        world: World = ALONE,
    ) -> dict[str, Tensor]:
        """The loss, or nothing where no image of any process has a caption.

        Args:
            prompt: the visual prompts of the batch [B, Q, token width].
            generator: on the CPU, equal in all processes: each takes its part of one draw for all rows, so that
                their number does not matter to what is written.
        """
        draws, length = self.options.num_return_sequences, self.options.max_new_tokens
        uniforms = torch.rand(len(batch) * world.size, draws, length, generator=generator)[
            world.rows(len(batch) * world.size)
        ]
        rows = [index for index, row in enumerate(batch) if row.pair.captions]
        world = world.uneven(len(rows), prompt.device)
        if not world.joined(len(rows)):
            return {}
        described = torch.tensor(rows, dtype=torch.int64)
        prompt = prompt[described.to(prompt.device)]
        samples = self.draw(prompt.detach(), uniforms[described])
        scores = [
            [self.reward.score(str(batch[row].pair.image), self._read(text)) for text in texts]
            for row, texts in zip(rows, samples, strict=True)
        ]
        rewards = torch.tensor(scores, device=prompt.device).view(len(rows), draws)
        texts = [
            [*self.before, *text.ids, *([self.stop_id] if text.stopped else [])] for group in samples for text in group
        ]
        ids, mask = pad_ids(texts, self.tokenizer.pad_id)
        labels = ids.masked_fill(~mask, IGNORED)
        labels[:, : len(self.before)] = IGNORED
        decoder = cast(Opt, self.parts.network.own_language_model)
        text = TextBatch(ids, mask).to(prompt.device)
        hidden = read_behind(decoder, prompt.repeat_interleave(draws, dim=0), text)
        return {"cider": self_critical_loss(decoder, hidden, labels.to(prompt.device), rewards, world)}

    @torch.no_grad()
    def draw(self, prompt: Tensor, uniforms: Tensor) -> list[list[Generation]]:
        """Captions after each visual prompt [B, Q, token width], sampled with numbers in [0, 1): [B, draws, tokens]."""
        decoder = cast(Opt, self.parts.network.own_language_model)
        start = decoder.embed(torch.tensor(self.before, device=prompt.device)).to(prompt)
        return generate(decoder, [torch.cat([row, start]) for row in prompt], self.options, uniforms=uniforms)

    def _read(self, text: Generation) -> str:
        words = " ".join(WORD.findall(self.tokenizer.decode(text.ids).lower()))
        return f"{words} {END}" if text.stopped else words


def _marked(text: str) -> str:
    return " ".join([*WORD.findall(text.lower()), END])
