"""What models and processors return: dictionaries whose entries are attributes, too."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterable, Mapping
from inspect import get_annotations
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


class ModelOutput(dict[str, Any]):
    """Results by attribute, by name, or by place; what a class declares and was not computed is None.

    torch.export looks for tensors in all subclasses.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        pytree.register_pytree_node(
            cls,
            lambda output: (list(output.values()), list(output)),
            lambda values, names: cls(zip(names, values, strict=True)),
            serialized_type_name=f"{cls.__module__}.{cls.__name__}",
        )

    def __init__(self, values: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), **named: Any) -> None:
        merged = {**dict(values), **named}
        super().__init__({name: value for name, value in merged.items() if value is not None})

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        if any(name in get_annotations(kind) for kind in type(self).__mro__):
            return None
        raise AttributeError(f"{type(self).__name__} has no {name!r}, only {', '.join(self)}")

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        """All values in order; those that are outputs of their own as tuples."""
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


class FeatureOutput(ModelOutput):
    """Vectors of a tower.

    Attributes:
        last_hidden_state: [B, N, width], patches, queries or words.
        pooler_output: [B, width], what stands for the whole; for `Blip2ForConditionalGeneration.get_image_features`
            the visual prompt [B, Q, token width].
    """

    last_hidden_state: Tensor
    pooler_output: Tensor | None
    vision_outputs: FeatureOutput | None
    qformer_outputs: FeatureOutput | None


class WritingOutput(ModelOutput):
    """Scores of a text behind an image.

    Attributes:
        loss: mean over the labels; None without labels.
        logits: [B, T, vocabulary]; with labels as many places as they have.
    """

    loss: Tensor | None
    logits: Tensor
    vision_outputs: FeatureOutput
    qformer_outputs: FeatureOutput


class GenerateOutput(ModelOutput):
    """What `generate` gives with `return_dict_in_generate`.

    Attributes:
        sequences: ids [N, length]; sequences_scores: [N], of beams, as they were ranked.
    """

    sequences: Tensor
    sequences_scores: Tensor | None


class ProjectionOutput(ModelOutput):
    """One side of contrast.

    Attributes:
        image_embeds: unit vectors [B, Q, shared width]; text_embeds: unit vectors of all words [T, L, shared width], of
            which the first stands for the text.
        last_hidden_state: patches [B, N, image width], or words [T, L, width].
    """

    image_embeds: Tensor | None
    text_embeds: Tensor | None
    last_hidden_state: Tensor


class MatchingOutput(ModelOutput):
    """How texts fit images.

    Attributes:
        logits_per_image: ITM [B, 2], of which index 1 is yes, or ITC cosines [images, texts]; logits_per_text its
            transpose.
        text_embeds, image_embeds: ITC's unit vectors [T, shared width] and [I, Q, shared width].
    """

    logits_per_image: Tensor
    logits_per_text: Tensor
    text_embeds: Tensor
    image_embeds: Tensor
    text_model_output: FeatureOutput
    vision_model_output: FeatureOutput


class BlipCaptionOutput(ModelOutput):
    """Scores of a caption.

    Attributes:
        loss: mean over the labels; None without labels.
        logits: [B, L, vocabulary].
        image_embeds, last_hidden_state: patches [B, N, image width].
    """

    loss: Tensor | None
    logits: Tensor
    image_embeds: Tensor
    last_hidden_state: Tensor


class BlipAnswerOutput(ModelOutput):
    """The loss of an answer.

    Attributes:
        loss: mean over the labels; None without labels.
        image_embeds, last_hidden_state: patches [B, N, image width].
    """

    loss: Tensor | None
    image_embeds: Tensor
    last_hidden_state: Tensor


class BlipMatchingOutput(ModelOutput):
    """How texts fit images.

    Attributes:
        itm_score: ITM logits [B, 2], of which index 1 is yes, or ITC cosines [images, texts].
        last_hidden_state: patches [B, N, image width].
        question_embeds: words [B, L, width], which saw the images where ITM was asked for.
    """

    itm_score: Tensor
    last_hidden_state: Tensor
    question_embeds: Tensor


class BlipModelOutput(ModelOutput):
    """Images against texts.

    Attributes:
        loss: the contrastive loss; None unless it was asked for.
        logits_per_image: scaled cosines [I, T]; logits_per_text: [T, I].
        text_embeds, image_embeds: unit vectors [T, shared width] and [I, shared width].
    """

    loss: Tensor | None
    logits_per_image: Tensor
    logits_per_text: Tensor
    text_embeds: Tensor
    image_embeds: Tensor
    text_model_output: FeatureOutput
    vision_model_output: FeatureOutput


class BatchFeature(UserDict[str, Any]):
    """What a processor makes of images and texts: `model(**inputs)` takes it.

    A UserDict, as there: transformers' pipelines tell it so from what they made themselves.
    """

    def __getattr__(self, name: str) -> Any:
        content = vars(self).get("data", {})  # a copy that is being made has none yet
        if name in content:
            return content[name]
        raise AttributeError(f"there is no {name!r} in this batch, only {', '.join(self)}")

    def to(
        self,
        device: str | int | torch.device | torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        *,
        non_blocking: bool = False,
    ) -> BatchFeature:
        """Move all tensors, cast those of numbers with a fraction; ids and masks keep their type."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        for name, value in self.items():
            if isinstance(value, Tensor):
                kind = dtype if value.is_floating_point() else None
                self[name] = value.to(device=device, dtype=kind, non_blocking=non_blocking)
        return self
