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
        answer, n_answers, weight: BLIP learns to answer: all answers, how many of them each image has, and what each
            counts.
        epoch, iters, num_iters_per_epoch: where in a run the batch is, for BLIP's soft targets.
    """

    image: Tensor
    text_input: str | list[str]
    text_output: list[str]
    prompt: str | list[str]
    image_id: Tensor
    answer: list[str]
    n_answers: Tensor | list[int]
    weight: Tensor | list[float]
    epoch: int
    iters: int
    num_iters_per_epoch: int


@dataclass(frozen=True)
class BlipOutputFeatures:
    """Features by kind; None for what the mode does not give.

    Attributes:
        image_embeds: of BLIP-2 query outputs [B, Q, 768], of BLIP patches [B, N, 768]; image_embeds_proj: unit vectors
            [B, Q or N, 256].
        text_embeds: [B, L, 768]; text_embeds_proj: unit vectors [B, L, 256], that of [CLS] first.
        multimodal_embeds: of BLIP-2 queries that saw the text, too [B, Q, 768], of BLIP words that saw the image
            [B, L, 768].
    """

    image_embeds: Tensor | None = None
    image_embeds_proj: Tensor | None = None
    text_embeds: Tensor | None = None
    text_embeds_proj: Tensor | None = None
    multimodal_embeds: Tensor | None = None


@dataclass(frozen=True)
class DecoderOutput:
    """Scores of the words of texts that are learnt.

    Attributes:
        loss: their mean, or of answers [answers] the sum of each; logits: [texts, L, vocabulary].
    """

    loss: Tensor
    logits: Tensor


@dataclass(frozen=True)
class BlipIntermediateOutput:
    """What BLIP's loss was computed of.

    Attributes:
        image_embeds: patches [B, N, image width].
        decoder_labels: [texts, L], -100 for what is not learnt.
    """

    image_embeds: Tensor
    decoder_output: DecoderOutput
    decoder_labels: Tensor


@dataclass(frozen=True)
class BlipOutput:
    """A loss and its parts; None for those that a model does not have."""

    loss: Tensor
    loss_itc: Tensor | None = None
    loss_itm: Tensor | None = None
    loss_lm: Tensor | None = None
    intermediate_output: BlipIntermediateOutput | None = None


class Loss(TypedDict):
    """The stage-2 loss."""

    loss: Tensor
