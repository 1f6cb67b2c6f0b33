"""How to generate, and what comes out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from openblip.errors import OptionError


@dataclass(frozen=True)
class GenerationOptions:
    """Greedy by default; beam search with `num_beams`; random draws with `sample`.

    Attributes:
        max_new_tokens, min_new_tokens: of the text that is generated; the prompt never counts.
        length_penalty: beam scores are sums of log-probabilities divided by length ** length_penalty.
        early_stopping: end a beam search as soon as `num_beams` texts are finished; otherwise it goes on
            while a live beam still scores better than the worst finished text.
        num_return: texts a prompt, best first; drawn independently when sampling.
        temperature, top_k, top_p: shape the distribution that is sampled from, in this order.
        repetition_penalty: divides the score of tokens that were already used (Keskar et al. 2019,
            https://arxiv.org/abs/1909.05858); 1 is off.
        seed: of the random draws; each prompt draws on its own, whatever else is in the batch.
        stop_ids: any of these ends a text and is not part of it.
    """

    max_new_tokens: int = 30
    min_new_tokens: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    num_return: int = 1
    sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise OptionError(f"max_tokens is {self.max_new_tokens}: it must be at least 1")
        if not 0 <= self.min_new_tokens <= self.max_new_tokens:
            raise OptionError(
                f"min_tokens is {self.min_new_tokens}: it must lie between 0 and max_tokens ({self.max_new_tokens})"
            )
        if self.num_beams < 1:
            raise OptionError(f"beams is {self.num_beams}: it must be at least 1")
        if self.sample and self.num_beams > 1:
            raise OptionError("beams searches and sampling draws at random: give one or the other")
        if self.num_return < 1:
            raise OptionError(f"{self.num_return} texts were asked for: ask for at least 1")
        if not self.sample and self.num_return > self.num_beams:
            raise OptionError(
                f"{self.num_return} texts from {self.num_beams} beams: give at least as many beams, or sample"
            )
        if not 0 < self.temperature < math.inf:
            raise OptionError(f"temperature is {self.temperature}: it must be a number above 0")
        if self.top_k < 0:
            raise OptionError(f"top_k is {self.top_k}: it must be 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise OptionError(f"top_p is {self.top_p}: it must be above 0 and at most 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise OptionError(f"repetition_penalty is {self.repetition_penalty}: it must be a number above 0")

    def check_streaming(self) -> None:
        """Raises OptionError where texts cannot be told token by token."""
        if self.num_beams > 1:
            raise OptionError(
                "a beam search chooses its text at the end and cannot be streamed: give beams=1, or draw with top_p, "
                "top_k or temperature"
            )
        if self.num_return > 1:
            raise OptionError(f"{self.num_return} texts were asked for: one at a time can be streamed")


@dataclass(frozen=True)
class Generation:
    """One generated text.

    Attributes:
        ids: without prompt and stop token.
        log_probs: of each id under the model itself, before any penalty or temperature.
        stop_log_prob: of the stop token that ended it; None when it ran into max_new_tokens.
        score: beam search: the beam's (penalised) score; otherwise the sum of all log-probabilities.
    """

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    stop_log_prob: float | None
    score: float

    @property
    def stopped(self) -> bool:
        return self.stop_log_prob is not None


def make_generation(
    tokens: list[int], log_probs: list[float], stop_ids: tuple[int, ...], score: float | None = None
) -> Generation:
    """From all tokens that were generated, the stop token included."""
    stopped = bool(tokens) and tokens[-1] in stop_ids
    return Generation(
        ids=tuple(tokens[:-1] if stopped else tokens),
        log_probs=tuple(log_probs[:-1] if stopped else log_probs),
        stop_log_prob=log_probs[-1] if stopped else None,
        score=sum(log_probs) if score is None else score,
    )
