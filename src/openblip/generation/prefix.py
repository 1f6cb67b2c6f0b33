"""What several prompts begin with, so that a language model reads it once for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openblip.nn.language_model import LanguageModel, Reader, ReadPrefix

SHARED_FROM = 3
"""Prompts behind one prefix from which reading it once saves more than a larger batch does: a visual prompt is longer
than two questions."""


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
    def length(self) -> int:
        """Tokens that it has in front of every prompt."""
        return self.embeds.shape[0]

    @property
    def nbytes(self) -> int:
        """Memory of what is kept by now."""
        return self.embeds.nbytes + (0 if self._reader is None else self._reader.nbytes)

    @property
    def is_read(self) -> bool:
        """Whether what reads prompts behind it is kept by now."""
        return self._reader is not None

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

    def before_all(self, prompts: Sequence[Tensor]) -> tuple[Reader, Sequence[Tensor]]:
        """What reads prompts [T_i, token width] that this stands in front of, and what it is given to read."""
        # Behind an empty prompt, the first scores are those of the prefix itself.
        shared = self.reader(len(prompts)) if all(len(prompt) for prompt in prompts) else None
        return (self.model, self._in_front(prompts)) if shared is None else (shared, prompts)

    def before_each(self, prefixes: Sequence[Prefix], prompts: Sequence[Tensor]) -> tuple[Reader, Sequence[Tensor]]:
        """Likewise of prompts with a prefix each, of which this is the first."""
        pairs = zip(prefixes, prompts, strict=True)
        return self.model, [torch.cat([prefix.embeds, prompt]) for prefix, prompt in pairs]

    def _in_front(self, prompts: Sequence[Tensor]) -> list[Tensor]:
        return [torch.cat([self.embeds, prompt]) for prompt in prompts]
