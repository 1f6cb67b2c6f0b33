"""Pictures of samples on their way to the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from openblip.data.sample import Picture, Sample
from openblip.errors import ImageError, OptionError
from openblip.evaluation.outcome import Excluded
from openblip.evaluation.settings import BadImage
from openblip.images.decode import load_image
from openblip.images.prefetch import read_ahead
from openblip.images.sources import ImageSource, describe_source

if TYPE_CHECKING:
    from PIL.Image import Image


def name_of(picture: Picture) -> str:
    return describe_source(picture if isinstance(picture, Path) else str(picture))


def sources(pictures: Iterable[Picture], problems: dict[str, ImageError]) -> Iterator[ImageSource]:
    """What the model reads; a packed picture that cannot be had gives an empty file, and its error in `problems`."""
    for picture in pictures:
        if isinstance(picture, Path):
            yield picture
            continue
        try:
            yield picture.read_bytes()
        except ImageError as error:
            problems[name_of(picture)] = error
            yield b""


def load_pictures(pictures: Sequence[Picture]) -> Iterator[tuple[Picture, Image | ImageError]]:
    """Each picture, or what is wrong with it; the next ones are read while the caller works."""
    problems: dict[str, ImageError] = {}
    batches = read_ahead(sources(pictures, problems), load_image, batch_size=1)
    for picture, ((_, found),) in zip(pictures, batches, strict=True):
        yield picture, problems.get(name_of(picture), found) if isinstance(found, ImageError) else found


def grouped(samples: Sequence[Sample], what: str) -> dict[Picture, list[int]]:
    """Each picture with the numbers of its samples, in the order of their first appearance.

    Raises:
        OptionError: there are no samples, or one does not have exactly one picture.
    """
    if not samples:
        raise OptionError("there is nothing to evaluate: check the annotation file, the split and the limit")
    found: dict[Picture, list[int]] = {}
    for number, sample in enumerate(samples):
        if len(sample.images) != 1:
            name = sample.sample_id or sample.image_id or str(number)
            raise OptionError(f"row {name} has {len(sample.images)} pictures: {what} need exactly one")
        found.setdefault(sample.images[0], []).append(number)
    return found


def excluded(name: str, error: ImageError, policy: BadImage) -> Excluded:
    """A note of a picture that is left out. Raises the error where the policy is to stop."""
    if policy is BadImage.STOP:
        raise ImageError(name, f"{error.problem} (on_bad_image=skip goes on without it)")
    return Excluded(name, error.problem)
