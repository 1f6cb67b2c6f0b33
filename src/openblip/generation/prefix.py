"""What several prompts begin with, so that a language model reads it once for all of them."""

from __future__ import annotations

from torch import Tensor

from openblip.nn.language_model import LanguageModel, ReadPrefix


class Prefix:
    """The beginning of prompts: an image's visual prompt, say, behind which any number of questions are asked.

    It may be kept for later prompts, and be used by several threads at once. A decoder computes its keys and values
    when a second prompt comes; the first alone is read faster, and leaves less behind, as one piece. A model that
    cannot share them reads the embeddings in front of every prompt. Results are the same.

    Attributes:
        embeds: [S, token width].
    """

    def __init__(self, model: LanguageModel, embeds: Tensor) -> None:
        self.model = model
        self.embeds = embeds
        self._prompts = 0
        self._reader: ReadPrefix | None = None

    @property
    def nbytes(self) -> int:
        """Memory of what is kept by now."""
        return self.embeds.nbytes + (0 if self._reader is None else self._reader.nbytes)

    def reader(self, prompts: int) -> ReadPrefix | None:
        """What reads so many more prompts behind it; None where they are to be read with it as one piece.

        Raises:
            ValueError: it is longer than the model has positions.
        """
        self._prompts += prompts
        if self._reader is None and self._prompts > 1:
            # Two threads that come here together do the same work, and either's result will do.
            self._reader = self.model.read_prefix(self.embeds)
        return self._reader
