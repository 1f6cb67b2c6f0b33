"""What the methods of `openblip.Model` have in common: one thing or several in, one result or a list out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

from openblip.generation.options import TextOptions
from openblip.images.encoded_image import ImageInput

BATCH_SIZE = 8
Images: TypeAlias = Iterable[ImageInput]
"""A list, a tuple, a generator or any other iterable of images."""
Texts: TypeAlias = Iterable[str]
"""Likewise of texts."""
Yes: TypeAlias = Literal[True]
No: TypeAlias = Literal[False]


class StreamedCaptionOptions(TextOptions, total=False):
    """Keywords of `Model.caption` when it streams."""

    prompt: str | None
    num_captions: None
    details: Literal[False]


class CaptionOptions(TextOptions, total=False):
    """Keywords of `Model.caption` that do not change the type of what it returns."""

    prompt: str | None
    batch_size: int
    stream: Literal[False]


class StreamedGenerateOptions(TextOptions, total=False):
    """Keywords of `Model.generate` when it streams."""

    details: Literal[False]


class GenerateOptions(TextOptions, total=False):
    """Keywords of `Model.generate` that do not change the type of what it returns."""

    batch_size: int
    stream: Literal[False]


class StreamedAskOptions(StreamedGenerateOptions, total=False):
    """Keywords of `Model.ask` when it streams."""

    template: str | None


class AskOptions(GenerateOptions, total=False):
    """Keywords of `Model.ask` that do not change the type of what it returns."""

    template: str | None
