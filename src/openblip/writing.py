"""Between what a user says and reads and what generation takes and gives."""

from __future__ import annotations

from openblip.checkpoints.model_parts import ModelParts
from openblip.generation.options import Generation, GenerationOptions
from openblip.options import Defaults, TextOptions, generation_options
from openblip.results import GeneratedText
from openblip.text import clean_generated


def caption_options(
    parts: ModelParts, options: TextOptions, num_captions: int, stream: bool = False
) -> GenerationOptions:
    """How captions are to be generated; what the user leaves out is the model's own choice. Raises OptionError."""
    own = parts.defaults
    defaults = Defaults(own.caption_beams, own.caption_max_tokens, own.caption_min_tokens, own.caption_length_penalty)
    return generation_options(options, defaults, num_captions, parts.stop_id, stream)


def answer_options(parts: ModelParts, options: TextOptions, stream: bool = False) -> GenerationOptions:
    """Likewise for answers, which are never empty."""
    own = parts.defaults
    defaults = Defaults(own.answer_beams, own.answer_max_tokens, 1, own.answer_length_penalty)
    return generation_options(options, defaults, 1, parts.stop_id, stream)


def read_text(parts: ModelParts, generation: Generation) -> GeneratedText:
    """Generated ids as words."""
    tokenizer = parts.require_words()
    return GeneratedText(
        text=clean_generated(tokenizer.decode(generation.ids)),
        score=generation.score,
        tokens=tuple(tokenizer.decode([token]) for token in generation.ids),
        log_probs=generation.log_probs,
    )
