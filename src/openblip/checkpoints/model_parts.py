"""Everything that makes one usable model, whichever files it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, cast

from openblip.errors import CheckpointError, OptionError
from openblip.generation.options import GenerationOptions, read_options, user_options
from openblip.images.transform import ImageTransform
from openblip.text import MatchingText, PromptTemplates, Tokenizer, trim_prompt

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from openblip.nn.blip2 import Blip2Network

    Network = TypeVar("Network", default=Blip2Network)
    MatchedText = TypeVar("MatchedText", default=MatchingText)
else:
    from typing import TypeVar

    Network = TypeVar("Network")
    MatchedText = TypeVar("MatchedText")

CAPTIONS = GenerationOptions(num_beams=5, max_new_tokens=30, min_new_tokens=0, length_penalty=1.0)
ANSWERS = GenerationOptions(num_beams=5, max_new_tokens=10, min_new_tokens=1, length_penalty=-1.0)
"""What models do that say nothing of their own; an answer is never empty."""


@dataclass(frozen=True)
class GenerationDefaults:
    """How a model generates text where the user says nothing.

    Attributes:
        stop_token: ends a caption or an answer ("\\n" for OPT).
    """

    stop_token: str = "\n"
    captions: GenerationOptions = CAPTIONS
    answers: GenerationOptions = ANSWERS

    def to_json(self) -> dict[str, Any]:
        """As config.json has them; `read_defaults` of it gives the same."""
        return {
            "stop_token": self.stop_token,
            "captions": user_options(self.captions),
            "answers": user_options(self.answers),
        }


VERSION_1 = {
    f"{kind}_{old}": (f"{kind}s", new)
    for kind in ("caption", "answer")
    for old, new in (
        ("beams", "num_beams"),
        ("max_tokens", "max_new_tokens"),
        ("min_tokens", "min_new_tokens"),
        ("length_penalty", "length_penalty"),
    )
}
"""What version 1 of our config.json calls the options of each kind of text."""


def read_defaults(section: Mapping[str, Any], path: Path) -> GenerationDefaults:
    """Defaults from the section "generation" of our config.json, of any version; what it leaves out is usual.

    Raises:
        CheckpointError: naming `path` and what is wrong in it.
    """
    if not isinstance(section, Mapping):
        raise CheckpointError(f"{path}: generation is {section!r}, not a group of settings")
    groups: dict[str, dict[str, Any]] = {"captions": {}, "answers": {}}
    stop_token: object = GenerationDefaults.stop_token
    for name, value in section.items():
        if name == "stop_token":
            stop_token = value
        elif name in VERSION_1:
            group, option = VERSION_1[name]
            groups[group][option] = value
        elif name in groups and isinstance(value, Mapping):
            groups[name] |= value
        else:
            raise CheckpointError(f"{path}: generation has an unknown setting {name}: {value!r}")
    if not isinstance(stop_token, str):
        raise CheckpointError(f"{path}: stop_token is {stop_token!r}, not a text")

    def options(group: str, usual: GenerationOptions) -> GenerationOptions:
        try:
            return read_options(groups[group]).merged(usual)
        except OptionError as error:
            raise CheckpointError(f"{path}: generation.{group}: {error}") from error

    return GenerationDefaults(stop_token, options("captions", CAPTIONS), options("answers", ANSWERS))


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


def check_classes(classes: object, count: int | None, place: object) -> tuple[str, ...]:
    """The names of a head's classes, checked.

    Args:
        count: classes of the head; None without one.
        place: what names them, in errors.

    Raises:
        CheckpointError: they are no texts, some are alike, or there are more of them, or fewer.
    """
    names = tuple(classes) if isinstance(classes, list | tuple) else ()
    if len(names) != len(set(map(str, names))) or not all(isinstance(name, str) and name.strip() for name in names):
        raise CheckpointError(f"{place}: classes are {str(classes)[:100]}: give each a name of its own")
    if len(names) != (count or 0):
        raise CheckpointError(f"{place}: there are {len(names)} names of classes, and the network has {count or 0}")
    return names


@dataclass(frozen=True)
class ModelParts(Generic[Network, MatchedText]):
    """A network and what turns files and words into its tensors.

    Attributes:
        matching: text for the side that images are compared with; None when the checkpoint has none.
        tokenizer: of the language model; None for a stage-1 checkpoint.
        external: where a language model lies that is no part of the network; None for the network's own.
        family: of models that are built alike, see `openblip.checkpoints.families`.
        classes: names of what the network's head chooses among, in its order; empty without such a head.
    """

    name: str
    network: Network
    transform: ImageTransform
    matching: MatchedText | None
    tokenizer: Tokenizer | None
    prompts: PromptTemplates = field(default_factory=PromptTemplates)
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    external: LanguageSource | None = None
    family: str = "blip2"
    classes: tuple[str, ...] = ()

    def require_words(self) -> Tokenizer:
        """The tokenizer. Raises CheckpointError when there is no language model."""
        if self.tokenizer is None:
            raise CheckpointError(f"the model {self.name} has no language model: it can match and embed only")
        return self.tokenizer

    @cached_property
    def stop_id(self) -> int:
        """Ends a text of the language model. Raises CheckpointError when there is none."""
        return self.require_words().only_id(self.defaults.stop_token)

    def prompt_ids(self, prompt: str) -> list[int]:
        """What the language model reads behind the visual prompt: a start and the words, or the words and a stop.

        Blanks at the end of the prompt are left out.

        Raises CheckpointError when there is none.
        """
        words, language = self.require_words(), cast(Any, self.network).config.language
        prompt_ids = words.encode(trim_prompt(prompt))
        if language is not None and language.encodes_prompts:
            return [*language.prompt_start_ids, *prompt_ids, self.stop_id]
        return [words.start_id, *prompt_ids]
