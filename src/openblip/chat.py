"""A conversation about one image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openblip.errors import OptionError
from openblip.text import clean_question

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from openblip.image_sources import ImageSource
    from openblip.model import Blip2
    from openblip.options import TextOptions


class Chat:
    """Questions that follow one another; each is asked with all that was said before.

    The template is the paper's: "Question: ... Answer: .... Question: ... Answer:"
    (https://arxiv.org/abs/2301.12597, figure 4).

    Attributes:
        turns: what was asked and answered so far.
    """

    def __init__(self, model: Blip2, image: ImageSource) -> None:
        self.model = model
        self.seen = model.look(image)
        self.turns: list[tuple[str, str]] = []

    def ask(self, question: str, **options: Unpack[TextOptions]) -> str:
        """Ask the next question; the oldest turns are left out once they no longer fit the model."""
        asked = clean_question(question)
        if asked == "?":
            raise OptionError("the question is empty: ask something about the image")
        told = list(self.turns)
        while told and not self.model.fits(self._prompt(told, asked), options.get("max_tokens")):
            told.pop(0)
        answer = self.model.complete(self.seen, [self._prompt(told, asked)], **options)[0].text
        self.turns.append((asked, answer))
        return answer

    def _prompt(self, turns: list[tuple[str, str]], question: str) -> str:
        return self.model.parts.prompts.chat(turns, question)
