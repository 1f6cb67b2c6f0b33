"""The objects that models return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from openblip.errors import ImageError, OpenBlipError

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
    """The captions of one image, best first, or the error that it caused.

    Attributes:
        source: the path, URL or description of the image.
    """

    source: str
    captions: tuple[GeneratedText, ...] = field(default=())
    error: ImageError | None = None

    @property
    def text(self) -> str:
        """The best caption; raises `error` if the image could not be read."""
        if self.error is not None:
            raise self.error
        return self.captions[0].text

    def _repr_html_(self) -> str:
        if len(self.captions) == 1:
            return _card([self.source], self.error, [[self.captions[0].text]], [])
        rows = [(one.text, f"{one.score:.3f}") for one in self.captions]
        return _card([self.source], self.error, rows, ["caption", "score"])


@dataclass(frozen=True)
class Answered:
    """One image of many: the answers to the questions about it, or what was wrong with it.

    Attributes:
        source: the path, URL or description of the image.
    """

    source: str
    questions: tuple[str, ...]
    answers: tuple[GeneratedText, ...] = ()
    error: ImageError | None = None

    def _repr_html_(self) -> str:
        rows = [(question, answer.text) for question, answer in zip(self.questions, self.answers, strict=False)]
        return _card([self.source], self.error, rows, ["question", "answer"])


@dataclass(frozen=True)
class DecodeEvent:
    """Something that came of a step of a `DecodeSession`.

    Attributes:
        id: of what was asked for.
        piece: of a text that is streamed; joined, the pieces are the text of the result.
        result: of what is done; the last event of an id has it, or an error.
        error: what was wrong with the image, in the result, too, or with the length of a prompt.
    """

    id: int
    piece: str = ""
    result: Captioned | Answered | None = None
    error: OpenBlipError | None = None


@dataclass(frozen=True)
class Match:
    """How well a text fits an image.

    Attributes:
        itm: image-text matching: the probability, from 0 to 1, that image and text belong together; None from a model
            that compares by contrast alone.
        itc: image-text contrast: the cosine, from -1 to 1, of their embeddings.
    """

    text: str
    itm: float | None
    itc: float


@dataclass(frozen=True)
class Matched:
    """How well each text fits one image, in the order of the texts, or the error that the image caused.

    Attributes:
        source: the path, URL or description of the image.
    """

    source: str
    matches: tuple[Match, ...] = ()
    error: ImageError | None = None

    def _repr_html_(self) -> str:
        rows = [(one.text, "" if one.itm is None else f"{one.itm:.3f}", f"{one.itc:.3f}") for one in self.matches]
        return _card([self.source], self.error, rows, ["text", "itm", "itc"])


@dataclass(frozen=True)
class RankedAnswer:
    """One of the answers that were offered for a question.

    Attributes:
        index: its position in the list of answers.
        answer: as it was given.
        score: its log-probability, at most 0; BLIP's is smoothed as the loss that BLIP was trained with.
    """

    index: int
    answer: str
    score: float


@dataclass(frozen=True)
class Classified:
    """One label for an image.

    Attributes:
        probability: from 0 to 1, among the labels that the image was compared with.
    """

    label: str
    probability: float


@dataclass(frozen=True)
class ClassifiedImage:
    """One image of many: its labels, most probable first, or what was wrong with it.

    Attributes:
        source: the path, URL or description of the image.
    """

    source: str
    labels: tuple[Classified, ...] = ()
    error: ImageError | None = None

    def _repr_html_(self) -> str:
        rows = [(one.label, f"{one.probability:.3f}") for one in self.labels]
        return _card([self.source], self.error, rows, ["label", "probability"])


@dataclass(frozen=True)
class Judgement:
    """What a model says of one statement about an image, or about two.

    Attributes:
        label: the most probable class: "True" or "False" (NLVR2), "entailment", "neutral" or "contradiction"
            (SNLI-VE), or a class of the data that the model was trained on.
        probabilities: of each class, in the model's order; they add up to 1.
    """

    statement: str
    label: str
    probabilities: Mapping[str, float] = field(hash=False)

    @property
    def probability(self) -> float:
        """Of the label."""
        return self.probabilities[self.label]


@dataclass(frozen=True)
class Judged:
    """One image of many, or one pair of images: what the model says of the statements about it, or what was wrong.

    Attributes:
        sources: the path, URL or description of the image, or of both images.
        error: of the first image that could not be read.
    """

    sources: tuple[str, ...]
    statements: tuple[str, ...]
    judgements: tuple[Judgement, ...] = ()
    error: ImageError | None = None

    def _repr_html_(self) -> str:
        rows = [(one.statement, one.label, f"{one.probability:.3f}") for one in self.judgements]
        return _card(self.sources, self.error, rows, ["statement", "class", "probability"])


@dataclass(frozen=True, eq=False)
class Embedded:
    """One image of many: its vectors, or what was wrong with it.

    Attributes:
        source: the path, URL or description of the image.
        embeds: unit vectors [Q, shared width], float32 on the CPU.
    """

    source: str
    embeds: Tensor | None = None
    error: ImageError | None = None


@dataclass(frozen=True, eq=False)
class Scores:
    """How well each of N images fits each of M texts; float32 on the CPU.

    Attributes:
        itc: [N, M] cosines from -1 to 1.
        itm: [N, M] probabilities from 0 to 1; None unless you asked for them.
    """

    itc: Tensor
    itm: Tensor | None = None


@dataclass(frozen=True)
class Ranked:
    """One result of a search: an image for a text, or a text for an image.

    Attributes:
        index: its position in the list that was searched.
        source: the path, URL or description of the image, or the text.
        itc: cosine from -1 to 1.
        itm: probability from 0 to 1; None if the ITC rank was too low for ITM to be computed, or the model has no ITM.
        score: cosine plus ITM logit, by which results with `itm` are ordered.
    """

    index: int
    source: str
    itc: float
    itm: float | None = None
    score: float | None = None


@dataclass(frozen=True)
class Rankings:
    """The results of a search in both directions, each list best first.

    Attributes:
        images: for each text, the images.
        texts: for each image, the texts.
    """

    images: list[list[Ranked]]
    texts: list[list[Ranked]]


def _card(sources: Sequence[str], error: ImageError | None, rows: Sequence[Sequence[str]], head: Sequence[str]) -> str:
    """What a notebook shows of a result."""
    from openblip.display import card  # which reads images: nobody else needs it

    return card(sources, error, rows, head)
