"""What a server takes from its clients, and how long it works on it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from openblip.errors import OptionError

MEGABYTE = 1_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats of images that are decoded; their decoders are the most tried ones."""

MAY_BE_0 = ("answers", "answers_mb", "uploads_mb")
"""Limits of what is kept: none of it."""


def _limit(default: float, explained: str) -> Any:
    return field(default=default, metadata={"help": explained})


@dataclass(frozen=True)
class Limits:
    """Every limit of a server; what a client is refused for says which one, and `--limit NAME=VALUE` changes it.

    Raises:
        OptionError: a limit of zero or below.
    """

    picture_mb: float = _limit(20.0, "Megabytes of one image file.")
    batch_mb: float = _limit(64.0, "Megabytes of a request with several image files.")
    json_mb: float = _limit(28.0, "Megabytes of a JSON request: an image of 20 MB as base64.")
    bodies_mb: float = _limit(512.0, "Megabytes of all requests that are being received or decoded.")
    files: int = _limit(16, "Files in a form.")
    fields: int = _limit(16, "Fields in a form, beside files, texts, questions and labels.")
    images: int = _limit(16, "Images in a request.")
    megapixels: float = _limit(50.0, "Width x height of an image, in millions, known before it is decoded.")
    texts: int = _limit(64, "Texts, questions or labels in a request.")
    label_texts: int = _limit(256, "Labels times templates in a request.")
    text_chars: int = _limit(2_000, "Characters of a prompt, a question or another text.")
    new_tokens: int = _limit(256, "max_new_tokens of a request; chat completions are shortened to it.")
    beams: int = _limit(8, "num_beams of a request.")
    captions: int = _limit(4, "Captions of an image, or choices of a chat completion.")
    queue: int = _limit(64, "Images that wait for the model; a request beyond is answered 429.")
    queue_seconds: float = _limit(10.0, "Time that a request waits for the model before it is answered 503.")
    request_seconds: float = _limit(60.0, "Time that a request takes before it is answered 504.")
    header_seconds: float = _limit(10.0, "Time in which the headers of a request arrive.")
    body_seconds: float = _limit(
        30.0, "Time in which a request's body arrives, or it is answered 408; an answer of which none is taken ends."
    )
    fetch_seconds: float = _limit(10.0, "Time in which an image comes from the web, with --allow-url.")
    idle_seconds: float = _limit(5.0, "Time that a connection stays open without a request.")
    batch: int = _limit(32, "Images that the model takes at once.")
    batch_seconds: float = _limit(0.5, "Time that a batch should take; batches become as large as it allows.")
    streams: int = _limit(16, "Streamed answers that are written at the same time.")
    answers: int = _limit(10_000, "Texts about images that are kept for whoever asks the same again; 0 keeps none.")
    answers_mb: float = _limit(64.0, "Megabytes that these texts take at most; 0 keeps none.")
    uploads_mb: float = _limit(64.0, "Megabytes of decoded images that are kept for whoever sends the same file again.")

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if value < (0 if one.name in MAY_BE_0 else 1e-3):
                raise OptionError(f"the limit {one.name} is {value}: it must be above 0")

    @property
    def file_bytes(self) -> int:
        return int(self.picture_mb * MEGABYTE)

    @property
    def pixels(self) -> int:
        return int(self.megapixels * MEGABYTE)


EXPLAINED = {one.name: str(one.metadata["help"]) for one in fields(Limits)}
"""Each limit, and what it limits."""


def read_limits(settings: Iterable[str]) -> Limits:
    """Limits of NAME=VALUE settings; of two of a name the last one holds.

    Raises:
        OptionError: an unknown name, or a value that is no number, or no whole one where it must be.
    """
    usual: dict[str, Any] = {one.name: one.default for one in fields(Limits)}
    chosen: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        name = name.strip().replace("-", "_")
        if name not in usual:
            near = get_close_matches(name, usual, n=1)
            known = f"did you mean {near[0]}?" if near else f"use {', '.join(usual)}"
            raise OptionError(f"there is no limit {name!r}: {known}")
        kind = type(usual[name])
        try:
            chosen[name] = kind(text.replace("_", "")) if equals else None
        except ValueError:
            chosen[name] = None
        if chosen[name] is None or chosen[name] != chosen[name]:
            wanted = "a whole number" if kind is int else "a number"
            raise OptionError(f"--limit {setting}: give NAME=VALUE, where {name} is {wanted}, such as {usual[name]}")
    return Limits(**chosen)
