"""Text files of one caption a line behind the name of its image.

`openblip caption --output FILE` and `openblip ask --output FILE` write `a.jpg: a dog`; Flickr8k's and Flickr30k's
`.token` files have `a.jpg#0`, a tab and a caption.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openblip.data.sources.json_rows import reading
from openblip.errors import OpenBlipError
from openblip.images.sources import IMAGE_SUFFIXES

_SUFFIX = "|".join(sorted(re.escape(suffix) for suffix in IMAGE_SUFFIXES))
_LINE = re.compile(rf"(?P<image>.+?(?:{_SUFFIX}))(?:#\d+\t|: )(?P<text>.*)", re.IGNORECASE)
_ASKED = re.compile(r"(?P<question>[^?]+\?) (?P<answer>.+)")


def is_lines(path: Path) -> bool:
    """Whether the first line of a file that is not empty is of this form, and no header."""
    with reading(path), path.open(encoding="utf-8-sig") as file:
        first = next((line for line in file if line.strip()), "")
    return _LINE.fullmatch(first.strip("\r\n")) is not None


def read_named_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines as rows of `image` and `caption`, or of `image`, `question` and `answer` if each text is a question
    and an answer; each with its place for error messages.

    Raises:
        OpenBlipError: the file cannot be read, or a line is of another form.
    """
    rows = []
    with reading(path), path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            found = _LINE.fullmatch(line.rstrip("\r\n"))
            if found is None:
                raise OpenBlipError(f"{path}, line {number}, is no name of an image with a text behind it")
            rows.append((f"{path}, line {number},", found["image"], found["text"].strip()))
    asked = [_ASKED.fullmatch(text) for _, _, text in rows]
    if all(asked):
        for (place, image, _), pair in zip(rows, asked, strict=True):
            yield place, {"image": image, "question": pair and pair["question"], "answer": pair and pair["answer"]}
        return
    for place, image, text in rows:
        yield place, {"image": image, "caption": text}
