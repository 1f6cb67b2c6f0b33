"""Give the images of samples to the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from openblip.data.image_files import OnBadImage
from openblip.data.sample import ImageFile, Sample
from openblip.errors import ImageError, OptionError
from openblip.evaluation.outcome import Excluded
from openblip.images.decode import load_image
from openblip.images.prefetch import read_ahead
from openblip.images.sources import ImageSource, describe_source

if TYPE_CHECKING:
    from PIL.Image import Image


def name_of(image: ImageFile) -> str:
    return describe_source(image if isinstance(image, Path) else str(image))


def sources(images: Iterable[ImageFile], problems: dict[str, ImageError]) -> Iterator[ImageSource]:
    """The images as the model takes them; one that cannot be unpacked is empty, and its error is in `problems`."""
    for image in images:
        if isinstance(image, Path):
            yield image
            continue
        try:
            yield image.read_bytes()
        except ImageError as error:
            problems[name_of(image)] = error
            yield b""


def load_images(images: Sequence[ImageFile]) -> Iterator[tuple[ImageFile, Image | ImageError]]:
    """Each image, or its error; the next images are read while the caller works."""
    problems: dict[str, ImageError] = {}
    batches = read_ahead(sources(images, problems), load_image, batch_size=1)
    for image, ((_, found),) in zip(images, batches, strict=True):
        yield image, problems.get(name_of(image), found) if isinstance(found, ImageError) else found


def grouped(samples: Sequence[Sample], what: str) -> dict[ImageFile, list[int]]:
    """Each image with the indices of its samples, in the order of first appearance.

    Raises:
        OptionError: there are no samples, or one does not have exactly one image.
    """
    if not samples:
        raise OptionError("there is nothing to evaluate: check the annotation file, the split and the limit")
    found: dict[ImageFile, list[int]] = {}
    for number, sample in enumerate(samples):
        if len(sample.images) != 1:
            name = sample.sample_id or sample.image_id or str(number)
            raise OptionError(f"row {name} has {len(sample.images)} images: {what} need exactly one")
        found.setdefault(sample.images[0], []).append(number)
    return found


def excluded(name: str, error: ImageError, policy: OnBadImage) -> Excluded:
    """The record of an image that is left out. Raises the error if the policy is to stop."""
    if policy is OnBadImage.STOP:
        raise ImageError(name, f"{error.problem} (on_bad_image=skip goes on without it)")
    return Excluded(name, error.problem)
