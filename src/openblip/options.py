"""How captions and answers are generated, as a user says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict, cast

from openblip.errors import OptionError
from openblip.generation.options import GenerationOptions


class TextOptions(TypedDict, total=False):
    """What may be said about generation; whatever is left out is the model's own choice.

    Attributes:
        beams: width of the beam search; 1 is greedy.
        top_p, top_k, temperature: giving any of these draws at random instead of searching.
        seed: makes random draws repeatable; only with one of these.
        min_tokens, max_tokens: of the new text alone; the prompt never counts.
        length_penalty: above 0 favours long texts in beam search, below 0 short ones.
        repetition_penalty: above 1 discourages words already used.
    """

    beams: int
    top_p: float
    top_k: int
    temperature: float
    seed: int
    min_tokens: int
    max_tokens: int
    length_penalty: float
    repetition_penalty: float


@dataclass(frozen=True)
class Defaults:
    """A model's own choices for one kind of text."""

    beams: int
    max_tokens: int
    min_tokens: int
    length_penalty: float


def generation_options(
    options: TextOptions, defaults: Defaults, num_texts: int, stop_id: int, stream: bool = False
) -> GenerationOptions:
    """The engine's options from the user's.

    Args:
        stream: the text is to be told as it is written: greedily, where the model's own choice is a beam search.

    Raises:
        OptionError: an unknown name, a value out of range, or options that do not go together.
    """
    given = cast(Mapping[str, object], options)
    unknown = sorted(set(given) - set(TextOptions.__annotations__))
    if unknown:
        known = ", ".join(TextOptions.__annotations__)
        raise OptionError(f"unknown option {', '.join(unknown)}: use {known}")
    sample = any(name in given for name in ("top_p", "top_k", "temperature"))
    if "seed" in given and not sample:
        raise OptionError("a seed is for random draws: give top_p, top_k or temperature with it")
    if sample and options.get("beams", 1) > 1:
        raise OptionError("beams searches, top_p, top_k and temperature draw at random: give one or the other")
    beams = 1 if sample else options.get("beams", 1 if stream else max(defaults.beams, num_texts))
    chosen = GenerationOptions(
        max_new_tokens=options.get("max_tokens", defaults.max_tokens),
        min_new_tokens=options.get("min_tokens", min(defaults.min_tokens, options.get("max_tokens", 1 << 30))),
        num_beams=beams,
        length_penalty=options.get("length_penalty", defaults.length_penalty),
        num_return=num_texts,
        sample=sample,
        temperature=options.get("temperature", 1.0),
        top_k=options.get("top_k", 0),
        top_p=options.get("top_p", 1.0),
        repetition_penalty=options.get("repetition_penalty", 1.0),
        seed=options.get("seed"),
        stop_ids=(stop_id,),
    )
    if stream:
        chosen.check_streaming()
    return chosen
