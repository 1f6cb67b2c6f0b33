"""The settings of an evaluation: the part of a recipe that `score_model` needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, cast

from openblip.data.image_files import OnBadImage
from openblip.errors import OptionError
from openblip.generation.options import TextOptions, read_options, user_options


class Task(Enum):
    """The task of the model."""

    CAPTIONS = "captions"
    QUESTIONS = "questions"
    RETRIEVAL = "retrieval"
    CLASSIFICATION = "classification"


class Wish(Enum):
    """Whether a score is computed: if the machine can (auto), always or the run stops (required), or never."""

    AUTO = "auto"
    REQUIRED = "required"
    NEVER = "never"

    @property
    def choice(self) -> bool | None:
        return {Wish.AUTO: None, Wish.REQUIRED: True, Wish.NEVER: False}[self]


class Accuracy(Enum):
    """How an answer is compared with people's answers (see `openblip.evaluation.metrics.vqa`)."""

    VQA = "vqa"
    LEMMAS = "lemmas"
    SIMPLE = "simple"
    EXACT = "exact"
    HIDDEN = "hidden"


class Decision(Enum):
    """How a class is chosen: by contrast (ITC), matching (ITM), a question, a head (judge), or a file (given)."""

    CONTRAST = "contrast"
    MATCH = "match"
    ASK = "ask"
    JUDGE = "judge"
    GIVEN = "given"


@dataclass
class CaptionSettings:
    """Which caption scores are computed.

    Attributes:
        tokenizer: Java's PTB tokenizer, as for published numbers; never: our own, unofficial tokenizer.
        meteor: METEOR, in Java.
        spice: SPICE, in Java; takes a minute for 1,000 images and 8 GB of memory.
        hidden: there are no captions to compare with, as in test sets: nothing is scored, and the model's captions are
            written as an evaluation server takes them.
    """

    tokenizer: Wish = Wish.AUTO
    meteor: Wish = Wish.AUTO
    spice: Wish = Wish.AUTO
    hidden: bool = False


@dataclass
class QuestionSettings:
    """How answers are scored.

    Attributes:
        accuracy: VQA's leave-one-out accuracy (vqa), the same on lemmas (OK-VQA), min(n/3, 1), or exact match (GQA).
            hidden: the right answers are not public; the model's are written as an evaluation server takes them.
        answer_list: a file or an address of answers, a JSON list or lines, of which the likeliest is the model's, as
            BLIP is evaluated; by default the model writes an answer of its own.
        candidates: how many answers of the list are read whole for each question: those that begin likeliest.
    """

    accuracy: Accuracy = Accuracy.VQA
    answer_list: str | None = None
    candidates: int = 128


@dataclass
class RetrievalSettings:
    """How retrieval ranks.

    Attributes:
        rerank: how many of the best results by contrast (ITC) matching (ITM) orders, for each query; 0: contrast only.
        clean_texts: texts lose capitals and punctuation before the model reads them, as LAVIS does for CLIP, too; BLIP
            and BLIP-2 always read them so.
    """

    rerank: int = 128
    clean_texts: bool = False


@dataclass
class ClassificationSettings:
    """How classes are chosen and named.

    Attributes:
        by: contrast and match compare the image with a text for each label; ask asks a question about the image and
            looks up the answer in `answers`; judge puts the sentence of the sample into a class, as a model of NLVR2 or
            SNLI-VE has learned it; given reads labels from `predictions`.
        text: the text for a label, with {label} in it (contrast, match).
        templates: a file of several such texts instead, one a line, each with {label} or {} in it (contrast).
        names: a file of what the labels are called in those texts: a JSON object, or one name a line in the order of
            the sorted labels (contrast, match).
        labels: the classes; by default all labels of the data.
        question: the question; {text} stands for the sentence of the sample (ask).
        answers: the label for each answer; all other answers are wrong (ask).
        predictions: a file of JSON lines with "sample_id" and "label" (given).
    """

    by: Decision = Decision.CONTRAST
    text: str = "a photo of a {label}"
    templates: str | None = None
    names: str | None = None
    labels: list[str] | None = None
    question: str | None = None
    answers: dict[str, str] = field(default_factory=dict)
    predictions: str | None = None


@dataclass
class Settings:
    """A task and how it is done.

    Attributes:
        text: generation options that replace the model's own, and `prompt`: the beginning of captions, or the template
            of a question ("Question: {question} Short answer:").
        batch_size: number of images that are encoded together.
        data_root: where the paths of lists begin (`questions.answer_list`, `classification.templates` and `names`).
        on_bad_image: skip lists an image that cannot be read and leaves it out of all scores; stop ends the run.
    """

    task: Task
    text: dict[str, Any] = field(default_factory=dict)
    captions: CaptionSettings = field(default_factory=CaptionSettings)
    questions: QuestionSettings = field(default_factory=QuestionSettings)
    retrieval: RetrievalSettings = field(default_factory=RetrievalSettings)
    classification: ClassificationSettings = field(default_factory=ClassificationSettings)
    data_root: str = ""
    batch_size: int = 16
    on_bad_image: OnBadImage = OnBadImage.SKIP

    @property
    def prompt(self) -> str | None:
        prompt = self.text.get("prompt")
        return None if prompt is None else str(prompt)

    def text_options(self) -> TextOptions:
        """The generation options in `text`. Raises OptionError for an unknown name, or a value out of range."""
        options = read_options({name: value for name, value in self.text.items() if name != "prompt"})
        return cast(TextOptions, user_options(options))

    def check(self) -> None:
        """Raises OptionError for settings that exclude each other."""
        if self.batch_size < 1:
            raise OptionError(f"batch_size is {self.batch_size}: it must be at least 1")
        try:
            self.text_options()
        except OptionError as error:
            raise OptionError(f"text: {error}") from error
        frame = self.prompt
        if self.task is Task.QUESTIONS and frame is not None and "{question}" not in frame:
            raise OptionError(f"text.prompt is {frame!r}: for questions it needs {{question}} in it")
        if self.questions.candidates < 1:
            raise OptionError(f"questions.candidates is {self.questions.candidates}: it must be at least 1")
        if self.task is Task.QUESTIONS and self.questions.answer_list is not None and self.text_options():
            names = ", ".join(self.text_options())
            raise OptionError(
                f"with questions.answer_list the model chooses an answer, and writes none: leave {names} out"
            )
        if self.retrieval.rerank < 0:
            raise OptionError(f"retrieval.rerank is {self.retrieval.rerank}: it must be 0 or more")
        chosen = self.classification
        if self.task is Task.CLASSIFICATION:
            if chosen.by in (Decision.CONTRAST, Decision.MATCH) and "{label}" not in chosen.text:
                raise OptionError(f"classification.text is {chosen.text!r}: it needs {{label}} in it")
            if chosen.templates is not None and chosen.by is not Decision.CONTRAST:
                raise OptionError(f"classification by {chosen.by.value} reads no templates: leave them out")
            if chosen.by is Decision.ASK and (not chosen.question or not chosen.answers):
                raise OptionError("classification by ask needs a question, and answers with the labels they stand for")
            if chosen.by is Decision.GIVEN and chosen.predictions is None:
                raise OptionError("classification by given needs predictions, a file of JSON lines")
