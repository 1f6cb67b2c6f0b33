"""Words of a text that others take the place of, in the number and with the capital that the old ones had."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from unicodedata import normalize

from openblip.errors import OptionError
from openblip.jobs.inflections import plural_of, singular_of
from openblip.jobs.words import Key, ListReader, WordList, read_text, shown_term

HEADERS = (["old", "new"], ["from", "to"])
"""What the first row of a table of replacements may be."""

_ARTICLE = re.compile(r"\b(an?)(\s+)$", re.IGNORECASE)
_BEHIND_AN = re.compile(
    r"(?!uni(?![mn])|us[eu]|eu|ewe|one\b|once\b|u[bkt][aeiou])[aeiou]|hour|honest|honor|heir", re.IGNORECASE
)
"""How words begin that "an" stands before; `_LETTERS_BEHIND_AN` for words that are read letter by letter."""
_LETTERS_BEHIND_AN = frozenset("AEFHILMNORSX")
_SENTENCE_START = re.compile(r"(?:^|[.!?])[\s\"'(\u201c\u2018]*$")
_DANGLING = re.compile(
    r"(?:^|(?<=\s))(?:an?|the|and|or|of|with|in|on|at|by|to|for|from|near|its|his|her|their)\s*$", re.IGNORECASE
)
_ARTICLES = re.compile(r"(?:^|(?<=\s))(?:an?|the)\s*$", re.IGNORECASE)
"""Words that mean nothing at the end of a text."""


@dataclass(frozen=True)
class Replacements:
    """Words and what takes their place: nothing where the new text is empty.

    A text is read once, from left to right: what was put in is not replaced again.

    Args:
        pairs: an old word, written as a line of a word list ("dog, puppy"), and the new text.

    Raises:
        OptionError: an old word that is none, or one that is there twice.
    """

    pairs: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        terms = [shown_term(old.partition(":")[0].partition(",")[0]) for old, _ in self.pairs]
        for number, term in enumerate(terms):
            if term in terms[:number]:
                raise OptionError(f"--replace has {term!r} twice: replace it by one thing")
        _ = self._list

    def apply(self, text: str) -> str:
        """The text with the new words in place of the old ones: "two Dogs" becomes "two Cats", "a dog" "an animal"."""
        text = normalize("NFC", text)
        done, at = "", 0
        capitals: list[int] = []
        for match in self._list.matches(text):
            left, right = done + text[at : match.start], text[match.end :]
            old = text[match.start : match.end]
            new = _in_number(self._new[match.term], self._written[match.term], match.form)
            if new:
                done = _with_article(left, new) + _capitalized(new, old, left, match.term)
            else:
                done, right = _closed(left, right)
                done = _with_article(done, right)
                if old[0].isupper() and _SENTENCE_START.search(done):
                    capitals.append(len(done))
            at = len(text) - len(right)
        done += text[at:]
        for place in capitals:
            done = done[:place] + done[place : place + 1].upper() + done[place + 1 :]
        return done

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the pairs, in hex."""
        return hashlib.sha256(json.dumps(self.pairs).encode()).hexdigest()

    @cached_property
    def _list(self) -> WordList:
        reader = ListReader()
        for old, new in self.pairs:
            reader.read(old, f"--replace {old}={new}")
        return reader.word_list("--replace", "--replace")

    @cached_property
    def _new(self) -> dict[str, str]:
        return {shown_term(old.partition(":")[0].partition(",")[0]): new for old, new in self.pairs}

    @cached_property
    def _written(self) -> dict[str, list[Key]]:
        written: dict[str, list[Key]] = {term: [] for term in self._new}
        for key in self._list.written:
            written.setdefault(self._list.forms[key] or "", []).append(key)
        return written


def read_replacements(given: Iterable[str]) -> Replacements | None:
    """Replacements as the command line gives them: OLD=NEW, or tables of two columns (.csv, .tsv); None of none.

    Raises:
        OptionError: what is given is neither, or a row of a table has not two cells.
    """
    pairs: list[tuple[str, str]] = []
    for text in given:
        if os.path.isfile(text):
            pairs += _read_table(Path(text))
            continue
        old, equals, new = text.partition("=")
        if not equals or not old.strip():
            raise OptionError(f"--replace is {text!r}: give OLD=NEW, or a .csv or .tsv file with a pair in each row")
        pairs.append((old.strip(), " ".join(new.split())))
    return Replacements(tuple(pairs)) if pairs else None


def _read_table(path: Path) -> list[tuple[str, str]]:
    delimiter = "\t" if path.suffix.lower() in (".tsv", ".tab") else ","
    rows = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    pairs = []
    try:
        for number, row in enumerate(rows):
            cells = [" ".join(cell.split()) for cell in row]
            if (
                not any(cells)
                or cells[0].startswith("#")
                or (not number and [cell.lower() for cell in cells] in HEADERS)
            ):
                continue
            if len(cells) != 2 or not cells[0]:
                raise OptionError(
                    f"{path}, line {rows.line_num}, has not an old and a new word: write old{delimiter}new"
                )
            pairs.append((cells[0], cells[1]))
    except csv.Error as error:
        raise OptionError(f"{path}, line {rows.line_num}, cannot be read: {error}") from None
    if not pairs:
        raise OptionError(f"{path} has no words in it: write old{delimiter}new in each line")
    return pairs


def _in_number(new: str, written: Iterable[Key], form: Key) -> str:
    """The new text in the plural where the form is a plural of the old word, and the other way round."""
    front, space, last = new.rpartition(" ")
    for key in written:
        if key[:-1] == form[:-1] and key[-1] != form[-1] and last.isalpha():
            for change in (plural_of, singular_of):
                if change(key[-1]) == form[-1]:
                    changed = change(last.lower()) or last.lower()
                    return front + space + (changed if last.islower() else last[0] + changed[1:])
    return new


def _capitalized(new: str, old: str, left: str, term: str) -> str:
    """The new text with the capitals that the old one has in this place, but not where it always has them."""
    if old.isupper() and len(old) > 1 and not term.isupper():
        return new.upper()
    if old[0].isupper() and (term[0].islower() or _SENTENCE_START.search(left)):
        return new[0].upper() + new[1:]
    return new


def _with_article(left: str, right: str) -> str:
    """The text in front of a word, with "a" or "an" at its end as the word wants it."""
    article = _ARTICLE.search(left)
    word = re.match(r"\w+", right)
    if article is None or word is None:
        return left
    text = word.group()
    is_read_by_letter = len(text) > 1 and text.isupper()
    is_an = text[0] in _LETTERS_BEHIND_AN if is_read_by_letter else bool(_BEHIND_AN.match(text))
    old = article[1]
    new = old[0] + ("" if not is_an else "N" if old == "AN" else "n")
    return left[: article.start()] + new + article[2]


def _closed(left: str, right: str) -> tuple[str, str]:
    """What stood before and behind a word that goes, without the spaces, commas and articles that go with it."""
    space = " " if left[-1:].isspace() or right[:1].isspace() else ""
    left, rest = left.rstrip(" \t-"), right.lstrip(" \t-")
    conjunction = re.match(r"(?:and|or)\s+", rest)
    if conjunction and (not left or _DANGLING.search(left)):
        left = _without(left, _ARTICLES)
        return left + (" " if left else ""), rest[conjunction.end() :]
    behind_comma = rest[1:].lstrip() if rest.startswith(",") else ""
    if behind_comma and _ARTICLES.search(left) and not re.match(r"(?:an?|the|and|or)\b", behind_comma, re.IGNORECASE):
        return left + " ", behind_comma  # one adjective of several
    if not rest or rest[0] in ",.;:!?)":
        left = _without(left, _DANGLING)
        if not rest.startswith(","):
            left = left.rstrip(" ,;:")
        elif not left or left[-1] in ",;:.(":
            return left + (space if left else ""), behind_comma
        space = " " if right[:1].isspace() else ""
    return left + (space if left and rest else ""), rest


def _without(text: str, ending: re.Pattern[str]) -> str:
    """A text without words that it ends with."""
    while found := ending.search(text):
        text = text[: found.start()].rstrip()
    return text
