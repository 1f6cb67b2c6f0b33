"""What the tools of the MCP server answer; clients get their schemas."""

from __future__ import annotations

from pydantic import BaseModel


class ScoredText(BaseModel):
    """A caption, with the logarithm of its probability (for beam search, by its length)."""

    text: str
    score: float


class Captions(BaseModel):
    """Captions of an image, best first."""

    image: str
    captions: list[ScoredText]


class Answer(BaseModel):
    """The answer to a question, with the logarithm of its probability (for beam search, by its length)."""

    question: str
    answer: str
    score: float


class Answers(BaseModel):
    """Answers to questions about an image."""

    image: str
    answers: list[Answer]


class TextMatch(BaseModel):
    """How well a text fits: the probability from 0 to 1 (null from models that have none), and the cosine."""

    text: str
    probability: float | None
    cosine: float


class Matches(BaseModel):
    """How well texts fit an image, best first."""

    image: str
    matches: list[TextMatch]


class Photo(BaseModel):
    """A photo of the index: the probability that the text fits, where it was computed, and the cosine."""

    path: str
    probability: float | None
    cosine: float


class Photos(BaseModel):
    """What a search has found, best first."""

    photos: list[Photo]


class PageAnswer(BaseModel):
    """An answer about a page, with the probability of one that was chosen among several."""

    question: str
    answer: str
    probability: float | None


class Page(BaseModel):
    """What was found out about a page, or what is wrong with it."""

    page: int | None
    caption: str | None
    answers: list[PageAnswer]
    error: str | None


class Analysis(BaseModel):
    """What was found out about a document, and what to know before it is used."""

    document: str
    pages: list[Page]
    warning: str | None
