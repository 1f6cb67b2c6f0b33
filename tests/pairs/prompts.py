"""What a model's language model reads of an image and a text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openblip.images.encoded_image import ImageInput
from openblip.models.model import Model


def image_features(model: Model, images: Sequence[ImageInput]) -> Tensor:
    """[B, N, image width]."""
    return torch.stack([model.encode_image(image).features for image in images])


@torch.inference_mode()
def visual_prompt(model: Model, image: ImageInput) -> Tensor:
    """[Q, token width]."""
    return model.network.visual_prompt(model.encode_image(image).features[None])[0].clone()


@torch.inference_mode()
def prompt_row(model: Model, image: ImageInput, text: str) -> Tensor:
    """[T, token width]: the visual prompt and the words behind it."""
    ids = torch.tensor(model.parts.prompt_ids(text))
    return torch.cat([visual_prompt(model, image), model.network.language_model.embed(ids)])
