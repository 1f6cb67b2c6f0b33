"""What the models answer with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from openblip.errors import ImageError

if TYPE_CHECKING:
    from torch import Tensor


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


@dataclass(frozen=True)
class Matched:
    """One image of many: how well each text fits it, in the order given, or what was wrong with it.

    Attributes:
        source: the path, URL or description of the image.
    """

    source: str
    matches: tuple[Match, ...] = ()
    error: ImageError | None = None


@dataclass(frozen=True, eq=False)
class Scores:
    """How well each of N images fits each of M texts; float32 on the CPU.

    Attributes:
        itc: [N, M] cosines from -1 to 1.
        itm: [N, M] probabilities from 0 to 1; None when they were not asked for.
    """

    itc: Tensor
    itm: Tensor | None = None


@dataclass(frozen=True)
class Ranked:
    """One image found for a text, or one text found for an image.

    Attributes:
        index: its place among those that were searched.
        source: the path, URL or description of the image, or the text.
        itc: cosine from -1 to 1.
        itm: probability from 0 to 1; None for what contrast (ITC) left too far behind to be matched.
        score: what the order of the matched follows: cosine plus ITM logit.
    """

    index: int
    source: str
    itc: float
    itm: float | None = None
    score: float | None = None


@dataclass(frozen=True)
class Rankings:
    """Retrieval both ways, each list best first.

    Attributes:
        images: for each text, images.
        texts: for each image, texts.
    """

    images: list[list[Ranked]]
    texts: list[list[Ranked]]
