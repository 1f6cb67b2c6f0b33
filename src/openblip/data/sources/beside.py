"""Text files beside an image, in a folder or a tar: captions, a class or a JSON object under the name of the image.

`IMG.2020.txt` and `IMG.2020.jpg.txt` both belong to `IMG.2020.jpg`: only the suffix of an image or text file is
removed, not everything after the first dot.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from openblip.data.sample import ImageFile, Sample
from openblip.data.sources.cells import to_texts
from openblip.data.sources.records import Columns
from openblip.errors import OpenBlipError
from openblip.images.sources import IMAGE_SUFFIXES

CAPTIONS = ("caption", "captions", "txt", "text")
"""The first that is there is read: kohya's tools write captions to .caption, and tags to .txt."""
TEXTS = (*CAPTIONS, "json", "cls")
LONGEST_TEXT = 2**20
"""Largest text file beside an image, in bytes."""


def split_name(name: str) -> tuple[str, str]:
    """The name that an image shares with its texts, and the suffix in lower case; ("", "") for all other files.

    >>> split_name("a/IMG.2020.PNG"), split_name("a/IMG.2020.txt"), split_name("IMG.jpg.json")
    (('a/IMG.2020', 'png'), ('a/IMG.2020', 'txt'), ('IMG', 'json'))
    """
    folder, slash, file = name.rpartition("/")
    stem, _, ending = file.rpartition(".")
    ending = ending.lower()
    if ending in TEXTS:
        before, _, inner = stem.rpartition(".")
        stem = before if before and is_image(inner) else stem
    elif not is_image(ending):
        return "", ""
    return (f"{folder}{slash}{stem}", ending) if stem else ("", "")


def is_image(ending: str) -> bool:
    """Whether files with this suffix (without the dot) are images."""
    return f".{ending.lower()}" in IMAGE_SUFFIXES


def sample_of(image: ImageFile, name: str, texts: Mapping[str, str]) -> Sample:
    """The image with the texts beside it.

    Args:
        name: the image's name in its data set, used if its JSON has none.
        texts: contents of the files beside it, by suffix.

    Raises:
        OpenBlipError: a file cannot be read, or does not hold texts.
    """
    sample = Sample((image,), image_id=name)
    if "json" in texts:
        sample = _from_json(texts["json"], image, name)
    ending = next((ending for ending in CAPTIONS if ending in texts), "")
    captions = tuple(
        text
        for line in caption_lines(texts.get(ending, ""))
        for text in to_texts(line, f"its .{ending} file", "captions")
    )
    label = texts["cls"].strip() if "cls" in texts else sample.label
    return replace(sample, captions=captions or sample.captions, label=label)


def caption_lines(text: str) -> tuple[str, ...]:
    """One caption per line, without empty lines."""
    return tuple(line.strip() for line in re.split(r"[\r\n]+", text) if line.strip())


def text_of(name: str, size: int, read: Callable[[], bytes]) -> str:
    """The text of a file beside an image. Raises OpenBlipError if it is too long or cannot be read."""
    if size > LONGEST_TEXT:
        raise OpenBlipError(f"{name} has {size} bytes, which no caption has")
    try:
        return read().decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise OpenBlipError(f"{name} cannot be read ({error.strerror or error})") from error


def _from_json(text: str, image: ImageFile, name: str) -> Sample:
    place = "its JSON"
    try:
        content: Any = json.loads(text)
    except RecursionError:
        raise OpenBlipError(f"{place} cannot be read (it is nested too deeply)") from None
    except ValueError as error:
        raise OpenBlipError(f"{place} cannot be read ({error})") from error
    if isinstance(content, list | str):  # LAION as BLIP filtered it has a list of captions
        return Sample((image,), image_id=name, captions=to_texts(content, place, "captions"))
    if not isinstance(content, dict):
        raise OpenBlipError(f"{place} is neither an object nor a list")
    try:
        columns = Columns(content, name, needs_image=False)
    except OpenBlipError:
        # The captions are in a file beside it, or there are none.
        return Sample((image,), image_id=name, captions=to_texts(content.get("raw"), place, "raw"))
    return columns.sample(content, (image,), name, place)
