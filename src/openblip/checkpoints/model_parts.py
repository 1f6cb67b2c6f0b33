"""Everything that makes one usable model, whichever files it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from openblip.errors import CheckpointError
from openblip.images.decode import ImageTransform
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
class LanguageSource:
    """Where an external language model lies.

    Attributes:
        place: a folder of transformers, or a repository of the hub.
        revision: of the repository: a branch, tag or commit; None for the newest.
        fingerprint: of the weights a prompt projection was trained with; None for any.
    """

    place: str
    revision: str | None = None
    fingerprint: str | None = None


@dataclass(frozen=True)
class ModelParts:
    """A network and what turns files and words into its tensors.

    Attributes:
        matching: text for the Q-Former; None when the checkpoint has no text side.
        tokenizer: of the language model; None for a stage-1 checkpoint.
        external: where a language model lies that is no part of the network; None for the network's own.
    """

    name: str
    network: Blip2Network
    transform: ImageTransform
    matching: MatchingText | None
    tokenizer: Tokenizer | None
    prompts: PromptTemplates = field(default_factory=PromptTemplates)
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    external: LanguageSource | None = None

    def require_words(self) -> Tokenizer:
        """The tokenizer. Raises CheckpointError when there is no language model."""
        if self.tokenizer is None:
            raise CheckpointError(f"the model {self.name} has no language model: it can match and embed only")
        return self.tokenizer

    @property
    def stop_id(self) -> int:
        """Ends a text of the language model. Raises CheckpointError when there is none."""
        return self.require_words().only_id(self.defaults.stop_token)

    def prompt_ids(self, prompt: str) -> list[int]:
        """What the language model reads behind the visual prompt: a start and the words, or the words and a stop.

        Raises CheckpointError when there is none.
        """
        words, language = self.require_words(), self.network.config.language
        told = words.encode(prompt)
        if language is not None and language.encodes_prompts:
            return [*told, self.stop_id]
        return [words.start_id, *told]
