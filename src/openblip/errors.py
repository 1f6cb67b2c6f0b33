"""The errors a user can meet; each message is one sentence that says what to do."""

from __future__ import annotations

import errno
import os
import re
import unicodedata
from collections.abc import Iterable
from numbers import Integral
from pathlib import Path

MOST_SHOWN = 200
"""Characters of one name or value of outside."""
MOST_OF_A_MESSAGE = 2_000
LONGEST_WORD = 500
LONG_WORD = re.compile(rf"\S{{{LONGEST_WORD + 1},}}")
JOINERS = "\u200c\u200d"
"""Invisible, and part of how Persian, Hindi and emoji are written."""


def printable(text: str, most: int = MOST_SHOWN, end: int = 0, kept: str = "") -> str:
    """Text of outside (names, contents, error messages of libraries) as one short line that only shows itself.

    Escapes for terminals, line breaks, marks that turn the direction of writing, and bytes that are no text become
    visible escapes.

    Args:
        most: characters of the result.
        end: how many of them are kept for the end of the text, when something has to be left out.
        kept: control characters that stay.
    """
    if len(text) > most:
        text = _shortened(text, most, end)  # no more of it is looked at than will be shown
    if text.isprintable():
        return text
    shown = "".join(character if _shows(character, kept) else _escaped(character) for character in text)
    return _shortened(shown, most, end)


def _shortened(text: str, most: int, end: int) -> str:
    return text if len(text) <= most else f"{text[: most - end - 1]}…{text[len(text) - end :]}"


def _shows(character: str, kept: str) -> bool:
    return (
        character.isprintable() or character in JOINERS or character in kept or unicodedata.category(character) == "Zs"
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class OpenBlipError(Exception):
    """Anything that is wrong with what the user gave: files, names, options, data.

    Names and contents of outside that a message repeats are made printable and short.
    """

    def __init__(self, message: object = "") -> None:
        # A long name leaves out its own middle rather than what a message says behind it.
        text = LONG_WORD.sub(lambda word: _shortened(word[0], LONGEST_WORD, LONGEST_WORD // 3), str(message))
        super().__init__(printable(text, MOST_OF_A_MESSAGE, MOST_OF_A_MESSAGE // 3))


class ImageError(OpenBlipError):
    """An image that cannot be used.

    Attributes:
        source: the path, URL or description of the image, as shown to the user.
    """

    def __init__(self, source: str, problem: str) -> None:
        super().__init__(f"{source if source.strip() else repr(source)}: {problem}")
        self.source = source
        self.problem = problem

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        return type(self), (self.source, self.problem)


class CheckpointError(OpenBlipError):
    """A model folder or file that is missing, broken or does not fit the architecture."""


class DownloadError(OpenBlipError):
    """Files of a model that cannot be fetched: no network, not there, not allowed, no room, damaged."""


class OptionError(OpenBlipError, ValueError):
    """An argument outside its allowed range, or arguments that exclude each other."""


def whole_number(called: str, value: object, least: int, wanted: str = "") -> int:
    """A number that a user gave, checked.

    Args:
        called: what an error calls it.
        wanted: what an error says of one that is too small; by default "at least ...".

    Raises:
        OptionError: it is no whole number, or below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise OptionError(f"{called} is {value!r}: it must be a whole number")
    if value < least:
        raise OptionError(f"{called} is {value}: it must be {wanted or f'at least {least}'}")
    return int(value)


def yes_or_no(called: str, value: object) -> bool:
    """A choice of two that a user gave, checked: "no" and "false" would count as true.

    Raises:
        OptionError: it is neither True nor False, of Python or NumPy.
    """
    kind = type(value)
    if not isinstance(value, bool) and (kind.__module__, kind.__name__.rstrip("_")) != ("numpy", "bool"):
        raise OptionError(f"{called} is {value!r}: it must be True or False")
    return bool(value)


def is_several(value: object) -> bool:
    """Whether there are things to go through: not in one text or the bytes of one, nor in an array of no dimensions."""
    if isinstance(value, str | bytes | bytearray | memoryview):
        return False
    # A number in an array is Iterable, and raises when somebody iterates.
    return isinstance(value, Iterable) and getattr(value, "ndim", 1) != 0


def given_path(called: str, value: object) -> Path:
    """A path that a user gave, checked; `~` is the user's home.

    Args:
        called: what an error calls it.

    Raises:
        OptionError: it is no path, is empty, or has what no system takes: characters, a length, the home of nobody.
    """
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise OptionError(f"{called} is {value!r}: give a path as text, or a pathlib.Path")
    if not text.strip():
        raise OptionError(f"{called} is empty: give a path")
    try:
        path = Path(text).expanduser()
        os.lstat(path)
    except (RuntimeError, ValueError) as error:
        raise OptionError(f"{called} is {text!r}, which no system takes as a path ({error}): give another") from error
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.EINVAL):
            raise OptionError(f"{called} {text} is no path here ({error.strerror}): give another") from error
    return path
