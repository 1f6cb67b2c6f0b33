"""Sets of questions by name or from files of YAML or JSON, every key of which is checked."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeAlias

from openblip.analysis.question_sets import ALL, Question, QuestionSet, ask_about, built_in_sets
from openblip.errors import OpenBlipError, OptionError, printable
from openblip.files import read_text
from openblip.jobs.words import WordList, built_in_lists, load_word_lists

KEYS = ("title", "description", "warning", "caption", "questions", "template", "options", "find")
QUESTION_KEYS = ("ask", "choices", "pages")
SUFFIXES = (".yaml", ".yml", ".json")
LARGEST, DEEPEST, MOST_VALUES = 1 << 20, 6, 10_000
"""Bytes of a file, and levels and values in it."""
YES, NO = ("true", "yes", "on"), ("false", "no", "off")

Key: TypeAlias = "tuple[str | int, ...]"
"""Where a value is in a file: `("questions", 1, "pages")`."""


def find_question_set(given: str | os.PathLike[str] | QuestionSet | Iterable[str | Question]) -> QuestionSet:
    """The set that a user means: by name, from a file, or of questions in a list.

    Raises:
        OptionError: there is no such set; the sets there are, and one whose name is alike, are named.
        OpenBlipError: the file cannot be read, or something in it is wrong: the message names the line and the key.
    """
    if isinstance(given, QuestionSet):
        return given
    if not isinstance(given, str | os.PathLike):
        return ask_about(given)
    name, known = os.fspath(given), built_in_sets()
    if name in known:
        return known[name]
    if Path(name).suffix.lower() in SUFFIXES or os.path.isfile(name):
        return load_question_set(name)
    near = get_close_matches(name.lower(), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"give {', '.join(known)}, or a YAML file of your own"
    raise OptionError(f"there is no set of questions {name}: {hint}")


def load_question_set(path: str | os.PathLike[str]) -> QuestionSet:
    """Read a set from a YAML or JSON file; it is called as the file without its suffix.

    Raises:
        OpenBlipError: the file cannot be read, or something in it is wrong: the message names the line and the key.
    """
    path = Path(path).expanduser()
    content = _read(path)
    if path.suffix.lower() == ".json":
        return _Reader(path, {}).question_set(_parsed_json(content, path))
    values, lines = _parsed_yaml(content, path)
    return _Reader(path, lines).question_set(values)


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST:
            raise OpenBlipError(f"{path} is too large for a set of questions: check that it is the right file")
        return read_text(path, encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise OpenBlipError(f"{path} is no text in UTF-8: save it again as that") from None
    except FileNotFoundError:
        known = ", ".join(built_in_sets())
        raise OptionError(f"there is no file {path}: check the path, or give one of the sets {known}") from None
    except OSError as error:
        raise OpenBlipError(f"{path} cannot be read: {error.strerror or error}") from None


def _parsed_json(content: str, path: Path) -> Any:
    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, _ in pairs:
            if [name for name, _ in pairs].count(key) > 1:
                raise OpenBlipError(f"{path}: the key {key!r} is there twice: write it once")
        return dict(pairs)

    try:
        return json.loads(content, object_pairs_hook=without_repeats)
    except RecursionError:
        raise OpenBlipError(f"{path}: something is nested too deeply: write it flat") from None
    except ValueError as error:
        raise OpenBlipError(f"{path} is no JSON ({error})") from None


def _parsed_yaml(content: str, path: Path) -> tuple[Any, dict[Key, int]]:
    """The values of a file, all single ones as texts, and the lines in which they stand.

    Texts, for YAML itself would make true of yes and 12 of 012.
    """
    try:
        import yaml
    except ImportError:
        raise OpenBlipError(
            f'reading {path} needs PyYAML: pip install "openblip[documents]", or write the set as JSON'
        ) from None
    lines: dict[Key, int] = {}

    def convert(node: Any, key: Key) -> Any:
        line = lines[key] = node.start_mark.line + 1
        if len(lines) > MOST_VALUES or len(key) > DEEPEST:
            raise OpenBlipError(f"{path}, line {line}: something is nested too deeply, or the file is too long")
        if isinstance(node, yaml.ScalarNode):
            return str(node.value)
        if isinstance(node, yaml.SequenceNode):
            return [convert(part, (*key, number)) for number, part in enumerate(node.value)]
        found: dict[str, Any] = {}
        for name, part in node.value:
            if not isinstance(name, yaml.ScalarNode):
                raise OpenBlipError(f"{path}, line {name.start_mark.line + 1}: a key must be a word")
            if name.value in found:
                where = f"{path}, line {name.start_mark.line + 1}"
                raise OpenBlipError(f"{where}: the key {name.value!r} is there twice: write it once")
            found[name.value] = convert(part, (*key, name.value))
        return found

    try:
        root = yaml.compose(content, Loader=yaml.SafeLoader)
    except RecursionError:
        raise OpenBlipError(f"{path}: something is nested too deeply: write it flat") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = str(path) if mark is None else f"{path}, line {mark.line + 1}"
        reason = printable(getattr(error, "problem", None) or str(error))
        raise OpenBlipError(f"{where}: this is no YAML ({reason}): put texts in quotes") from None
    return (None, lines) if root is None else (convert(root, ()), lines)


@dataclass(frozen=True)
class _Reader:
    """Makes a set of the values in a file."""

    path: Path
    lines: Mapping[Key, int]

    def question_set(self, values: Any) -> QuestionSet:
        if not isinstance(values, dict):
            raise OpenBlipError(f"{self.path} is no set of questions: write keys and values, such as questions: [...]")
        self._check_keys(values, KEYS, ())
        caption, prompt = self._caption(values.get("caption", False))
        texts = {name: self._text(values[name], (name,)) for name in (*KEYS[:3], "template") if name in values}
        questions = [
            self._question(one, ("questions", number))
            for number, one in enumerate(self._list(values.get("questions", []), ("questions",), "questions"))
        ]
        options = self._options(values.get("options", {}))
        find = self._word_lists(values.get("find"))
        with self._naming(()):
            return QuestionSet(
                self.path.stem,
                tuple(questions),
                title=texts.get("title", ""),
                description=texts.get("description", ""),
                warning=texts.get("warning") or None,
                caption=caption,
                prompt=prompt,
                template=texts.get("template"),
                options=options,  # type: ignore[arg-type]
                find=find,
            )

    def _question(self, value: Any, key: Key) -> Question:
        if not isinstance(value, dict):
            with self._naming(key):
                return Question(self._text(value, key))
        if not set(value) & set(QUESTION_KEYS):
            raise self._wrong(key, "is keys and values: put a question with a colon in quotes, or write ask: QUESTION")
        self._check_keys(value, QUESTION_KEYS, key)
        if "ask" not in value:
            raise self._wrong(key, "has no question: write ask: QUESTION")
        choices = self._list(value.get("choices", []), (*key, "choices"), "answers, such as [yes, no]")
        texts = [self._text(one, (*key, "choices", number)) for number, one in enumerate(choices)]
        pages = value.get("pages", ALL)
        # A number of JSON is a page, too.
        pages = str(pages) if isinstance(pages, int) and not isinstance(pages, bool) else pages
        with self._naming(key):
            return Question(self._text(value["ask"], (*key, "ask")), tuple(texts), self._text(pages, (*key, "pages")))

    def _caption(self, value: Any) -> tuple[bool, str | None]:
        flag = _flag(value)
        if flag is not None:
            return flag, None
        if not isinstance(value, str) or not value.strip():
            raise self._wrong(("caption",), "must be true, false, or the words that captions begin with")
        return True, value

    def _options(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._wrong(("options",), "must be keys and values, such as max_new_tokens: 50")
        options = {name: _scalar(one) for name, one in value.items()}
        for name, one in options.items():
            if isinstance(one, dict | list) or one is None:
                raise self._wrong(("options", name), "must be one value")
        from openblip.generation.options import read_options

        with self._naming(("options",)):
            read_options(options)
        return options

    def _word_lists(self, value: Any) -> tuple[WordList, ...]:
        key: Key = ("find",)
        if value is None:
            return ()
        if isinstance(value, dict):
            return tuple(
                WordList.from_lines(name, self._terms(terms, (*key, name)), self._place((*key, name)))
                for name, terms in value.items()
            )
        names = value.split(",") if isinstance(value, str) else self._list(value, key, "names of lists, or files")
        texts = [self._text(one, (*key, number)).strip() for number, one in enumerate(names)]
        beside = [str(self.path.parent / name) for name in texts]
        known = built_in_lists()
        with self._naming(key):
            return load_word_lists(
                [
                    file if name not in known and os.path.isfile(file) else name
                    for name, file in zip(texts, beside, strict=True)
                ]
            )

    def _terms(self, value: Any, key: Key) -> list[str]:
        return [
            self._text(one, (*key, number)) for number, one in enumerate(self._list(value, key, "words, such as [red]"))
        ]

    def _list(self, value: Any, key: Key, of: str) -> list[Any]:
        if not isinstance(value, list):
            raise self._wrong(key, f"must be a list of {of}")
        return value

    def _text(self, value: Any, key: Key) -> str:
        if not isinstance(value, str):
            kind = (
                "a list" if isinstance(value, list) else "keys and values" if isinstance(value, dict) else repr(value)
            )
            raise self._wrong(key, f"is {kind}, and must be a text")
        return value

    def _check_keys(self, values: Mapping[str, Any], known: Sequence[str], key: Key) -> None:
        for name in values:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"use {', '.join(known)}"
                raise OpenBlipError(f"{self._place((*key, name))} is unknown: {hint}")

    @contextmanager
    def _naming(self, key: Key) -> Iterator[None]:
        try:
            yield
        except OptionError as error:
            raise OpenBlipError(f"{self._place(key)}: {error}") from error

    def _wrong(self, key: Key, problem: str) -> OpenBlipError:
        return OpenBlipError(f"{self._place(key)} {problem}")

    def _place(self, key: Key) -> str:
        """The file, the line and the key of a value: `my.yaml, line 5: questions.2.pages`."""
        line = f", line {self.lines[key]}" if key and key in self.lines else ""
        name = ".".join(str(part + 1) if isinstance(part, int) else str(part) for part in key)
        return f"{self.path}{line}: {name}" if name else str(self.path)


def _flag(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    text = value.lower() if isinstance(value, str) else ""
    return True if text in YES else False if text in NO else None


def _scalar(value: Any) -> Any:
    """A number or a choice of YAML, where all are texts."""
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        with suppress(ValueError):
            return kind(value)
    flag = _flag(value)
    return value if flag is None else flag
