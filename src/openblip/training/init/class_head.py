"""Add a classification head to a model that reads texts with images, for NLVR and visual entailment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from openblip.checkpoints.blip_models import ENTAILMENT, TRUTH
from openblip.checkpoints.model_parts import ModelParts
from openblip.data.pairs import ImageText
from openblip.errors import OptionError
from openblip.nn.quant.swap import quantized_layers
from openblip.text import MatchingText, Tokenizer

SHOWN = {1: "one image", 2: "two images"}
LONGEST = {1: 40, 2: 512}
"""Tokens of a statement, by its number of images: LAVIS truncates those about one image only."""


def with_classes(parts: ModelParts[Any, Any], images: Iterable[ImageText], count: int) -> ModelParts[Any, Any]:
    """Return the model with a head for the classes of the data, or unchanged if it already has that head.

    Args:
        images: of the whole run; the classes are the labels of those with `count` images, a statement and a label.
        count: images per statement, 1 or 2.

    Raises:
        OptionError: there are no such statements, they have only one class, or the model cannot read them.
    """
    labels = {each.label for each in images if each.label and len(each.images) == count}
    if not labels:
        raise OptionError(f"no row has {SHOWN[count]}, a sentence and a label: give such data")
    classes = class_order(labels, parts.classes)
    if len(classes) == 1:
        raise OptionError(f"all labels in the data are {classes[0]!r}: at least two classes are needed")
    config = parts.network.config
    encoder = getattr(config, "encoder", None)
    if classes == parts.classes and encoder is not None and encoder.images == count:
        return parts
    if quantized_layers(parts.network):
        raise OptionError(f"{parts.name} is quantized and cannot be trained: start from the original in floating point")
    try:
        network = parts.network.with_class_head(len(classes), count)
    except ValueError as error:
        raise OptionError(
            f"{parts.name} cannot judge statements about {SHOWN[count]} ({error}): start from a model that can match "
            "or embed"
        ) from error
    words = parts.tokenizer if parts.matching is None else parts.matching.tokenizer
    assert words is not None  # a model with a text encoder reads texts
    tokenizer = Tokenizer(words.fast, MatchingText.start_token, MatchingText.pad_token)
    matching = MatchingText(tokenizer, min(LONGEST[count], network.config.encoder.max_positions))
    return replace(parts, network=network.eval(), matching=matching, tokenizer=None, classes=classes)


def class_order(labels: Iterable[str], known: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of the classes: those of the model, NLVR2 or SNLI-VE if they include all labels, else the labels, sorted.

    Case is ignored.
    """
    found = {label.casefold(): label for label in sorted(labels, reverse=True)}
    for names in (tuple(known), TRUTH, ENTAILMENT):
        if found.keys() <= {name.casefold() for name in names}:
            return names
    return tuple(sorted(found.values()))
