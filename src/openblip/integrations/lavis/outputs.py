"""What LAVIS' models return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from torch import Tensor


class Samples(TypedDict, total=False):
    """What LAVIS' models take.

    Attributes:
        image: pixels [B, 3, S, S], as the image processors give them.
        text_input, text_output: texts, one an image; LAVIS' T5 reads the first and learns to say the second.
        prompt: how a text begins, one for all images or one each.
        image_id: [B]; texts of equal ids describe one image (stage-1 loss).
    """

    image: Tensor
    text_input: str | list[str]
    text_output: list[str]
    prompt: str | list[str]
    image_id: Tensor


@dataclass(frozen=True)
class BlipOutputFeatures:
    """Features by kind; None for what the mode does not give.

    Attributes:
        image_embeds: query outputs [B, Q, 768]; image_embeds_proj: unit vectors [B, Q, 256].
        text_embeds: [B, L, 768]; text_embeds_proj: unit vectors [B, L, 256], that of [CLS] first.
        multimodal_embeds: queries that saw the text, too [B, Q, 768].
    """

    image_embeds: Tensor | None = None
    image_embeds_proj: Tensor | None = None
    text_embeds: Tensor | None = None
    text_embeds_proj: Tensor | None = None
    multimodal_embeds: Tensor | None = None


@dataclass(frozen=True)
class BlipOutput:
    """The stage-1 loss and its parts."""

    loss: Tensor
    loss_itc: Tensor
    loss_itm: Tensor
    loss_lm: Tensor


class Loss(TypedDict):
    """The stage-2 loss."""

    loss: Tensor
