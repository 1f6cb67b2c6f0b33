"""The methods of `openblip.Model` that compare images and texts. The class takes them over; `self` is the model."""

# Overloads are tried in order: a path or an open file is one image although it can be iterated over, and a str is one
# text. mypy warns of this overlap, which is meant.
# mypy: disable-error-code="overload-overlap"

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, overload

from torch import Tensor

from openblip.errors import CheckpointError, OptionError, whole_number, yes_or_no
from openblip.images.encoded_image import ImageInput
from openblip.images.sources import image_list, is_one_image
from openblip.matching import ranking
from openblip.matching.matcher import TEMPLATES
from openblip.matching.ranking import RERANK, TOP, Search
from openblip.models.abilities import Composed, matcher_of
from openblip.models.signatures import BATCH_SIZE, Images, Texts
from openblip.nn.quant.swap import quantized_layers
from openblip.results import Classified, ClassifiedImage, Embedded, Match, Matched, Ranked, Rankings, Scores
from openblip.text import one_text, text_list


@overload
def match(self: Composed, images: ImageInput, texts: str, *, batch_size: int = BATCH_SIZE) -> Match: ...
@overload
def match(self: Composed, images: ImageInput, texts: Texts, *, batch_size: int = BATCH_SIZE) -> list[Match]: ...
@overload
def match(self: Composed, images: Images, texts: str, *, batch_size: int = BATCH_SIZE) -> list[Match]: ...
@overload
def match(self: Composed, images: Images, texts: Texts, *, batch_size: int = BATCH_SIZE) -> list[list[Match]]: ...
def match(self: Composed, images: ImageInput | Images, texts: str | Texts, *, batch_size: int = BATCH_SIZE) -> Any:
    """How well a text fits an image: ITM probability, from models that have one, and ITC cosine.

    Returns:
        A `Match`; a list for several texts or several images, in the order given; a list for each image for both.
    """
    rows: list[Any] = []
    for matched in match_many(self, images, texts, batch_size=batch_size):
        if matched.error is not None:
            raise matched.error
        rows.append(matched.matches[0] if isinstance(texts, str) else list(matched.matches))
    return rows[0] if is_one_image(images) else rows


def match_many(
    self: Composed, images: ImageInput | Images, texts: str | Texts, *, batch_size: int = BATCH_SIZE
) -> Iterator[Matched]:
    """How well each text fits each of any number of images: one result for each image, as batches are done.

    Images and texts are encoded once. An image that cannot be read gives a result with its error.
    """
    return matcher_of(self, "match").match_many(image_list(images), text_list(texts), batch_size)


def scores(
    self: Composed, images: ImageInput | Images, texts: str | Texts, *, itm: bool = False, batch_size: int = BATCH_SIZE
) -> Scores:
    """Compare every image with every text: cosines [N, M] and, with `itm`, ITM probabilities [N, M].

    Cosines cost one pass for each image and each text, probabilities a pass for every pair.

    Raises:
        OptionError: `itm` of a model that compares by contrast alone.
    """
    itm = yes_or_no("itm", itm)
    return matcher_of(self, "match").scores(image_list(images), text_list(texts), itm=itm, batch_size=batch_size)


@overload
def classify(
    self: Composed,
    images: ImageInput,
    labels: str | Texts,
    *,
    templates: str | Texts = TEMPLATES,
    batch_size: int = BATCH_SIZE,
) -> list[Classified]: ...
@overload
def classify(
    self: Composed,
    images: Images,
    labels: str | Texts,
    *,
    templates: str | Texts = TEMPLATES,
    batch_size: int = BATCH_SIZE,
) -> list[list[Classified]]: ...
def classify(
    self: Composed,
    images: ImageInput | Images,
    labels: str | Texts,
    *,
    templates: str | Texts = TEMPLATES,
    batch_size: int = BATCH_SIZE,
) -> Any:
    """The labels for an image, most probable first, or for each of several images.

    The probabilities of an image add up to 1: they are the softmax of its cosines with the labels (ITC), divided by
    the temperature that the model learned.

    Args:
        templates: texts with {} in them, where a label stands. A label's cosines in several templates are averaged; of
            CLIP its texts' vectors, as its paper does.
        batch_size: images that are encoded together.

    Returns:
        A list of `Classified`; a list for each of several images.

    Raises:
        ImageError: an image cannot be read.
        OptionError: there are no labels or no templates, or a template has no {} in it.
    """
    rows: list[list[Classified]] = []
    for found in classify_many(self, images, labels, templates=templates, batch_size=batch_size):
        if found.error is not None:
            raise found.error
        rows.append(list(found.labels))
    return rows[0] if is_one_image(images) else rows


def classify_many(
    self: Composed,
    images: ImageInput | Images,
    labels: str | Texts,
    *,
    templates: str | Texts = TEMPLATES,
    batch_size: int = BATCH_SIZE,
) -> Iterator[ClassifiedImage]:
    """As `classify` for any number of images: one result for each, in order, as batches are done.

    The labels are read once. An image that cannot be read gives a result with its error.
    """
    label_list, template_list = text_list(labels, "the labels"), text_list(templates, "the templates")
    return matcher_of(self, "classify").classify_many(image_list(images), label_list, template_list, batch_size)


def heatmap(self: Composed, images: ImageInput, text: str, *, layer: int | None = None) -> Tensor:
    """Where in an image the model looks when it matches the image with a text: Grad-CAM of its attention to patches.

    Args:
        images: one image.
        layer: counted from 0. Of a BLIP's text encoder, by default 7, as its authors show it; of a BLIP-2's Q-Former,
            where its queries read the image, by default the last such one.

    Returns:
        [G, G], float32 on the CPU: of each patch from 0 to 1, row by row. `openblip.draw_heatmap` paints it.

    Raises:
        ImageError: the image cannot be read.
        OptionError: several images or texts, a text without words, or there is no such layer.
        CheckpointError: the model does not tell where it looks, or is quantized.
    """
    matcher = matcher_of(self, "match")
    if quantized_layers(self.parts.network):
        raise CheckpointError(f"{self.name} is quantized, and so has no gradients to look for: load it in float32")
    if not is_one_image(images):
        raise OptionError("one image has one heatmap: give one image and one text")
    chosen = None if layer is None else whole_number("layer", layer, 0)
    return matcher.heatmap(self.encode_image(images), one_text(text, "the text"), chosen, self.name)


@overload
def rank_images(
    self: Composed,
    query: str,
    images: ImageInput | Images,
    *,
    top: int | None = TOP,
    rerank: int = RERANK,
    batch_size: int = BATCH_SIZE,
) -> list[Ranked]: ...
@overload
def rank_images(
    self: Composed,
    query: Texts,
    images: ImageInput | Images,
    *,
    top: int | None = TOP,
    rerank: int = RERANK,
    batch_size: int = BATCH_SIZE,
) -> list[list[Ranked]]: ...
def rank_images(
    self: Composed,
    query: str | Texts,
    images: ImageInput | Images,
    *,
    top: int | None = TOP,
    rerank: int = RERANK,
    batch_size: int = BATCH_SIZE,
) -> Any:
    """The images that fit a text best, or each of several texts; each image is encoded once for all.

    Args:
        top: how many results each query gets; None for all.
        rerank: how many of the best results by ITC are ordered anew by ITM, for each query; 0 for ITC alone. By
            default 128, as in BLIP-2's evaluation. A model without ITM ranks by ITC alone.
        batch_size: images that are encoded together.

    Returns:
        A list of `Ranked`, best first; a list for each of several queries.
    """
    found = ranking.rank_images(matcher_of(self, "match"), image_list(images), query, Search(top, rerank, batch_size))
    return found[0] if isinstance(query, str) else found


@overload
def rank_texts(
    self: Composed,
    query: ImageInput,
    texts: str | Texts,
    *,
    top: int | None = TOP,
    rerank: int = RERANK,
    batch_size: int = BATCH_SIZE,
) -> list[Ranked]: ...
@overload
def rank_texts(
    self: Composed,
    query: Images,
    texts: str | Texts,
    *,
    top: int | None = TOP,
    rerank: int = RERANK,
    batch_size: int = BATCH_SIZE,
) -> list[list[Ranked]]: ...
def rank_texts(
    self: Composed,
    query: ImageInput | Images,
    texts: str | Texts,
    *,
    top: int | None = TOP,
    rerank: int = RERANK,
    batch_size: int = BATCH_SIZE,
) -> Any:
    """The texts that fit an image best, or each of several images; options as for `rank_images`."""
    found = ranking.rank_texts(matcher_of(self, "match"), image_list(query), texts, Search(top, rerank, batch_size))
    return found[0] if is_one_image(query) else found


def rank_both(
    self: Composed,
    images: ImageInput | Images,
    texts: str | Texts,
    *,
    top: int | None = TOP,
    rerank: int = RERANK,
    batch_size: int = BATCH_SIZE,
) -> Rankings:
    """`rank_images` and `rank_texts` at once, as retrieval is evaluated: each image is encoded once for both."""
    return ranking.rank_both(matcher_of(self, "match"), image_list(images), texts, Search(top, rerank, batch_size))


def embed_images(self: Composed, images: ImageInput | Images, *, batch_size: int = BATCH_SIZE) -> Tensor:
    """Unit vectors [N, Q, shared width] of images, float32 on the CPU; of one image [Q, shared width].

    The similarity of an image and a text is the largest of the Q dot products with the text's vector, see
    `openblip.similarity`.
    """
    found = matcher_of(self, "embed").embed_images(images, batch_size)
    return found[0] if is_one_image(images) else found


def embed_images_many(
    self: Composed, images: ImageInput | Images, *, batch_size: int = BATCH_SIZE
) -> Iterator[Embedded]:
    """As `embed_images` for any number of images: one result for each, in order, as batches are done.

    An image that cannot be read gives a result with its error.
    """
    return matcher_of(self, "embed").embed_many(images, batch_size)


def embed_texts(self: Composed, texts: str | Texts, *, batch_size: int = 64) -> Tensor:
    """Unit vectors [N, shared width] of texts, float32 on the CPU; of one text [shared width]."""
    found = matcher_of(self, "embed").embed_texts(texts, batch_size)
    return found[0] if isinstance(texts, str) else found
