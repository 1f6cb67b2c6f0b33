"""LAVIS' image and text processors: one image to a tensor, one text to the words its models were trained on."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from openblip.data.augment import Augmentation, augment
from openblip.data.rand_augment import rand_augment
from openblip.images.decode import load_image
from openblip.images.transform import ImageTransform, normalize, squash, to_pixels

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from openblip.images.sources import ImageSource

TEXT_NOISE = re.compile(r"[.!\"()*#:;~]")


class ImageProcessor(Protocol):
    """An image (path, bytes, PIL, array) to normalized pixels [3, S, S]."""

    def __call__(self, image: ImageSource) -> Tensor: ...


class TextProcessor(Protocol):
    """A text to the words a model reads."""

    def __call__(self, text: str) -> str: ...


@dataclass(frozen=True)
class BlipImageEvalProcessor:
    """LAVIS' "blip_image_eval": the whole image, squashed to the square."""

    transform: ImageTransform

    def __call__(self, image: ImageSource) -> Tensor:
        return to_pixels([load_image(image)], self.transform)[0]


@dataclass(frozen=True)
class ClipImageEvalProcessor(BlipImageEvalProcessor):
    """LAVIS' "clip_image_eval": the middle of the image, as the transform says."""


@dataclass(frozen=True)
class Blip2ImageTrainProcessor:
    """LAVIS' "blip2_image_train": a random crop, squashed to the square and mirrored half of the time.

    Attributes:
        min_scale, max_scale: share of the area that a crop keeps.
        rng: the source of randomness; by default PyTorch's, so that `torch.manual_seed` and the seeds of a
            DataLoader's workers decide, as they do for LAVIS'.
    """

    transform: ImageTransform
    min_scale: float = 0.5
    max_scale: float = 1.0
    rng: random.Random | None = None
    mirror: ClassVar[float] = 0.5

    def __call__(self, image: ImageSource) -> Tensor:
        import torch

        rng = random.Random(int(torch.randint(2**62, ()))) if self.rng is None else self.rng
        settings = Augmentation(self.min_scale, self.max_scale, mirror=self.mirror)
        return self.pixels(augment(load_image(image), rng, settings), rng)

    def pixels(self, part: Image.Image, rng: random.Random) -> Tensor:
        """What a crop becomes."""
        return normalize([squash(part, self.transform.image_size)], self.transform)[0]


@dataclass(frozen=True)
class BlipImageTrainProcessor(Blip2ImageTrainProcessor):
    """LAVIS' "blip_image_train": as BLIP-2's, and RandAugment, whose AutoContrast leaves the image visible here."""

    def pixels(self, part: Image.Image, rng: random.Random) -> Tensor:
        from PIL import Image

        changed = rand_augment(Image.fromarray(squash(part, self.transform.image_size)), rng)
        return normalize([np.asarray(changed)], self.transform)[0]


@dataclass(frozen=True)
class ClipImageTrainProcessor(Blip2ImageTrainProcessor):
    """LAVIS' "clip_image_train": a random crop of nearly all, not mirrored."""

    min_scale: float = 0.9
    mirror: ClassVar[float] = 0.0


@dataclass(frozen=True)
class BlipCaptionProcessor:
    """LAVIS' "blip_caption": lower case, no punctuation but commas, at most `max_words`, `prompt` in front."""

    prompt: str = ""
    max_words: int = 50

    def __call__(self, text: str) -> str:
        spaced = re.sub(r"\s{2,}", " ", TEXT_NOISE.sub(" ", text.lower())).rstrip("\n").strip(" ")
        return self.prompt + " ".join(spaced.split(" ")[: self.max_words])


@dataclass(frozen=True)
class BlipQuestionProcessor:
    """LAVIS' "blip_question": lower case, no punctuation but commas and question marks, at most `max_words`."""

    max_words: int = 50

    def __call__(self, text: str) -> str:
        words = TEXT_NOISE.sub("", text.lower()).rstrip(" ").split(" ")
        return " ".join(words[: self.max_words])
