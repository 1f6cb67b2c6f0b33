"""What generation asks of a language model, and how each kind answers."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from openblip.errors import OptionError
from openblip.nn.cache import KeyValueCache
from openblip.nn.decoder import Decoder
from openblip.nn.t5 import T5, EncoderMemory


class Reading(Protocol):
    """Texts that a language model has read so far, one a row."""

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token a row [R] and score the next: [R, vocabulary] float32."""

    def take_rows(self, rows: Tensor) -> None:
        """Replace the rows by `rows` [n] int64 of them: repeat a row per beam, drop finished ones."""

    def reorder(self, rows: Tensor) -> None:
        """Permute rows, each place going on with a row of the same prompt: only what differs has to move."""


class DecoderReading:
    """Prompt and text in one cache."""

    def __init__(self, decoder: Decoder, cache: KeyValueCache) -> None:
        self.decoder = decoder
        self.cache = cache
        self.prompt_length = cache.length

    def step(self, tokens: Tensor) -> Tensor:
        hidden = self.decoder(self.decoder.embed(tokens[:, None]), None, self.cache)
        return self.decoder.logits(hidden[:, -1]).float()

    def take_rows(self, rows: Tensor) -> None:
        self.cache.take_rows(rows)

    def reorder(self, rows: Tensor) -> None:
        self.cache.reorder(rows, self.prompt_length)


class T5Reading:
    """The prompt in the encoder's memory, the text behind the start token in the decoder's cache."""

    def __init__(self, t5: T5, memory: EncoderMemory, cache: KeyValueCache) -> None:
        self.t5 = t5
        self.memory = memory
        self.cache = cache

    def step(self, tokens: Tensor) -> Tensor:
        hidden = self.t5(self.t5.embed(tokens[:, None]), self.memory, self.cache)
        return self.t5.logits(hidden[:, -1]).float()

    def take_rows(self, rows: Tensor) -> None:
        self.memory = self.memory.take(rows)
        self.cache.take_rows(rows)

    def reorder(self, rows: Tensor) -> None:
        # Rows of one prompt share their memory and the start token.
        self.cache.reorder(rows, 1)


def read(model: Decoder | T5, embeds: Tensor, mask: Tensor | None, new_tokens: int) -> tuple[Reading, Tensor]:
    """Read prompts [P, T, token width] padded on the left, mask [P, T], leaving room for `new_tokens`.

    Returns:
        what to go on from, and the scores of the first new token [P, vocabulary] float32.

    Raises:
        OptionError: prompt and new tokens exceed the model's positions; T5 has no such limit.
    """
    count, longest = embeds.shape[:2]
    if isinstance(model, T5):
        memory = model.remember(model.encode(embeds, mask), mask)
        text = T5Reading(model, memory, model.new_cache(count, new_tokens))
        return text, text.step(torch.full((count,), model.config.start_id, device=embeds.device))
    limit = model.config.max_positions
    if longest + new_tokens > limit:
        raise OptionError(
            f"a prompt of {longest} tokens and {new_tokens} new ones exceed the model's {limit} positions: "
            "shorten the prompt or lower max_tokens"
        )
    cache = model.new_cache(count, longest + new_tokens)
    hidden = model(embeds, mask, cache)
    return DecoderReading(model, cache), model.logits(hidden[:, -1]).float()
