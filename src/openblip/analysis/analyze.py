"""Questions about the pages of documents, each of which is encoded once for all that is asked of it."""

# Overloads are tried in order: a path or an open file is one document although it can be iterated over. mypy warns of
# this overlap, which is meant.
# mypy: disable-error-code="overload-overlap"

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias, cast, overload

from openblip.analysis.pages import DrawnPage, PageToRead, drawn_pages, plan_pages
from openblip.analysis.question_sets import Question, QuestionSet
from openblip.analysis.results import Analysis, AnalyzedPage, PageAnswer
from openblip.analysis.set_files import find_question_set
from openblip.errors import CheckpointError, ImageError, OptionError, whole_number, yes_or_no
from openblip.generation.options import read_options
from openblip.images.documents import DEFAULT_DPI, checked_dpi
from openblip.images.encoded_image import EncodedImage
from openblip.images.sources import ImageSource, image_list, is_one_image
from openblip.jobs.words import WordList
from openblip.models.abilities import LACKS, Ability

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from openblip.generation.options import TextOptions
    from openblip.models.model import Model

Questions: TypeAlias = "str | os.PathLike[str] | QuestionSet | Iterable[str | Question]"
BATCH_SIZE = 8


@overload
def analyze(
    documents: ImageSource,
    questions: Questions = "document",
    *,
    model: Model | None = None,
    pages: str | None = None,
    dpi: float = DEFAULT_DPI,
    password: str | None = None,
    batch_size: int = BATCH_SIZE,
    thumbnails: bool = False,
    **options: Unpack[TextOptions],
) -> Analysis: ...
@overload
def analyze(
    documents: Iterable[ImageSource],
    questions: Questions = "document",
    *,
    model: Model | None = None,
    pages: str | None = None,
    dpi: float = DEFAULT_DPI,
    password: str | None = None,
    batch_size: int = BATCH_SIZE,
    thumbnails: bool = False,
    **options: Unpack[TextOptions],
) -> list[Analysis]: ...
def analyze(
    documents: ImageSource | Iterable[ImageSource],
    questions: Questions = "document",
    *,
    model: Model | None = None,
    pages: str | None = None,
    dpi: float = DEFAULT_DPI,
    password: str | None = None,
    batch_size: int = BATCH_SIZE,
    thumbnails: bool = False,
    **options: Unpack[TextOptions],
) -> Any:
    """Ask a set of questions about each page of a document, or of each of several.

    Args:
        documents: PDFs (with the extra `documents`), TIFFs of several pages, or whatever `openblip.load_image` takes.
        questions: the name of a set ("document", "xray", "ct", "mri", "product"), a YAML or JSON file of your own, a
            list of questions, or a `QuestionSet`.
        model: by default `openblip.load()`, whose model is small.
        pages: which ones of each document, such as "1-3,7" or "10-".
        dpi: pixels an inch of the pages of PDFs.
        password: of PDFs that are encrypted.
        batch_size: pages that are encoded together.
        thumbnails: keep a small picture of each page, for `Analysis.to_html`.
        options: see `openblip.GenerationOptions`; they replace those of the set.

    Returns:
        An `Analysis`; a list of them for several documents. A page that cannot be read has its error, and the others
        are not affected.

    Raises:
        ImageError: a document cannot be opened, or has no such pages.
        CheckpointError: the model cannot do what the set asks for.
        OptionError: there is no such set, or an option is wrong.
    """
    asked = find_question_set(questions)
    chosen = _model(model)
    several = list(image_list(documents))
    plans = [plan_pages([one], pages, password) for one in several]
    for plan in plans:
        if plan[0].index is None:
            raise cast(ImageError, plan[0].error)
    every = [page for plan in plans for page in plan]
    found = analyze_pages(chosen, every, asked, dpi, batch_size, thumbnails, options)
    analyses = [Analysis(plan[0].document.label, asked, chosen.name, tuple(islice(found, len(plan)))) for plan in plans]
    return analyses[0] if is_one_image(documents) else analyses


def analyze_many(
    documents: ImageSource | Iterable[ImageSource],
    questions: Questions = "document",
    *,
    model: Model | None = None,
    pages: str | None = None,
    dpi: float = DEFAULT_DPI,
    password: str | None = None,
    batch_size: int = BATCH_SIZE,
    thumbnails: bool = False,
    **options: Unpack[TextOptions],
) -> Iterator[AnalyzedPage]:
    """As `analyze` for any number of pages: one result each, in order, as batches are done.

    A page, or a document, that cannot be read gives a result with its error. Memory does not grow with the pages.
    """
    asked = find_question_set(questions)
    plan = plan_pages(image_list(documents), pages, password)
    return analyze_pages(_model(model), plan, asked, dpi, batch_size, thumbnails, options)


def check_model(model: Model, asked: QuestionSet) -> None:
    """Raises CheckpointError when the model cannot do what the set asks for."""
    for ability in asked.abilities:
        if ability not in model.abilities:
            without = "; --no-caption leaves captions out" if ability == "caption" and asked.questions else ""
            raise CheckpointError(
                f"the set {asked.name} needs a model that can {ability}, and {model.name} "
                f"{LACKS[cast(Ability, ability)]}: `openblip models --ability {ability}` lists others{without}"
            )


def analyze_pages(
    model: Model,
    plan: Sequence[PageToRead],
    asked: QuestionSet,
    dpi: float = DEFAULT_DPI,
    batch_size: int = BATCH_SIZE,
    thumbnails: bool = False,
    options: TextOptions | None = None,
) -> Iterator[AnalyzedPage]:
    """What is found out about the pages of a plan, see `plan_pages`.

    Raises:
        CheckpointError, OptionError: as `analyze`, at once.
    """
    check_model(model, asked)
    chosen = cast("TextOptions", {**asked.options, **(options or {})})
    read_options(chosen)
    dpi, batch_size = checked_dpi(dpi), whole_number("batch_size", batch_size, 1)
    thumbnails = yes_or_no("thumbnails", thumbnails)

    def pages() -> Iterator[AnalyzedPage]:
        encoder = model.components.encoder
        for batch in drawn_pages(plan, encoder.transform, dpi, batch_size, thumbnails):
            good = [(page, drawn) for page, drawn in batch if isinstance(drawn, DrawnPage)]
            images = [
                image
                for encoded in encoder.batches([drawn.pixels for _, drawn in good], batch_size)
                for image in encoded.whole()
            ]
            results = iter(_asked(model, [page for page, _ in good], images, asked, chosen) if good else [])
            for page, drawn in batch:
                yield _page(page, drawn, asked.warning, _NOTHING if isinstance(drawn, ImageError) else next(results))

    return pages()


@dataclass(frozen=True)
class _Found:
    """What was found out about one page, see `AnalyzedPage`."""

    caption: str | None = None
    answers: tuple[PageAnswer, ...] = ()
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


_NOTHING = _Found()


def _page(page: PageToRead, drawn: DrawnPage | ImageError, warning: str | None, found: _Found) -> AnalyzedPage:
    source, number = page.document.label, None if page.index is None else page.index + 1
    if isinstance(drawn, ImageError):
        return AnalyzedPage(source, number, page.pages, warning=warning, error=drawn)
    return AnalyzedPage(
        source,
        number,
        page.pages,
        width=drawn.width,
        height=drawn.height,
        caption=found.caption,
        answers=found.answers,
        found=found.words,
        warning=warning,
        thumbnail=drawn.thumbnail,
    )


def _model(model: Model | None) -> Model:
    import openblip

    if model is None:
        return openblip.load()
    if not hasattr(model, "components"):
        raise OptionError(f"the model is {str(model)[:100]!r}: give what openblip.load returns")
    return model


def _asked(
    model: Model, pages: Sequence[PageToRead], images: list[EncodedImage], asked: QuestionSet, options: TextOptions
) -> Iterator[_Found]:
    """Caption, answers and words of each page, whose images are encoded."""
    captions: list[str | None] = [None] * len(images)
    if asked.caption:
        captions = list(model.caption(images, prompt=asked.prompt, batch_size=len(images)))
    about = [_questions_about(page, asked) for page in pages]
    written = _written(model, images, about, asked, options)
    for image, questions, caption, own in zip(images, about, captions, written, strict=True):
        answers = {**own, **_chosen(model, image, questions, asked.template)}
        texts = [*([caption] if caption else []), *(answer.answer for answer in own.values())]
        words = {one.name: _found_in(texts, one) for one in asked.find}
        yield _Found(caption, tuple(answers[question.text] for question in questions), words)


def _found_in(texts: Sequence[str], words: WordList) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for text in texts for word in words.find(text)))


def _questions_about(page: PageToRead, asked: QuestionSet) -> list[Question]:
    number = cast(int, page.index) + 1
    return [question for question in asked.questions if question.is_about(number, page.first, page.last)]


def _written(
    model: Model,
    images: Sequence[EncodedImage],
    about: Sequence[Sequence[Question]],
    asked: QuestionSet,
    options: TextOptions,
) -> list[dict[str, PageAnswer]]:
    """The answers that the model writes about each page, by question."""
    found: list[dict[str, PageAnswer]] = [{} for _ in images]
    texts = [[question.text for question in questions if not question.choices] for questions in about]
    some = [number for number, own in enumerate(texts) if own]
    if some:
        pairs = [(images[number], texts[number]) for number in some]
        rows = model.ask_many(pairs, template=asked.template, batch_size=len(some), **options)
        for number, row in zip(some, rows, strict=True):
            for text, answer in zip(texts[number], row.answers, strict=True):
                found[number][text] = PageAnswer(text, answer.text, score=answer.score)
    return found


def _chosen(
    model: Model, image: EncodedImage, questions: Sequence[Question], template: str | None
) -> dict[str, PageAnswer]:
    """The answers that are chosen about one page, by question. Questions with the same choices are read together."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for question in questions:
        if question.choices:
            groups.setdefault(question.choices, []).append(question.text)
    found = {}
    for choices, texts in groups.items():
        rows = model.rank_answers(image, texts, choices, top=None, first=len(choices), template=template)
        for text, row in zip(texts, rows, strict=True):
            best = row[0]
            total = sum(math.exp(other.score - best.score) for other in row)
            found[text] = PageAnswer(text, best.answer, probability=1 / total)
    return found
