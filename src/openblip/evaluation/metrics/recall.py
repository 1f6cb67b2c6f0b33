"""Recall of image-text retrieval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from openblip.errors import OptionError
from openblip.results import Ranked, Rankings

DEPTHS = (1, 5, 10)


@dataclass(frozen=True)
class Recall:
    """The share of queries with a right result among the first 1, 5 and 10."""

    at_1: float
    at_5: float
    at_10: float

    @property
    def mean(self) -> float:
        return (self.at_1 + self.at_5 + self.at_10) / 3


@dataclass(frozen=True)
class RetrievalScores:
    """Recall in both directions; any of the texts of an image is a right result."""

    text_to_image: Recall
    image_to_text: Recall

    @property
    def mean(self) -> float:
        """The mean of all six, by which LAVIS chooses checkpoints."""
        return (self.text_to_image.mean + self.image_to_text.mean) / 2

    @property
    def table(self) -> dict[str, float]:
        """Names and values."""
        found: dict[str, float] = {}
        for name, recall in (("text_to_image", self.text_to_image), ("image_to_text", self.image_to_text)):
            found |= {f"{name}_{depth}": value for depth, value in asdict(recall).items()}
            found[f"{name}_mean"] = recall.mean
        return found | {"mean": self.mean}


def score_retrieval(rankings: Rankings, image_of_text: int | Iterable[int]) -> RetrievalScores:
    """The recall of rankings of `Model.rank_both`.

    Args:
        rankings: with at least ten results each, or with all results.
        image_of_text: the index of the image of each text.

    Raises:
        OptionError: there are not as many rankings as queries, or they are too short.
    """
    images, texts = len(rankings.texts), len(rankings.images)
    image_of_text = [image_of_text] if isinstance(image_of_text, int) else list(image_of_text)
    if len(image_of_text) != texts:
        raise OptionError(f"{texts} texts were ranked, but {len(image_of_text)} have an image: give each its own")
    odd = next((image for image in image_of_text if not 0 <= image < images), None)
    if odd is not None:
        raise OptionError(f"image_of_text names image {odd}, but {images} images were ranked")
    texts_of_image: list[set[int]] = [set() for _ in range(images)]
    for text, image in enumerate(image_of_text):
        texts_of_image[image].add(text)
    return RetrievalScores(
        text_to_image=_recall(rankings.images, [{image} for image in image_of_text], images),
        image_to_text=_recall(rankings.texts, texts_of_image, texts),
    )


def _recall(rankings: Sequence[Sequence[Ranked]], right: Sequence[set[int]], answers: int) -> Recall:
    needed = min(max(DEPTHS), answers)
    shallow = min((len(ranked) for ranked in rankings), default=needed)
    if shallow < needed:
        raise OptionError(f"a ranking has {shallow} results, R@{max(DEPTHS)} needs {needed}: rank with a larger top")
    shares = []
    for depth in DEPTHS:
        hits = sum(
            any(one.index in wanted for one in ranked[:depth]) for ranked, wanted in zip(rankings, right, strict=True)
        )
        shares.append(hits / max(1, len(rankings)))
    return Recall(*shares)
