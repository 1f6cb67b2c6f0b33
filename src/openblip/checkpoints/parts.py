"""Everything that makes one usable model, whichever files it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from openblip.images import ImageTransform
from openblip.text import MatchingText, PromptTemplates, Tokenizer

if TYPE_CHECKING:
    from openblip.nn.blip2 import Blip2Network


@dataclass(frozen=True)
class GenerationDefaults:
    """How a model is best asked for text when the user does not say.

    Attributes:
        stop_token: ends a caption or an answer ("\\n" for OPT).
    """

    stop_token: str = "\n"
    caption_beams: int = 5
    caption_max_tokens: int = 30
    caption_min_tokens: int = 0
    caption_length_penalty: float = 1.0
    answer_beams: int = 5
    answer_max_tokens: int = 10
    answer_length_penalty: float = -1.0


@dataclass(frozen=True)
class ModelParts:
    """A network and what turns files and words into its tensors.

    Attributes:
        matching: text for the Q-Former; None when the checkpoint has no text side.
        tokenizer: of the language model; None for a stage-1 checkpoint.
    """

    name: str
    network: Blip2Network
    transform: ImageTransform
    matching: MatchingText | None
    tokenizer: Tokenizer | None
    prompts: PromptTemplates = field(default_factory=PromptTemplates)
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
