"""What the models answer with."""

from __future__ import annotations

from dataclasses import dataclass, field

from openblip.errors import ImageError


@dataclass(frozen=True)
class GeneratedText:
    """One caption or answer.

    Attributes:
        score: of the whole sequence: for beam search the sum of the log-probabilities divided by
            length ** length_penalty, otherwise their sum; higher is better, 0 is certain.
        tokens, log_probs: each token as text and its log-probability under the model.
    """

    text: str
    score: float
    tokens: tuple[str, ...] = ()
    log_probs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Captioned:
    """One image of many: its captions, best first, or what was wrong with it.

    Attributes:
        source: the path, URL or description of the image.
    """

    source: str
    captions: tuple[GeneratedText, ...] = field(default=())
    error: ImageError | None = None

    @property
    def text(self) -> str:
        """The best caption. Raises the image's error when there is none."""
        if self.error is not None:
            raise self.error
        return self.captions[0].text


@dataclass(frozen=True)
class Match:
    """How well a text fits an image.

    Attributes:
        itm: probability from 0 to 1 that the two belong together, read jointly (image-text matching).
        itc: cosine from -1 to 1 of their separate embeddings (image-text contrast).
    """

    text: str
    itm: float
    itc: float
