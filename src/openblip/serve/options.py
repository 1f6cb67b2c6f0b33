"""What requests may say about how texts are generated: the library's options, within the server's limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from openblip.generation.options import TextOptions
from openblip.models.abilities import writer_of
from openblip.serve.errors import over_limit
from openblip.serve.limits import Limits
from openblip.serve.model_jobs import Write

if TYPE_CHECKING:
    from openblip.models.abilities import Ability
    from openblip.models.model import Model


class TextFields(BaseModel):
    """Options of generation as fields of a form; what is left out is the model's own."""

    model_config = ConfigDict(extra="forbid")

    num_beams: Annotated[int | None, Field(ge=1, description="Width of the beam search; 1 is greedy.")] = None
    max_new_tokens: Annotated[int | None, Field(ge=1, description="Tokens of the text at most.")] = None
    min_new_tokens: Annotated[int | None, Field(ge=0, description="Tokens of the text at least.")] = None
    top_p: Annotated[float | None, Field(gt=0, le=1, description="Sample from the likeliest of this probability.")] = (
        None
    )
    top_k: Annotated[int | None, Field(ge=0, description="Sample from the likeliest so many tokens.")] = None
    temperature: Annotated[float | None, Field(gt=0, le=100, description="Sample; above 1 is more random.")] = None
    seed: Annotated[int | None, Field(ge=0, lt=2**31, description="The same seed samples the same text.")] = None
    length_penalty: Annotated[
        float | None, Field(ge=-50, le=50, description="Long texts above 0, short ones below.")
    ] = None
    repetition_penalty: Annotated[float | None, Field(gt=0, le=100, description="Above 1, fewer words come again.")] = (
        None
    )
    no_repeat_ngram_size: Annotated[int | None, Field(ge=0, description="No so many tokens come twice; 0 is off.")] = (
        None
    )
    no_repeat_words: Annotated[bool | None, Field(description="No word but those like 'a' comes twice.")] = None

    def text_options(self) -> TextOptions:
        """Those that were given."""
        given: Any = {name: value for name in TextFields.model_fields if (value := getattr(self, name)) is not None}
        options: TextOptions = given
        return options


def write_job(
    model: Model, limits: Limits, ability: Ability, options: TextOptions, *, texts: int = 1, stream: bool = False
) -> Write:
    """What writes texts as a request says.

    Args:
        texts: of each prompt.

    Raises:
        Refusal: beyond a limit of the server.
        OptionError: options that exclude each other, or are out of range.
        CheckpointError: the model lacks the ability.
    """
    writer = writer_of(model, ability)
    caption = ability == "caption"
    if texts > limits.captions:
        raise over_limit(422, f"{texts} texts of one image were asked for", "captions", limits.captions, "num_captions")
    usual = model.parts.defaults.captions if caption else model.parts.defaults.answers
    chosen = writer.options(options, usual, texts=texts, stream=stream)
    for name, most, limit in (
        ("max_new_tokens", limits.new_tokens, "new_tokens"),
        ("num_beams", max(limits.beams, usual.num_beams or 1), "beams"),
    ):
        value = getattr(chosen, name)
        if value > most:
            raise over_limit(422, f"{name} is {value}", limit, most, name)
    return Write(chosen, caption)


def check_text(limits: Limits, called: str, text: str) -> str:
    """Raises a Refusal for a text that is too long."""
    if len(text) > limits.text_chars:
        raise over_limit(422, f"the {called} has {len(text)} characters", "text_chars", limits.text_chars, called)
    return text
