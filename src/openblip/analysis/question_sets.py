"""Sets of questions: those of the package, and how they are told to people and written as files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from openblip.errors import OptionError, is_several
from openblip.generation.options import TextOptions, read_options
from openblip.images.documents import page_ranges
from openblip.jobs.words import WordList, load_word_lists

YES_NO = ("yes", "no")
FIRST, LAST, ALL = "first", "last", "all"
MOST_WORDS = 50
"""Of a question: models read no more."""
MEDICAL_WARNING = (
    "BLIP-2 is not trained on medical images, and neither are the other models here. These answers are no findings and "
    "no diagnosis: never use them to treat a patient."
)


@dataclass(frozen=True)
class Question:
    """One question about pages.

    Attributes:
        text: as reports show it.
        choices: answers to choose among, such as `YES_NO`; none: the model writes its answer.
        pages: "all", "first" or "last" of the pages that are analyzed, or numbers as in "1-3,7".

    Raises:
        OptionError: the text is empty or too long, there is one choice alone, or there are no such pages.
    """

    text: str
    choices: tuple[str, ...] = ()
    pages: str = ALL

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip(" \t\r\n?.!"):
            raise OptionError("a question is empty: ask something about the page")
        if len(self.text.split()) > MOST_WORDS:
            raise OptionError(f"a question is longer than the {MOST_WORDS} words that models read: {self.text[:60]}…")
        if len(self.choices) == 1 or not all(isinstance(choice, str) and choice.strip() for choice in self.choices):
            raise OptionError(f"the choices of {self.text!r} are {list(self.choices)}: give two or more words for them")
        if len(set(self.choices)) < len(self.choices):
            raise OptionError(f"a choice of {self.text!r} is there twice: name each once")
        if self.pages not in (ALL, FIRST, LAST):
            try:
                page_ranges(self.pages)
            except OptionError:
                raise OptionError(
                    f"pages is {self.pages!r}: write {ALL}, {FIRST}, {LAST}, or numbers as in 1-3,7"
                ) from None

    def is_about(self, page: int, first: int, last: int) -> bool:
        """Whether it is asked about a page.

        Args:
            page: counted from 1.
            first, last: of the pages of its document that are analyzed.
        """
        if self.pages in (ALL, FIRST, LAST):
            return {ALL: True, FIRST: page == first, LAST: page == last}[self.pages]
        return any(low <= page <= high for low, high in page_ranges(self.pages))


@dataclass(frozen=True)
class QuestionSet:
    """What is asked about each page.

    Attributes:
        name: how it is chosen, and what reports call it.
        title, description: for people.
        warning: put in every report and result.
        caption: whether each page gets a caption.
        prompt: the words that captions begin with; None: the model's own.
        template: the prompt around a question, with {question} in it; None: the model's own.
        options: how answers are generated, see `openblip.GenerationOptions`; captions are as the model usually
            writes them.
        find: lists of words that are looked for in captions and written answers.

    Raises:
        OptionError: it asks nothing, asks something twice, or has wrong options.
    """

    name: str
    questions: tuple[Question, ...] = ()
    title: str = ""
    description: str = ""
    warning: str | None = None
    caption: bool = False
    prompt: str | None = None
    template: str | None = None
    options: TextOptions = field(default_factory=lambda: TextOptions())
    find: tuple[WordList, ...] = ()

    def __post_init__(self) -> None:
        texts = [question.text for question in self.questions]
        if not texts and not self.caption:
            raise OptionError(f"the set {self.name} asks nothing: give it questions, or a caption")
        for text in texts:
            if texts.count(text) > 1:
                raise OptionError(f"{text!r} is asked twice: ask each question once")
        if self.template is not None and "{question}" not in self.template:
            raise OptionError(f"template is {self.template!r}: say with {{question}} where the question stands")
        read_options(self.options)

    @property
    def abilities(self) -> tuple[str, ...]:
        """What a model must be able to do."""
        return (*(["caption"] if self.caption else []), *(["ask"] if self.questions else []))

    def to_yaml(self) -> str:
        """The set as a file that `load_question_set` reads."""
        lines = [f"# Use it with --set FILE; the set {self.name} of OpenBLIP, to be changed."]
        for key in ("title", "description", "warning"):
            if getattr(self, key):
                lines.append(f"{key}: {_quoted(getattr(self, key))}")
        lines.append(f"caption: {_quoted(self.prompt) if self.prompt else str(self.caption).lower()}")
        if self.questions:
            lines.append("questions:")
        for question in self.questions:
            if not question.choices and question.pages == ALL:
                lines.append(f"  - {_quoted(question.text)}")
                continue
            lines.append(f"  - ask: {_quoted(question.text)}")
            if question.choices:
                lines.append(f"    choices: {_quoted(list(question.choices))}")
            if question.pages != ALL:
                lines.append(f"    pages: {_quoted(question.pages)}")
        if self.template:
            lines.append(f"template: {_quoted(self.template)}")
        if self.options:
            lines.append("options:")
            lines += [f"  {name}: {_quoted(value)}" for name, value in self.options.items()]
        if self.find:
            lines.append(f"find: {_quoted([one.name for one in self.find])}")
        return "\n".join(lines) + "\n"

    def identity(self) -> dict[str, Any]:
        """All that decides the answers, as JSON."""
        return {
            **{key: getattr(self, key) for key in ("name", "title", "warning", "caption", "prompt", "template")},
            "questions": [[one.text, list(one.choices), one.pages] for one in self.questions],
            "options": dict(self.options),
            "find": [[one.name, one.digest] for one in self.find],
        }


def ask_about(questions: Iterable[str | Question], name: str = "questions") -> QuestionSet:
    """A set of questions alone. Raises OptionError as `QuestionSet`."""
    if not is_several(questions) or isinstance(questions, Mapping):
        raise OptionError(f"the questions are {str(questions)[:100]!r}: give the name of a set, or a list of questions")
    found = tuple(one if isinstance(one, Question) else Question(one) for one in questions)
    return QuestionSet(name, found)


def built_in_sets() -> dict[str, QuestionSet]:
    """The sets that come with the package, by name."""
    return {one.name: one for one in (_document(), _xray(), _ct(), _mri(), _product())}


def _document() -> QuestionSet:
    return QuestionSet(
        "document",
        (
            Question("What type of document is this?", pages=FIRST),
            Question("What is the title of this document?", pages=FIRST),
            Question("What are the main sections?"),
            Question("Summarize the key information."),
            Question("Is there a table on this page?", YES_NO),
            Question("Is there a signature on this page?", YES_NO),
            Question("Is there handwriting on this page?", YES_NO),
        ),
        title="Document",
        description="What a document is, and what is on its pages. Small print cannot be read: a model sees a page as "
        "a square of a few hundred pixels.",
        options={"max_new_tokens": 100},
    )


def _medical(name: str, title: str, *questions: str) -> QuestionSet:
    return QuestionSet(
        name,
        tuple(map(Question, questions)),
        title=title,
        description="To try what a model that you trained on such images has learned.",
        warning=MEDICAL_WARNING,
        options={"max_new_tokens": 150},
    )


def _xray() -> QuestionSet:
    return _medical(
        "xray",
        "Chest X-ray",
        "Describe any abnormalities visible in this chest X-ray.",
        "What anatomical structures are visible?",
        "Is there any evidence of pathology?",
    )


def _ct() -> QuestionSet:
    return _medical(
        "ct",
        "CT scan",
        "Describe the CT scan findings.",
        "What organs are visible in this slice?",
        "Are there any masses or lesions?",
    )


def _mri() -> QuestionSet:
    return _medical(
        "mri",
        "MRI",
        "Describe the MRI findings.",
        "What tissues show abnormal signal intensity?",
        "What is the most likely diagnosis?",
    )


def _product() -> QuestionSet:
    return QuestionSet(
        "product",
        (
            Question("What is this?"),
            Question("What color is it?"),
            Question("What is it made of?"),
            Question("What pattern does it have?"),
            Question("What is it used for?"),
            Question("Is there text on it?", YES_NO),
            Question("Is there a person in the photo?", YES_NO),
        ),
        title="Product",
        description="What a shop says of a product, from its photo: with the colors, materials and textures in it.",
        caption=True,
        options={"max_new_tokens": 30},
        find=load_word_lists("colors,materials,textures"),
    )


def _quoted(value: object) -> str:
    """As YAML, of which JSON is a part."""
    return json.dumps(value, ensure_ascii=False)
