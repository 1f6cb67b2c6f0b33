"""What was found out about pages."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openblip.analysis.question_sets import QuestionSet
from openblip.analysis.reports import format_of, heading_of, write_report
from openblip.errors import ImageError, given_path
from openblip.saving import write_text


@dataclass(frozen=True)
class PageAnswer:
    """One answer about a page.

    Attributes:
        score: of an answer that the model wrote: its log-probability as `GeneratedText.score`.
        probability: of an answer that was chosen: its share among the choices, from 0 to 1.
    """

    question: str
    answer: str
    score: float | None = None
    probability: float | None = None


@dataclass(frozen=True)
class AnalyzedPage:
    """One page of a document, or what was wrong with it.

    Attributes:
        source: path, address or description of the document.
        page: counted from 1; None where the document itself could not be opened.
        pages: of the document.
        width, height: of the page's image in pixels.
        found: by list of words, those that occur in the caption and in answers that the model wrote.
        warning: of the set of questions.
        thumbnail: the page as a small JPEG, if it was asked for.
    """

    source: str
    page: int | None
    pages: int = 0
    width: int = 0
    height: int = 0
    caption: str | None = None
    answers: tuple[PageAnswer, ...] = ()
    found: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    warning: str | None = None
    error: ImageError | None = None
    thumbnail: bytes | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The page as JSON, without its warning, which belongs to all pages."""
        record: dict[str, Any] = {"file": self.source, "page": self.page, "pages": self.pages}
        if self.error is not None:
            return record | {"error": self.error.problem}
        record |= {"width": self.width, "height": self.height}
        if self.caption is not None:
            record["caption"] = self.caption
        record["answers"] = [
            {name: value for name, value in vars(answer).items() if value is not None} for answer in self.answers
        ]
        if self.found:
            record["found"] = {name: list(words) for name, words in self.found.items()}
        if self.thumbnail is not None:
            record["thumbnail"] = base64.b64encode(self.thumbnail).decode("ascii")
        return record


@dataclass(frozen=True)
class Analysis:
    """A document and what was found out about its pages.

    Attributes:
        source: path, address or description of the document.
        questions: the set that was asked.
        model: the name of the model.
    """

    source: str
    questions: QuestionSet
    model: str
    pages: tuple[AnalyzedPage, ...]

    @property
    def warning(self) -> str | None:
        """What to know before these answers are used; None of most sets."""
        return self.questions.warning

    def to_json(self) -> str:
        """As `openblip analyze --format json` writes it."""
        return self._written("json")

    def to_markdown(self) -> str:
        """As `openblip analyze --format markdown` writes it."""
        return self._written("markdown")

    def to_html(self) -> str:
        """One self-contained page, with pictures of the pages if they were analyzed with `thumbnails=True`."""
        return self._written("html")

    def save(self, path: str | Path) -> Path:
        """Write a .json, .md, .html or .txt file, by its name.

        Raises:
            OptionError: another suffix. OSError: it cannot be written; nothing is replaced then.
        """
        place = given_path("the file", path)
        write_text(place, self._written(format_of(place)))
        return place

    def _written(self, form: str) -> str:
        records = (page.to_dict() for page in self.pages)
        return "".join(write_report(form, heading_of(self.questions, self.model), records))
