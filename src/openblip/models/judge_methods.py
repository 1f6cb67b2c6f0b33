"""The methods of `openblip.Model` that judge statements. The class takes them over; `self` is the model."""

# Overloads are tried in order: a path or an open file is one image although it can be iterated over, and a str is one
# text. mypy warns of this overlap, which is meant.
# mypy: disable-error-code="overload-overlap"

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias, overload

from openblip.images.encoded_image import ImageInput
from openblip.matching.judge import statement_list
from openblip.models.abilities import Composed, judge_of
from openblip.models.signatures import BATCH_SIZE, Images, Texts
from openblip.results import Judged, Judgement

ImagePairs: TypeAlias = Iterable[Sequence[ImageInput]]
"""Pairs of images, each a list or a tuple of two."""


@overload
def judge(self: Composed, images: ImageInput, statements: str, *, batch_size: int = BATCH_SIZE) -> Judgement: ...
@overload
def judge(
    self: Composed, images: ImageInput, statements: Texts, *, batch_size: int = BATCH_SIZE
) -> list[Judgement]: ...
@overload
def judge(
    self: Composed, images: Images | ImagePairs, statements: str | Texts, *, batch_size: int = BATCH_SIZE
) -> Any: ...
def judge(
    self: Composed,
    images: ImageInput | Images | ImagePairs,
    statements: str | Texts,
    *,
    batch_size: int = BATCH_SIZE,
) -> Any:
    """Whether a statement is true of an image or of two, or follows from it: the class that the model puts it into.

    A model of NLVR2 reads each statement with two images: `judge([left, right], "both dogs sleep")`. A model of
    SNLI-VE reads it with one: `judge("photo.jpg", "two men talk")`. The classes are those that it was trained on.

    Args:
        images: one image, or several; from a model of two images one pair, as a list or a tuple, or several.
        statements: each is judged for each image or pair.
        batch_size: images, or pairs of them, that are encoded together.

    Returns:
        A `Judgement`; a list for several statements or several images; a list for each image or pair for both.

    Raises:
        ImageError: an image cannot be read.
        OptionError: a statement is empty, or the model reads another number of images.
    """
    judging = judge_of(self)
    groups, alone = judging.groups(images)
    texts = statement_list(statements)
    rows: list[Any] = []
    for judged in judging.judge_many(((group, texts) for group in groups), batch_size):
        if judged.error is not None:
            raise judged.error
        rows.append(judged.judgements[0] if isinstance(statements, str) else list(judged.judgements))
    return rows[0] if alone else rows


def judge_many(
    self: Composed,
    pairs: Iterable[tuple[ImageInput | Sequence[ImageInput], str | Texts]],
    *,
    batch_size: int = BATCH_SIZE,
) -> Iterator[Judged]:
    """As `judge` for any number of images: one result for each image or pair, in order, as batches are done.

    An image that cannot be read gives a result with its error.

    Args:
        pairs: an image, or a pair of images, with the statement or statements about it.

    Raises:
        OptionError: a statement is empty, or the model reads another number of images.
    """
    return judge_of(self).judge_many(pairs, batch_size)
