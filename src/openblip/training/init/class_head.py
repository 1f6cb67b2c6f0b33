"""A head for classes on a model that reads texts with images: what learns to judge statements."""

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
"""Where LAVIS cuts statements about one image; those about two it does not."""


def with_classes(parts: ModelParts[Any, Any], images: Iterable[ImageText], count: int) -> ModelParts[Any, Any]:
    """The model with a head for the classes of the data; one that has it already is as it was.

    Args:
        images: all of the run; those with `count` images, a claim and a label tell the classes.
        count: images that a statement is read with, 1 or 2.

    Raises:
        OptionError: there are no such claims, all are of one class, or the model cannot read them.
    """
    labels = {each.label for each in images if each.label and len(each.images) == count}
    if not labels:
        raise OptionError(f"no row has {SHOWN[count]}, a sentence and a label: give such data")
    classes = class_order(labels, parts.classes)
    if len(classes) == 1:
        raise OptionError(f"all labels of the data are {classes[0]!r}: give at least two classes to tell apart")
    config = parts.network.config
    encoder = getattr(config, "encoder", None)
    if classes == parts.classes and encoder is not None and encoder.images == count:
        return parts
    if quantized_layers(parts.network):
        raise OptionError(f"{parts.name} is quantized, and such weights cannot learn: start from what it was made of")
    try:
        network = parts.network.with_class_head(len(classes), count)
    except ValueError as error:
        raise OptionError(
            f"{parts.name} cannot judge statements about {SHOWN[count]} ({error}): start from a model that matches or "
            "embeds"
        ) from error
    words = parts.tokenizer if parts.matching is None else parts.matching.tokenizer
    assert words is not None  # a model with a text encoder reads texts
    tokenizer = Tokenizer(words.fast, MatchingText.start_token, MatchingText.pad_token)
    matching = MatchingText(tokenizer, min(LONGEST[count], network.config.encoder.max_positions))
    return replace(parts, network=network.eval(), matching=matching, tokenizer=None, classes=classes)


def class_order(labels: Iterable[str], known: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of the classes of some labels: those of the model, NLVR2 or SNLI-VE where all are among them, else sorted.

    Upper and lower case are one.
    """
    found = {label.casefold(): label for label in sorted(labels, reverse=True)}
    for names in (tuple(known), TRUTH, ENTAILMENT):
        if found.keys() <= {name.casefold() for name in names}:
            return names
    return tuple(sorted(found.values()))
