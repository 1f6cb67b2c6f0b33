"""Paths in tables and recipes: check them, and expand patterns."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

from openblip.errors import OpenBlipError
from openblip.images.sources import has_marks, match_pattern

LONGEST_NAME = 255
LONGEST_PATH = 4096
"""Longest file name and longest path of common file systems, in bytes."""
MOST_FILES = 1_000_000
"""Most files that a pattern may stand for; the largest data sets have a quarter of that in tars."""

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)(?:\.\.(\d+))?\}")
_LONGEST_NUMBER = 18
_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")


def check_path(text: str, place: str) -> str:
    """The text, if it can be a path on this system.

    Args:
        place: where the path comes from; the message begins with it.

    Raises:
        OpenBlipError: it cannot be a path.
    """
    if text.isprintable() and len(text) * (1 if text.isascii() else 4) <= LONGEST_NAME:
        return text
    if not {"\0", "\n", "\r"}.isdisjoint(text):
        raise OpenBlipError(
            f"{place} has a path with a null character or a line break: rename the file, or write it anew"
        )
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError:
        raise OpenBlipError(
            f"{place} has a path with half a character ({text!a}): write the file's name anew"
        ) from None
    longest = max(map(len, re.split(rb"[\\/]", encoded)))
    if longest > LONGEST_NAME or len(encoded) > LONGEST_PATH:
        raise OpenBlipError(
            f"{place} has a path of {len(encoded)} bytes, which no system takes: is a text where the path should be?"
        )
    return text


def local_path(text: str, folder: Path, place: str) -> Path:
    """The path below a folder that a table names, written on any system.

    Raises:
        OpenBlipError: it is no path, or a path on a Windows drive and this is not Windows.
    """
    check_path(text, place)
    if os.name != "nt":
        if _DRIVE.match(text):
            raise OpenBlipError(
                f"{place} has a path on a Windows drive ({text}): write paths relative to one folder, and name that "
                "folder (data_root and images in a recipe)"
            )
        if "\\" in text and not os.path.exists(folder / text):
            text = text.replace("\\", "/")
    return folder / (Path(text).expanduser() if text == "~" or text.startswith("~/") else text)


def expand_pattern(pattern: str, folder: Path) -> list[Path]:
    """The files of a pattern: `{00000..00017}` counts, `{0..90..10}` counts in steps; `*`, `?` and `[...]` match files.

    Counted files are returned even if they do not exist, matches in the order of their names. If a file has exactly
    this name, it is returned, and nothing is expanded.

    Raises:
        OpenBlipError: nothing matches, or the pattern stands for too many files.
    """
    check_path(pattern, "the pattern")
    paths: list[Path] = []
    for text in counted_names(pattern):
        text = os.path.expanduser(text)
        paths += sorted(map(Path, match_pattern(text, str(folder)))) if has_marks(text) else [folder / text]
    if not paths:
        raise OpenBlipError(f"no file matches {pattern} in {folder}: check the pattern")
    return paths


def counted_names(pattern: str) -> list[str]:
    """The names that `{00000..00017}` stands for. Raises OpenBlipError if they are too many."""
    texts = [pattern]
    while any(braces := [_BRACES.search(text) for text in texts]):
        if sum(math.prod(map(_count, _BRACES.finditer(text))) for text in texts) > MOST_FILES:
            raise OpenBlipError(f"the pattern {pattern} stands for more than {MOST_FILES:,} files: count less far")
        texts = [made for text, found in zip(texts, braces, strict=True) for made in _filled(text, found)]
    return texts


def _count(found: re.Match[str]) -> int:
    """The number of files that the braces stand for."""
    if max(map(len, filter(None, found.groups()))) > _LONGEST_NUMBER:
        return MOST_FILES + 1
    first, last, step = (int(digits or 1) for digits in found.groups())
    return abs(last - first) // max(step, 1) + 1


def _filled(text: str, found: re.Match[str] | None) -> list[str]:
    if found is None:
        return [text]
    first, last, step = (int(digits or 1) for digits in found.groups())
    ends = found.group(1, 2)
    width = max(map(len, ends)) if any(end.startswith("0") and len(end) > 1 for end in ends) else 0
    numbers = range(first, last + 1, max(step, 1)) if first <= last else range(first, last - 1, -max(step, 1))
    return [f"{text[: found.start()]}{number:0{width}d}{text[found.end() :]}" for number in numbers]
