"""What a job does with each image: caption, ask, match, embed or classify, and the columns that it adds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeAlias, cast

from openblip.errors import ImageError, OpenBlipError, OptionError
from openblip.generation.options import TextOptions, read_options
from openblip.jobs.output import ERROR
from openblip.jobs.rows import ColumnType
from openblip.jobs.templates import Template
from openblip.jobs.wording import Wording
from openblip.models.abilities import Ability, Composed, require, writer_of

Texts: TypeAlias = "tuple[str, ...]"
Pairs: TypeAlias = "Iterable[tuple[bytes, Texts]]"
"""Encoded image files, each with the texts that belong to it alone."""
Result: TypeAlias = "dict[str, Any]"
"""Values of JSON, by column."""
Engine: TypeAlias = "Callable[[Pairs], Iterator[Result | ImageError]]"


class Verb(Protocol):
    """What is done with each image. Instances are pickled: the model is in another process."""

    ability: ClassVar[Ability]

    @property
    def columns(self) -> Mapping[str, ColumnType]:
        """The columns that are added, each with its type."""
        ...

    @property
    def has_tags(self) -> bool:
        """Whether its texts are tags, with commas between them, rather than descriptions."""
        ...

    def check(self, columns: Collection[str]) -> None:
        """Raises OptionError if an option names a column that is not there."""
        ...

    def texts(self, values: Mapping[str, str], image: str) -> Texts:
        """The texts that belong to a row alone. Raises OpenBlipError if the row lacks them."""
        ...

    def start(self, model: Any, batch_size: int) -> Engine: ...

    def finish(self, result: Result, values: Mapping[str, str], image: str) -> Result:
        """The values of `columns`, made of what the engine gave and of the row."""
        ...


@dataclass(frozen=True)
class _Plain:
    """A verb to which all rows are alike."""

    @property
    def has_tags(self) -> bool:
        return False

    def check(self, columns: Collection[str]) -> None:
        pass

    def texts(self, values: Mapping[str, str], image: str) -> Texts:
        return ()

    def finish(self, result: Result, values: Mapping[str, str], image: str) -> Result:
        return result


@dataclass(frozen=True)
class Caption(_Plain):
    """Captions.

    Attributes:
        prompt: the words that captions begin with; None: the model's own.
        count: captions of each image; more than one give a list.
        prefix, suffix: put before and behind each caption.
        column: the name of the new column.
        wording: what is done with captions; what is looked for has columns of its own.
    """

    prompt: Template | None = None
    count: int = 1
    prefix: Template | None = None
    suffix: Template | None = None
    column: str = "caption"
    options: TextOptions = field(default_factory=lambda: TextOptions())
    wording: Wording = field(default_factory=Wording)
    ability: ClassVar[Ability] = "caption"

    def __post_init__(self) -> None:
        _check_sampling(self.options)

    @property
    def columns(self) -> Mapping[str, ColumnType]:
        return {self.column: "string" if self.count == 1 else "list<string>", **self.wording.columns}

    @property
    def has_tags(self) -> bool:
        return self.wording.has_tags

    def check(self, columns: Collection[str]) -> None:
        self.wording.check([*columns, self.column, ERROR])
        for template in filter(None, (self.prompt, self.prefix, self.suffix)):
            template.check(columns)

    def texts(self, values: Mapping[str, str], image: str) -> Texts:
        return () if self.prompt is None else (self.prompt.fill(values, image),)

    def start(self, model: Any, batch_size: int) -> Engine:
        composed = cast(Composed, model)
        writer = writer_of(composed, self.ability)
        options = writer.options(self.options, composed.parts.defaults.captions, texts=self.count)

        def captions(pairs: Pairs) -> Iterator[Result | ImageError]:
            rows = ((image, list(texts) or [composed.parts.prompts.caption]) for image, texts in pairs)
            for _, _, found in writer.write_many(rows, options, batch_size, caption=True):
                yield found if isinstance(found, ImageError) else {"captions": [one.text for one in found[0]]}

        return captions

    def finish(self, result: Result, values: Mapping[str, str], image: str) -> Result:
        before, behind = ("" if part is None else part.fill(values, image) for part in (self.prefix, self.suffix))
        texts = self.wording.applied(result["captions"])
        captions = [self.wording.finished(f"{before}{text}{behind}") for text in texts]
        return {self.column: captions if self.count > 1 else captions[0], **self.wording.found(texts)}


@dataclass(frozen=True)
class Ask(_Plain):
    """Answers to questions: the same ones of each row, or one of a column.

    Attributes:
        questions: of all rows; with several, each gives a column that is named as it.
        question_column: the column that has the question of each row, instead of `questions`.
        column: the name of the new column for one question.
        wording: what is done with answers; what is looked for in all of them has columns of its own.
    """

    questions: tuple[Template, ...] = ()
    question_column: str | None = None
    column: str = "answer"
    options: TextOptions = field(default_factory=lambda: TextOptions())
    wording: Wording = field(default_factory=Wording)
    ability: ClassVar[Ability] = "ask"

    def __post_init__(self) -> None:
        _check_sampling(self.options)
        if bool(self.questions) == (self.question_column is not None):
            raise OptionError("give questions with --question, or a column of questions with --question-column")
        if any(not question.text.strip() for question in self.questions):
            raise OptionError("a question is empty: ask something about the image")
        if len({question.text for question in self.questions}) < len(self.questions):
            raise OptionError("a question is there twice: ask each once")

    @property
    def columns(self) -> Mapping[str, ColumnType]:
        answers: Mapping[str, ColumnType] = dict.fromkeys(self._answers, "string")
        return {**answers, **self.wording.columns}

    @property
    def _answers(self) -> Texts:
        """The columns of the answers."""
        return tuple(question.text for question in self.questions) if len(self.questions) > 1 else (self.column,)

    def check(self, columns: Collection[str]) -> None:
        self.wording.check([*columns, *self._answers, ERROR])
        for question in self.questions:
            question.check(columns)
        if self.question_column is not None and self.question_column not in columns:
            raise OptionError(f"there is no column {self.question_column}: give another --question-column")

    def texts(self, values: Mapping[str, str], image: str) -> Texts:
        if self.question_column is None:
            found = tuple(question.fill(values, image) for question in self.questions)
        else:
            found = (values.get(self.question_column, ""),)
        if not all(text.strip(" \t\r\n?") for text in found):
            raise OpenBlipError("the row has an empty question")
        return found

    def start(self, model: Any, batch_size: int) -> Engine:
        require(model, self.ability)
        # Wrong options are an error before the first image.
        writer_of(model, self.ability).options(self.options, model.parts.defaults.answers)

        def answers(pairs: Pairs) -> Iterator[Result | ImageError]:
            for found in model.ask_many(pairs, batch_size=batch_size, **self.options):
                yield found.error or {"answers": [answer.text for answer in found.answers]}

        return answers

    def finish(self, result: Result, values: Mapping[str, str], image: str) -> Result:
        answers = self.wording.applied(result["answers"])
        return dict(zip(self._answers, answers, strict=True)) | self.wording.found(answers)


@dataclass(frozen=True)
class Match(_Plain):
    """How well texts fit: `itm` and `itc` of one text, or lists of them and the text that fits best."""

    matched: tuple[str, ...] = ()
    ability: ClassVar[Ability] = "match"

    @property
    def columns(self) -> Mapping[str, ColumnType]:
        if len(self.matched) == 1:
            return {"itm": "double", "itc": "double"}
        return {"best_text": "string", "itm": "list<double>", "itc": "list<double>"}

    def start(self, model: Any, batch_size: int) -> Engine:
        require(model, self.ability)

        def matches(pairs: Pairs) -> Iterator[Result | ImageError]:
            images = (image for image, _ in pairs)
            for found in model.match_many(images, list(self.matched), batch_size=batch_size):
                if found.error is not None:
                    yield found.error
                    continue
                itm, itc = [one.itm for one in found.matches], [one.itc for one in found.matches]
                if len(self.matched) == 1:
                    yield {"itm": itm[0], "itc": itc[0]}
                else:
                    has_itm = None not in itm
                    best = max(found.matches, key=lambda one: one.itm if one.itm is not None else one.itc)
                    yield {"best_text": best.text, "itm": itm if has_itm else None, "itc": itc}

        return matches


@dataclass(frozen=True)
class Embed(_Plain):
    """Unit vectors of images: a list of the vectors, each a list of numbers."""

    column: str = "embedding"
    ability: ClassVar[Ability] = "embed"

    @property
    def columns(self) -> Mapping[str, ColumnType]:
        return {self.column: "list<list<float>>"}

    def start(self, model: Any, batch_size: int) -> Engine:
        require(model, self.ability)

        def vectors(pairs: Pairs) -> Iterator[Result | ImageError]:
            for found in model.embed_images_many((image for image, _ in pairs), batch_size=batch_size):
                yield found.error or {self.column: found.embeds.tolist()}

        return vectors


@dataclass(frozen=True)
class Classify(_Plain):
    """The label that fits best, and its share among all labels.

    Attributes:
        templates: texts with {} where a label stands; none: the model's own.
    """

    labels: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    column: str = "label"
    ability: ClassVar[Ability] = "classify"

    def __post_init__(self) -> None:
        if not self.labels:
            raise OptionError("there are no labels: give some with --label, or a file of them with --labels")

    @property
    def columns(self) -> Mapping[str, ColumnType]:
        return {self.column: "string", "probability": "double"}

    @property
    def has_tags(self) -> bool:
        return True

    def start(self, model: Any, batch_size: int) -> Engine:
        require(model, self.ability)
        templates = {"templates": list(self.templates)} if self.templates else {}

        def labels(pairs: Pairs) -> Iterator[Result | ImageError]:
            images = (image for image, _ in pairs)
            for found in model.classify_many(images, list(self.labels), batch_size=batch_size, **templates):
                if found.error is not None:
                    yield found.error
                else:
                    yield {self.column: found.labels[0].label, "probability": found.labels[0].probability}

        return labels


def _check_sampling(options: TextOptions) -> None:
    """Raises OptionError for options out of range, and for texts that would be others after an interruption."""
    chosen = read_options(options)
    if chosen.do_sample and chosen.seed is None:
        raise OptionError("a run that samples needs --seed: without it, its texts would be others each time")
