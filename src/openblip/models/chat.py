"""A conversation about one image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

from openblip.text import clean_question

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from openblip.generation.options import TextOptions
    from openblip.images.encoded_image import EncodedImage
    from openblip.models.writer import Writer
    from openblip.text import Pieces


class Chat:
    """Questions that follow one another; each is asked with all that was said before.

    The template is the paper's: "Question: ... Answer: .... Question: ... Answer:"
    (https://arxiv.org/abs/2301.12597, figure 4).

    Attributes:
        turns: what was asked and answered so far.
    """

    def __init__(self, writer: Writer, image: EncodedImage) -> None:
        self.writer = writer
        self.image = image
        self.turns: list[tuple[str, str]] = []

    @overload
    def ask(self, question: str, *, stream: Literal[False] = False, **options: Unpack[TextOptions]) -> str: ...
    @overload
    def ask(self, question: str, *, stream: Literal[True], **options: Unpack[TextOptions]) -> Pieces: ...

    def ask(self, question: str, *, stream: bool = False, **options: Unpack[TextOptions]) -> str | Pieces:
        """Ask the next question; the oldest turns are left out once they no longer fit the model.

        Args:
            stream: give the pieces of the answer as they are written, as `Model.ask` does. An answer joins the
                conversation once it is written to its end.

        Raises:
            OptionError: the question is empty, or an option out of range.
        """
        self.writer.question(question)  # an empty one is an error
        cleaned = clean_question(question)
        defaults = self.writer.parts.defaults.answers
        chosen = self.writer.options(options, defaults, stream=stream, method=self.ask)
        turns = list(self.turns)
        while turns and not self.writer.fits(self.image, self._prompt(turns, cleaned), chosen.max_new_tokens):
            turns.pop(0)
        prompt = self._prompt(turns, cleaned)
        if stream:
            return self._finish(cleaned, self.writer.stream(self.image, prompt, chosen))
        answer = self.writer.texts(self.image, [prompt], chosen)[0].text
        self.turns.append((cleaned, answer))
        return answer

    def _finish(self, cleaned: str, pieces: Pieces) -> Pieces:
        answer = yield from pieces
        self.turns.append((cleaned, answer))
        return answer

    def _prompt(self, turns: list[tuple[str, str]], question: str) -> str:
        return self.writer.parts.prompts.chat(turns, question)
