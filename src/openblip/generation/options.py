"""How to generate, and what comes out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any, TypedDict

from openblip.errors import OptionError, yes_or_no
from openblip.generation.repeated_words import Vocabulary

OTHER_NAMES = {
    "max_length": "max_new_tokens",
    "max_len": "max_new_tokens",
    "min_length": "min_new_tokens",
    "min_len": "min_new_tokens",
    "do_sample": "top_p, top_k or temperature",
    "num_return_sequences": "num_captions",
}
"""What other libraries have for something that goes by a name here that is not much like it."""


class TextOptions(TypedDict, total=False):
    """What may be said about generation, by keyword: the user's fields of `GenerationOptions`, which explains them."""

    num_beams: int | None
    max_new_tokens: int | None
    min_new_tokens: int | None
    top_p: float | None
    top_k: int | None
    temperature: float | None
    seed: int | None
    length_penalty: float | None
    repetition_penalty: float | None
    no_repeat_ngram_size: int | None
    no_repeat_words: bool | None
    bad_words: Collection[str] | None


def _by_user(metavar: str | None, explained: str, *flags: str) -> Any:
    """A field that users may set, and how the command line explains it; by default its flag is the field's name."""
    return field(default=None, metadata={"metavar": metavar, "help": explained, "flags": flags})


def _checked_words(words: object) -> tuple[str, ...]:
    if isinstance(words, list | tuple | set | frozenset):
        texts = [word for word in words if isinstance(word, str) and any(map(str.isalnum, word))]
        if len(texts) == len(words):
            return tuple(sorted(texts) if isinstance(words, set | frozenset) else texts)
    raise OptionError(f"bad_words is {words!r:.80}: it must be a list of words")


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How text is generated; None leaves the choice to the model.

    Attributes:
        num_beams: width of the beam search; 1 is greedy.
        max_new_tokens, min_new_tokens: of the text that is generated; the prompt never counts.
        top_p, top_k, temperature: any of these samples instead of searching. They shape the distribution: the
            temperature first, then the `top_k` likeliest tokens (0 is all), then the likeliest of a total probability
            of `top_p`.
        seed: makes sampling repeatable; each prompt is sampled on its own, whatever else is in the batch.
        length_penalty: the score of a beam is its log-probability divided by length ** length_penalty.
        repetition_penalty: above 1 lowers the score of tokens that were used already (Keskar et al. 2019,
            https://arxiv.org/abs/1909.05858).
        no_repeat_ngram_size: no sequence of so many tokens occurs twice in a text; 0 is off.
        no_repeat_words: no content word occurs twice in a text: only those of
            `openblip.generation.repeated_words.FUNCTION_WORDS` do. The words of a caption's prompt count.
        bad_words: words and phrases that do not occur in a text, in this form and in any capitals: "dog" is not "dogs".
            A word of several tokens goes on until its last one; a prompt may have it.
        early_stopping: end a beam search as soon as `num_beams` texts are finished; otherwise it goes on while a live
            beam still scores better than the worst finished text.
        do_sample: by default, whether one of top_p, top_k and temperature is set.
        num_return_sequences: texts of each prompt, best first; sampled independently of one another.
        stop_ids: any of these tokens ends a text and is not part of it.
        vocabulary: of the language model, for no_repeat_words and bad_words.

    Raises:
        OptionError: a value out of range, or options that exclude each other.
    """

    num_beams: int | None = _by_user("N", "Number of beams; 1 is greedy search.")
    max_new_tokens: int | None = _by_user("N", "Maximum number of new tokens; the prompt does not count.")
    min_new_tokens: int | None = _by_user("N", "Minimum number of new tokens.")
    top_p: float | None = _by_user("P", "Sample from the most likely tokens with this total probability.")
    top_k: int | None = _by_user("N", "Sample from the N most likely tokens.")
    temperature: float | None = _by_user("T", "Sample with this temperature: above 1 is more random, below 1 is less.")
    seed: int | None = _by_user("N", "Seed for sampling; the same seed gives the same text.")
    length_penalty: float | None = _by_user("X", "Beam search prefers long texts above 0, short texts below 0.")
    repetition_penalty: float | None = _by_user("X", "Above 1, words that were already used become less likely.")
    no_repeat_ngram_size: int | None = _by_user("N", "No sequence of N tokens occurs twice; 0 is off.")
    no_repeat_words: bool | None = _by_user(
        None, "No word but those like 'a', 'and', 'of' occurs twice.", "--no-repeat-words/--repeat-words"
    )
    bad_words: Collection[str] | None = _by_user(
        "WORD", "A word that must not occur, in singular or plural, or a file of them; repeatable.", "--avoid"
    )
    early_stopping: bool | None = None
    do_sample: bool | None = None
    num_return_sequences: int | None = None
    stop_ids: tuple[int, ...] | None = None
    vocabulary: Vocabulary | None = None

    def __post_init__(self) -> None:
        for name, (kind, fits, wanted) in RANGES.items():
            value = getattr(self, name)
            if value is None:
                continue
            called = "the number of texts" if name == "num_return_sequences" else name
            if kind is bool:
                value = yes_or_no(called, value)
            elif not isinstance(value, kind) or isinstance(value, bool):
                raise OptionError(f"{called} is {value!r}: it must be {KINDS[kind]}")
            elif not fits(value):
                raise OptionError(f"{called} is {value}: it must be {wanted}")
            # Of Python: PyTorch takes no fractions, and no whole number of more than 64 bits for a float.
            object.__setattr__(self, name, CONVERSIONS[kind](value))
        if self.bad_words is not None:
            object.__setattr__(self, "bad_words", _checked_words(self.bad_words))
        self._check_together()

    def _check_together(self) -> None:
        shortest, longest, beams = self.min_new_tokens, self.max_new_tokens, self.num_beams
        if shortest is not None and longest is not None and shortest > longest:
            raise OptionError(f"min_new_tokens is {shortest}: it must be at most max_new_tokens, which is {longest}")
        if self.do_sample is None and any(value is not None for value in (self.top_p, self.top_k, self.temperature)):
            object.__setattr__(self, "do_sample", True)
        if beams is None:
            return
        if beams > 1 and self.do_sample:
            raise OptionError(
                f"num_beams={beams} searches, but top_p, top_k and temperature sample: give one or the other"
            )
        texts = self.num_return_sequences
        if texts is not None and texts > beams and not self.do_sample:
            raise OptionError(f"{texts} texts from num_beams={beams}: give at least as many beams, or sample")

    def merged(self, defaults: GenerationOptions) -> GenerationOptions:
        """These options, and where they say nothing `defaults`.

        Defaults give way where they would contradict: a beam search to sampling and sampling to a beam search, the
        shortest text to the longest, and a search is as wide as there are texts wanted.
        """
        return replace(self, **self._filled(defaults))

    def resolved(
        self, defaults: GenerationOptions | None = None, vocabulary: Callable[[], Vocabulary] | None = None
    ) -> ResolvedOptions:
        """Every option set: as `merged`, and where nothing is said greedy search without penalties.

        Args:
            vocabulary: asked for where no_repeat_words or bad_words need it and the options have none.

        Raises:
            OptionError: a seed where nothing is sampled, no_repeat_words or bad_words without a vocabulary, or options
                that exclude each other.
        """
        filled = self._filled(defaults or PLAIN)
        found = vars(PLAIN) | {name: value for name, value in filled.items() if value is not None}
        if found["seed"] is not None and not found["do_sample"]:
            raise OptionError("a seed is for sampling: give top_p, top_k or temperature with it")
        wants = next((name for name in ("no_repeat_words", "bad_words") if found[name]), None)
        if wants is not None and found["vocabulary"] is None:
            if vocabulary is None:
                raise OptionError(f"{wants} needs the vocabulary of the language model")
            found["vocabulary"] = vocabulary()
        return ResolvedOptions(**found)

    def _filled(self, defaults: GenerationOptions) -> dict[str, Any]:
        own = {name: value for name, value in vars(self).items() if value is not None}
        usual = vars(defaults).copy()
        if self.do_sample:
            usual["num_beams"] = 1
        elif not defaults.do_sample:
            usual["num_beams"] = max(usual["num_beams"] or 1, self.num_return_sequences or 1)
        elif self.num_beams is not None:
            usual |= dict.fromkeys(("do_sample", "top_p", "top_k", "temperature", "seed"))
        if self.max_new_tokens is not None and usual["min_new_tokens"] is not None:
            usual["min_new_tokens"] = min(usual["min_new_tokens"], self.max_new_tokens)
        return usual | own


class ResolvedOptions(GenerationOptions):
    """Options that are all set, as the engine reads them.

    A seed of None samples anew each time; only no_repeat_words and bad_words need a vocabulary.
    `GenerationOptions.resolved` makes them of options whose values were checked one by one.
    """

    num_beams: int
    max_new_tokens: int
    min_new_tokens: int
    top_p: float
    top_k: int
    temperature: float
    length_penalty: float
    repetition_penalty: float
    no_repeat_ngram_size: int
    no_repeat_words: bool
    bad_words: tuple[str, ...]
    early_stopping: bool
    do_sample: bool
    num_return_sequences: int
    stop_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        self._check_together()

    def resolved(
        self, defaults: GenerationOptions | None = None, vocabulary: Callable[[], Vocabulary] | None = None
    ) -> ResolvedOptions:
        return self

    @property
    def texts(self) -> int:
        """How many are decoded side by side for each prompt: beams or samples."""
        return max(self.num_beams, self.num_return_sequences)

    def check_streaming(self) -> None:
        """Raises OptionError where texts cannot be given token by token."""
        if self.num_beams > 1:
            raise OptionError(
                "a beam search chooses its text at the end and cannot be streamed: give num_beams=1, or sample with "
                "top_p, top_k or temperature"
            )
        if self.num_return_sequences > 1:
            raise OptionError(f"{self.num_return_sequences} texts were asked for: one at a time can be streamed")


MOST_TEXTS = 10_000
"""Beams or samples of a prompt: more than memory has room for with any model."""
MOST_TOKENS = 1_000_000
"""Of a text; most models have fewer positions."""
TEXTS = f"at least 1 and at most {MOST_TEXTS:,}"
KINDS: dict[type, str] = {Integral: "a whole number", Real: "a number"}
CONVERSIONS: dict[type, type] = {Integral: int, Real: float, bool: bool}
RANGES: dict[str, tuple[type, Any, str]] = {
    "num_beams": (Integral, lambda value: 1 <= value <= MOST_TEXTS, TEXTS),
    "max_new_tokens": (Integral, lambda value: 1 <= value <= MOST_TOKENS, f"at least 1 and at most {MOST_TOKENS:,}"),
    "min_new_tokens": (Integral, lambda value: value >= 0, "at least 0"),
    "top_p": (Real, lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "top_k": (Integral, lambda value: value >= 0, "0 (off) or more"),
    "temperature": (Real, lambda value: 1e-30 <= value <= 1e30, "a number above 0, from 1e-30 to 1e30"),
    "seed": (Integral, lambda value: -(2**63) <= value < 2**63, "a number of 64 bits"),
    "length_penalty": (Real, lambda value: -50 <= value <= 50, "a number from -50 to 50"),
    "repetition_penalty": (Real, lambda value: 1e-30 <= value <= 1e30, "a number above 0, from 1e-30 to 1e30"),
    "no_repeat_ngram_size": (Integral, lambda value: value >= 0, "0 (off) or more"),
    "no_repeat_words": (bool, lambda value: True, "True or False"),
    "early_stopping": (bool, lambda value: True, "True or False"),
    "do_sample": (bool, lambda value: True, "True or False"),
    "num_return_sequences": (Integral, lambda value: 1 <= value <= MOST_TEXTS, TEXTS),
}

PLAIN = GenerationOptions(
    num_beams=1,
    max_new_tokens=30,
    min_new_tokens=0,
    top_p=1.0,
    top_k=0,
    temperature=1.0,
    length_penalty=1.0,
    repetition_penalty=1.0,
    no_repeat_ngram_size=0,
    no_repeat_words=False,
    bad_words=(),
    early_stopping=False,
    do_sample=False,
    num_return_sequences=1,
    stop_ids=(),
)
"""What generation does where neither the user nor the model says anything."""

USER_OPTIONS = {one.name: one.metadata for one in fields(GenerationOptions) if one.metadata}
"""The options that users may set, with the metavar and the help of each."""


def read_options(values: Mapping[str, Any], method: Callable[..., Any] | None = None) -> GenerationOptions:
    """Options by their names, as a call, a recipe or a model's config gives them; None is as if left out.

    Args:
        method: what was called; its own keywords are suggested for a wrong name, too.

    Raises:
        OptionError: an unknown name, a value out of range, or options that exclude each other.
    """
    check_names(values, method)
    return GenerationOptions(**values)


def check_names(values: Mapping[str, Any], method: Callable[..., Any] | None = None) -> None:
    """Raises OptionError, as `read_options`, for a name that is not of an option of users."""
    for name in values:
        if name not in USER_OPTIONS:
            raise OptionError(f"unknown option {name}: {_suggestion(name, method)}")


def user_options(options: GenerationOptions) -> dict[str, Any]:
    """What options say that users may say: `read_options` of it gives the same."""
    return {name: value for name in USER_OPTIONS if (value := getattr(options, name)) is not None}


def _suggestion(name: str, method: Callable[..., Any] | None) -> str:
    parameters = {} if method is None else inspect.signature(method).parameters
    names = [*(one.name for one in parameters.values() if one.kind is one.KEYWORD_ONLY), *USER_OPTIONS]
    near = OTHER_NAMES.get(name) or next(iter(get_close_matches(name, names, n=1, cutoff=0.65)), None)
    return f"did you mean {near}?" if near else f"use {', '.join(names)}"


@dataclass(frozen=True)
class Generation:
    """One generated text.

    Attributes:
        ids: without prompt and stop token.
        log_probs: of each id under the model itself, before any penalty or temperature.
        stop_log_prob: of the stop token that ended it; None when it ran into max_new_tokens.
        score: beam search: the beam's (penalized) score; otherwise the sum of all log-probabilities.
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
