"""Between what a user says and reads and what generation takes and gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

from openblip.checkpoints.model_parts import ModelParts
from openblip.errors import yes_or_no
from openblip.generation.options import Generation, GenerationOptions, ResolvedOptions, TextOptions, check_names
from openblip.generation.repeated_words import Vocabulary
from openblip.results import GeneratedText
from openblip.text import Tokenizer, clean_generated


def caption_options(
    parts: ModelParts,
    options: TextOptions,
    num_captions: int = 1,
    *,
    stream: bool = False,
    method: Callable[..., Any] | None = None,
) -> ResolvedOptions:
    """How captions are generated: as the user says, and as the model does where the user says nothing.

    Args:
        stream: the text is shown as it is generated: greedily, where the model's own choice is a beam search.
        method: what the options were given to; its keywords are suggested for a wrong one, too.

    Raises:
        OptionError: an unknown name, a value out of range, or options that exclude each other.
    """
    return _merged(parts, options, parts.defaults.captions, num_captions, stream, method)


def answer_options(
    parts: ModelParts, options: TextOptions, *, stream: bool = False, method: Callable[..., Any] | None = None
) -> ResolvedOptions:
    """Likewise for answers."""
    return _merged(parts, options, parts.defaults.answers, 1, stream, method)


def _merged(
    parts: ModelParts,
    options: TextOptions,
    defaults: GenerationOptions,
    texts: int,
    stream: bool,
    method: Callable[..., Any] | None,
) -> ResolvedOptions:
    check_names(options, method)
    stream = yes_or_no("stream", stream)
    no_repeat_words = options.get("no_repeat_words")
    if no_repeat_words is None:
        no_repeat_words = bool(defaults.no_repeat_words)
    given = GenerationOptions(
        **options,
        num_return_sequences=texts,
        stop_ids=(parts.stop_id,),
        vocabulary=_vocabulary(parts.require_words()) if yes_or_no("no_repeat_words", no_repeat_words) else None,
    )
    if stream and given.num_beams is None and not given.samples and not defaults.samples:
        given = replace(given, num_beams=1)
    resolved = given.merged(defaults).resolved()
    if stream:
        resolved.check_streaming()
    return resolved


@lru_cache(maxsize=4)
def _vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(tokenizer.tokens())


def read_text(parts: ModelParts, generation: Generation) -> GeneratedText:
    """Generated ids as words."""
    tokenizer = parts.require_words()
    return GeneratedText(
        text=clean_generated(tokenizer.decode(generation.ids)),
        score=generation.score,
        tokens=tuple(tokenizer.decode([token]) for token in generation.ids),
        log_probs=generation.log_probs,
    )
