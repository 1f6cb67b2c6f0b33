"""Words of a list that occur in a text: the colors in a caption, its textures, its materials.

A list is a text file with a term a line:

    # What stands behind a # is a comment.
    gray, grayish              # the term, and other words for it
    light blue, pale blue      # of overlapping terms the longest counts
    rose: rose-colored         # a term that only other words stand for
    "orange"                   # in this form alone: no plural
    stripe*                    # with any ending
    ! golden retriever         # a phrase in which no word counts

Words are compared without regard to case; hyphens and spaces are alike, and so are "grey" and "gray", "colour" and
"color". The last word of a term may be singular or plural (see `inflections`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TypeAlias
from unicodedata import normalize

from openblip.errors import OptionError
from openblip.jobs.inflections import forms_of

BUILT_IN = Path(__file__).with_name("word_lists")
"""The folder of the lists that come with the package."""
LARGEST = 64 << 20
"""Bytes of a list's file."""

Key: TypeAlias = "tuple[str, ...]"
"""The words of a form, as `_key` writes them."""

_HAN = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Chinese and Japanese, which have no spaces: each character is a word."""
_MARKS = r"\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0963\u0966-\u0dff\u0e31-\u0e4e"
"""Parts of letters that regular expressions take for the end of a word."""
_LETTERS = rf"(?:[^\W_{_HAN}]|[{_MARKS}])+"
_WORD = re.compile(rf"[{_HAN}]|{_LETTERS}(?:['\u2019]{_LETTERS})*")
_JOINT = re.compile(r"[\s_\u2010-\u2015\u2212-]*")
"""What may stand between two words of one term."""
_COMMENT = re.compile(r"(?:^|\s)#.*")


@dataclass(frozen=True, slots=True)
class Match:
    """A term in a text.

    Attributes:
        start, end: where its form stands in the text, in characters.
        term: as the list writes it.
        form: the words of the form, in lower case.
    """

    start: int
    end: int
    term: str
    form: Key


@dataclass(frozen=True)
class WordList:
    """Terms that are looked for in texts.

    Attributes:
        name: the name of its column.
        forms: the words of each form with its term; None is a phrase in which no word counts.
        beginnings: the words in front of a last word of which the beginning alone is known, with these beginnings.
        written: the forms that the list has itself; the others are inflected.
    """

    name: str
    forms: Mapping[Key, str | None]
    beginnings: Mapping[Key, tuple[tuple[str, str | None], ...]] = field(default_factory=dict)
    written: frozenset[Key] = frozenset()

    @classmethod
    def from_lines(cls, name: str, lines: Iterable[str], place: str = "the list") -> WordList:
        """A list of the lines of its file.

        Args:
            place: what to call it in messages.

        Raises:
            OptionError: a line that means nothing, one word for two terms, or no term at all.
        """
        reader = ListReader()
        for number, line in enumerate(lines, start=1):
            reader.read(line, f"{place}, line {number},")
        return reader.word_list(name, place)

    def find(self, text: str) -> list[str]:
        """The terms that occur in a text, each once, in the order in which they first occur."""
        return list(dict.fromkeys(match.term for match in self.matches(text)))

    def matches(self, text: str) -> Iterator[Match]:
        """Where terms occur, from left to right; of those that overlap the longest of the first."""
        text = normalize("NFC", text)
        words = list(_WORD.finditer(text))
        keys = [_key(word.group()) for word in words]
        at = 0
        while at < len(keys):
            longest = self._longest.get(keys[at], self._longest_of_any)
            reach = 1
            while reach < min(longest, len(keys) - at) and _JOINT.fullmatch(
                text, words[at + reach - 1].end(), words[at + reach].start()
            ):
                reach += 1
            lengths = range(min(reach, longest), 0, -1)
            found = next(((n, term) for n in lengths for term in self._terms(tuple(keys[at : at + n]))), None)
            if found is None:
                at += 1
                continue
            count, term = found
            if term is not None:
                last = words[at + count - 1]
                end = last.end() - _possessive(last.group())
                yield Match(words[at].start(), end, term, tuple(keys[at : at + count]))
            at += count

    @cached_property
    def _longest(self) -> dict[str, int]:
        """Words of the longest form that begins with a word."""
        longest: dict[str, int] = {}
        for form in [*self.forms, *((*front, "") for front in self.beginnings if front)]:
            longest[form[0]] = max(longest.get(form[0], self._longest_of_any), len(form))
        return longest

    @property
    def _longest_of_any(self) -> int:
        """As `_longest` for words that no form begins with: a beginning may be theirs."""
        return 1 if () in self.beginnings else 0

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what the list finds, in hex: comments and the order of lines do not count."""
        found = [
            sorted([*form, term or ""] for form, term in self.forms.items()),
            sorted(
                [list(front), sorted([last, term or ""] for last, term in ends)]
                for front, ends in self.beginnings.items()
            ),
        ]
        return hashlib.sha256(json.dumps(found).encode()).hexdigest()

    def _terms(self, form: Key) -> Iterator[str | None]:
        if form in self.forms:
            yield self.forms[form]
        for beginning, term in self.beginnings.get(form[:-1], ()) if self.beginnings else ():
            if form[-1].startswith(beginning):
                yield term


class ListReader:
    """Makes a list of its lines."""

    def __init__(self) -> None:
        self.forms: dict[Key, str | None] = {}
        self.beginnings: dict[Key, str | None] = {}
        self.exact: dict[Key, str | None] = {}
        """Forms that were written, and not made by inflection: these go before."""

    def read(self, line: str, where: str) -> None:
        """Add a line. Raises OptionError, which begins with `where`, if it means nothing."""
        line = _COMMENT.sub("", normalize("NFC", line)).strip()
        if not line:
            return
        if line.startswith("!"):
            for phrase in line[1:].split(","):
                self._add(phrase, None, where)
            return
        name, colon, others = line.partition(":")
        term, *synonyms = name.split(",") if not colon else [name, *others.split(",")]
        shown = shown_term(term)
        for form in synonyms if colon else [term, *synonyms]:
            self._add(form, shown, where)

    def word_list(self, name: str, place: str) -> WordList:
        """The list of all lines that were read. Raises OptionError, which begins with `place`, if it has no term."""
        if not any(term is not None for term in [*self.forms.values(), *self.beginnings.values()]):
            raise OptionError(f"{place} has no words in it: write a word in each line")
        beginnings: dict[Key, tuple[tuple[str, str | None], ...]] = {}
        for (*front, last), term in self.beginnings.items():
            beginnings[tuple(front)] = (*beginnings.get(tuple(front), ()), (last, term))
        return WordList(name, self.forms, beginnings, frozenset(self.exact))

    def _add(self, form: str, term: str | None, where: str) -> None:
        text = form.strip()
        is_exact = len(text) > 1 and text[0] == text[-1] == '"'
        if is_exact:
            text = text[1:-1].strip()
        is_open = text.endswith("*")
        key = keys_of(text)
        if not key or (term is not None and not term) or "*" in text[:-1]:
            raise OptionError(f"{where} is {form.strip()!r}: write words, with commas between words for the same thing")
        if is_open:
            self._put(self.beginnings, key, term, where)
            return
        if self.exact.get(key, term) != term:
            raise OptionError(f"{where} has {text!r}, which stands for {self.exact[key] or '!'!r} in another line")
        self.exact[key] = self.forms[key] = term
        if not is_exact:
            for last in forms_of(key[-1]):
                self.forms.setdefault((*key[:-1], _key(last)), term)

    def _put(self, forms: dict[Key, str | None], key: Key, term: str | None, where: str) -> None:
        if forms.setdefault(key, term) != term:
            raise OptionError(f"{where} has {' '.join(key)!r}, which stands for {forms[key] or '!'!r} in another line")


def load_word_lists(names: str | Iterable[str]) -> tuple[WordList, ...]:
    """Lists by name: those of the package, and files.

    Args:
        names: such as "colors,textures" or "colors,my/words.txt"; a list is called as its file without the suffix, and
            "animals=my/words.txt" calls it animals.

    Raises:
        OptionError: there is no such list or file, its lines mean nothing, or two lists have one name.
    """
    given = [names] if isinstance(names, str) else list(names)
    parts = [part for one in given for part in ([one] if os.path.isfile(one) else one.split(","))]
    lists = [_load(part.strip()) for part in parts if part.strip()]
    if not lists:
        raise OptionError(f"no list of words is named: give one of {', '.join(built_in_lists())}, or a file")
    for number, one in enumerate(lists):
        if one.name in [earlier.name for earlier in lists[:number]]:
            raise OptionError(f"two lists of words are called {one.name}: call one otherwise, such as new_name=FILE")
    return tuple(lists)


def forms_to_avoid(given: Iterable[str]) -> list[str]:
    """Words in singular and plural, as `bad_words` of a model has to have them.

    Args:
        given: lines of a list, or the names of files of them.

    Raises:
        OptionError: a line means nothing, or what only a search can do.
    """
    reader = ListReader()
    for text in given:
        if os.path.isfile(text):
            for number, line in enumerate(read_text(Path(text)).splitlines(), start=1):
                reader.read(line, f"{text}, line {number},")
        else:
            reader.read(text, "--avoid")
    found = reader.word_list("--avoid", "--avoid")
    if found.beginnings or None in found.forms.values():
        raise OptionError("--avoid takes words alone, without * and !: write each word that must not occur")
    forms = [" ".join(form) for form in found.forms]
    british = [form.replace("gray", "grey").replace("color", "colour") for form in forms]
    return sorted({*forms, *british})


def built_in_lists() -> list[str]:
    """The names of the lists that come with the package."""
    return sorted(path.stem for path in BUILT_IN.glob("*.txt"))


def _load(given: str) -> WordList:
    called, equals, source = given.partition("=")
    if not equals or os.path.isfile(given):
        called, source = "", given
    known = built_in_lists()
    path = BUILT_IN / f"{source}.txt" if source in known else Path(source).expanduser()
    if source not in known and not os.path.isfile(path):
        near = get_close_matches(source, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"give one of {', '.join(known)}, or a file"
        raise OptionError(f"there is no list of words {source}: {hint}")
    return WordList.from_lines(called.strip() or path.stem, read_text(path).splitlines(), str(path))


def read_text(path: Path) -> str:
    """The text of a file of words. Raises OptionError if it is none."""
    try:
        if path.stat().st_size > LARGEST:
            raise OptionError(f"{path} is too large for a list of words: write a word in each line")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise OptionError(f"{path} is no text in UTF-8: write a word in each line") from None
    except OSError as error:
        raise OptionError(f"{path} cannot be read: {error.strerror or error}") from None
    if "\0" in text:
        raise OptionError(f"{path} is no text: write a word in each line")
    return text


def keys_of(text: str) -> Key:
    """The words of a text as words are compared."""
    return tuple(_key(word) for word in _WORD.findall(text))


def _key(word: str) -> str:
    """A word as words are compared."""
    lower = word.lower().replace("\u2019", "'")
    return lower[: len(lower) - _possessive(lower)].replace("colour", "color").replace("grey", "gray")


def _possessive(word: str) -> int:
    """Characters of the 's at its end."""
    return 2 if len(word) > 2 and word[-2] in "'\u2019" and word[-1] in "sS" else 0


def shown_term(term: str) -> str:
    """A term of a list without the marks around it."""
    return " ".join(term.replace('"', " ").replace("*", " ").split())
