"""The method of `openblip.Model` that chooses among given answers. The class takes it over; `self` is the model."""

# Overloads are tried in order: a path or an open file is one image although it can be iterated over, and a str is one
# text. mypy warns of this overlap, which is meant.
# mypy: disable-error-code="overload-overlap"

from __future__ import annotations

from typing import Any, cast, overload

from openblip.errors import OptionError, whole_number
from openblip.images.encoded_image import EncodedImage, ImageInput
from openblip.images.sources import is_one_image
from openblip.models.abilities import Composed, writer_of
from openblip.models.signatures import BATCH_SIZE, Images, Texts
from openblip.results import RankedAnswer
from openblip.text import text_list

FIRST, TOP = 128, 10
"""Answers that are read whole, and those that are returned."""


@overload
def rank_answers(
    self: Composed,
    images: ImageInput,
    questions: str,
    answers: Texts,
    *,
    top: int | None = TOP,
    first: int = FIRST,
    template: str | None = None,
    batch_size: int = BATCH_SIZE,
) -> list[RankedAnswer]: ...
@overload
def rank_answers(
    self: Composed,
    images: ImageInput,
    questions: Texts,
    answers: Texts,
    *,
    top: int | None = TOP,
    first: int = FIRST,
    template: str | None = None,
    batch_size: int = BATCH_SIZE,
) -> list[list[RankedAnswer]]: ...
@overload
def rank_answers(
    self: Composed,
    images: Images,
    questions: str,
    answers: Texts,
    *,
    top: int | None = TOP,
    first: int = FIRST,
    template: str | None = None,
    batch_size: int = BATCH_SIZE,
) -> list[list[RankedAnswer]]: ...
@overload
def rank_answers(
    self: Composed,
    images: Images,
    questions: Texts,
    answers: Texts,
    *,
    top: int | None = TOP,
    first: int = FIRST,
    template: str | None = None,
    batch_size: int = BATCH_SIZE,
) -> list[list[list[RankedAnswer]]]: ...
def rank_answers(
    self: Composed,
    images: ImageInput | Images,
    questions: str | Texts,
    answers: Texts,
    *,
    top: int | None = TOP,
    first: int = FIRST,
    template: str | None = None,
    batch_size: int = BATCH_SIZE,
) -> Any:
    """Order answers by how likely they are, as BLIP's evaluation chooses from a list, instead of generating one.

    Args:
        answers: at least one; none may be empty.
        top: how many answers each question gets; None for all that were read.
        first: how many answers are read whole for each question: those whose first tokens are likeliest.
        template: the prompt around a question, as for `ask`.
        batch_size: images that are encoded together.

    Returns:
        A list of `RankedAnswer`, likeliest first; a list for each of several questions or images.

    Raises:
        ImageError: an image cannot be read.
        OptionError: a question or an answer is empty, there are no answers, or a number is out of range.
    """
    writer = writer_of(self, "ask")
    offered = text_list(answers, "the answers")
    if not offered or not all(answer.strip() for answer in offered):
        raise OptionError("there are no answers, or one is empty: give at least one word for each")
    whole_number("first", first, 1)
    if top is not None:
        whole_number("top", top, 1, "at least 1, or None for all")
    prompts = [writer.question(question, template) for question in text_list(questions, "the questions")]

    def rank(image: EncodedImage) -> Any:
        rows = [row[:top] for row in writer.rank(image, prompts, offered, first)]
        return rows[0] if isinstance(questions, str) else rows

    if is_one_image(images):
        return rank(writer.encoder.encode(cast(ImageInput, images)))
    batches = writer.encoder.batches(cast(Images, images), whole_number("batch_size", batch_size, 1))
    return [rank(image) for batch in batches for image in batch.whole()]
