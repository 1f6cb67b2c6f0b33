"""A conversation about one image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

from openblip.errors import OptionError
from openblip.text import clean_question

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from openblip.generation.options import TextOptions
    from openblip.images.sources import ImageSource
    from openblip.models.blip2 import Blip2
    from openblip.text import Pieces


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

    @overload
    def ask(self, question: str, *, stream: Literal[False] = False, **options: Unpack[TextOptions]) -> str: ...
    @overload
    def ask(self, question: str, *, stream: Literal[True], **options: Unpack[TextOptions]) -> Pieces: ...

    def ask(self, question: str, *, stream: bool = False, **options: Unpack[TextOptions]) -> str | Pieces:
        """Ask the next question; the oldest turns are left out once they no longer fit the model.

        Args:
            stream: give the pieces of the answer as they are written, as `Blip2.ask` does. An answer counts as said
                once it is written to its end.
        """
        asked = clean_question(question)
        if asked == "?":
            raise OptionError("the question is empty: ask something about the image")
        told = list(self.turns)
        while told and not self.model.fits(self._prompt(told, asked), options.get("max_new_tokens")):
            told.pop(0)
        if stream:
            return self._say(asked, self.model.stream(self.seen, self._prompt(told, asked), **options))
        answer = self.model.complete(self.seen, [self._prompt(told, asked)], **options)[0].text
        self.turns.append((asked, answer))
        return answer

    def _say(self, asked: str, pieces: Pieces) -> Pieces:
        answer = yield from pieces
        self.turns.append((asked, answer))
        return answer

    def _prompt(self, turns: list[tuple[str, str]], question: str) -> str:
        return self.model.parts.prompts.chat(turns, question)
