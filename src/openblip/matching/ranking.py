"""Search as BLIP-2's retrieval evaluation does it (https://arxiv.org/abs/2301.12597, section 4.4).

Everything is ranked by contrast (ITC); the best candidates are then read together with the query (ITM) and ordered
by the sum of cosine and ITM logit (index 1, the mean over the queries). The rest stays behind them, by cosine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from openblip.errors import whole_number
from openblip.images.encoded_image import ImageInput
from openblip.matching.comparison import ImageBatch
from openblip.matching.matcher import Matcher, ReadTexts, batches
from openblip.results import Ranked, Rankings
from openblip.text import text_list

TOP = 10
RERANK = 128
"""As in BLIP-2's evaluation."""


@dataclass(frozen=True)
class Search:
    """How to search.

    Attributes:
        top: results for each query; None for all.
        rerank: the best candidates by contrast (ITC) that matching (ITM) orders anew, for each query; 0 for ITC alone,
            which a model without ITM ranks by whatever is said here.
        batch_size: images that are encoded together.

    Raises:
        OptionError: a number out of range.
    """

    top: int | None = TOP
    rerank: int = RERANK
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.top is not None:
            whole_number("top", self.top, 1, "at least 1, or None for all")
        whole_number("rerank", self.rerank, 0, "0 (ITC alone) or more")

    def by(self, matcher: Matcher) -> Search:
        """As this matcher can do it."""
        return self if matcher.reads_pairs else replace(self, rerank=0)


def rank_images(
    matcher: Matcher, sources: ImageInput | Iterable[ImageInput], texts: str | Iterable[str], search: Search
) -> list[list[Ranked]]:
    """Images for each text. Every image is encoded once, and dropped when it is no text's candidate any more."""
    search = search.by(matcher)
    texts = text_list(texts)
    read_texts = matcher.read(texts)
    found = _ImagesForTexts(matcher, read_texts, search)
    _walk(matcher, sources, read_texts, search.batch_size, [found])
    return found.ranked()


def rank_texts(
    matcher: Matcher, sources: ImageInput | Iterable[ImageInput], texts: str | Iterable[str], search: Search
) -> list[list[Ranked]]:
    """Texts for each image."""
    search = search.by(matcher)
    texts = text_list(texts)
    read_texts = matcher.read(texts)
    found = _TextsForImages(matcher, read_texts, texts, search)
    _walk(matcher, sources, read_texts, search.batch_size, [found])
    return found.ranked


def rank_both(
    matcher: Matcher, sources: ImageInput | Iterable[ImageInput], texts: str | Iterable[str], search: Search
) -> Rankings:
    """Both from one look at each image."""
    search = search.by(matcher)
    texts = text_list(texts)
    read_texts = matcher.read(texts)
    images, others = _ImagesForTexts(matcher, read_texts, search), _TextsForImages(matcher, read_texts, texts, search)
    _walk(matcher, sources, read_texts, search.batch_size, [images, others])
    return Rankings(images.ranked(), others.ranked)


def rank(
    cosines: Tensor, names: Sequence[str], search: Search, match: Callable[[Tensor], Tensor]
) -> list[list[Ranked]]:
    """The rule itself: what is found for each query, best first. Of equals, what was given first is first.

    Args:
        cosines: [queries, answers].
        names: of the answers.
        match: indices [queries, k] of each query's best answers to their ITM logits [queries, k, 2].
    """
    by_itc = _best_first(cosines)
    chosen = by_itc[:, : search.rerank]
    logits = match(chosen) if chosen.numel() else torch.empty(*chosen.shape, 2)
    scores = cosines.gather(1, chosen) + logits[..., 1]
    odds = logits.softmax(dim=-1)[..., 1]
    places = _best_first(scores)
    found = []
    for row, rest in enumerate(by_itc[:, search.rerank :].tolist()):
        cosine = cosines[row]
        ranked = []
        for place in places[row, : search.top].tolist():
            index = int(chosen[row, place])
            score = float(scores[row, place])
            ranked.append(Ranked(index, names[index], float(cosine[index]), float(odds[row, place]), score))
        wanted = rest if search.top is None else rest[: search.top - len(ranked)]
        found.append(ranked + [Ranked(index, names[index], float(cosine[index])) for index in wanted])
    return found


def _walk(
    matcher: Matcher,
    sources: ImageInput | Iterable[ImageInput],
    read_texts: ReadTexts,
    batch_size: int,
    ways: Sequence[_ImagesForTexts | _TextsForImages],
) -> None:
    """Look at each image once, for one way of searching or both."""
    for batch in matcher.encoder.batches(sources, batch_size):
        images = matcher.batch(batch.whole())
        cosines = matcher.compare(images, read_texts)
        for way in ways:
            way.add(images, cosines, batch.names)


def _best_first(scores: Tensor) -> Tensor:
    # topk would pick any of several equals: which images are kept, and which are matched, must agree.
    return scores.argsort(dim=1, descending=True, stable=True)


class _TextsForImages:
    """Texts are all known, so every batch of images is done when it was seen."""

    def __init__(self, matcher: Matcher, read_texts: ReadTexts, texts: Sequence[str], search: Search) -> None:
        self.matcher = matcher
        self.read_texts = read_texts
        self.texts = texts
        self.search = search
        self.ranked: list[list[Ranked]] = []

    def add(self, images: ImageBatch, cosines: Tensor, names: Sequence[str]) -> None:
        self.ranked += rank(
            cosines, self.texts, self.search, lambda chosen: self.matcher.match(images.memory, self.read_texts, chosen)
        )


class _ImagesForTexts:
    """The candidates of each text among the images seen so far, with their features, on the CPU."""

    def __init__(self, matcher: Matcher, read_texts: ReadTexts, search: Search) -> None:
        self.matcher = matcher
        self.read_texts = read_texts
        self.search = search
        self.names: list[str] = []
        self.cosines: list[Tensor] = []
        self.features: dict[int, Tensor] = {}
        self._best = torch.empty(len(read_texts.ids), 0)
        self._best_images = torch.empty(len(read_texts.ids), 0, dtype=torch.int64)

    def add(self, images: ImageBatch, cosines: Tensor, names: Sequence[str]) -> None:
        first = len(self.names)
        self.names += names
        self.cosines.append(cosines)
        new = torch.arange(first, len(self.names)).expand(len(self.read_texts.ids), -1)
        scores = torch.cat([self._best, cosines.T], dim=1)
        order = _best_first(scores)[:, : self.search.rerank]
        self._best = scores.gather(1, order)
        self._best_images = torch.cat([self._best_images, new], dim=1).gather(1, order)
        kept = set(self._best_images.flatten().tolist())
        self.features = {image: features for image, features in self.features.items() if image in kept}
        for row in range(len(names)):
            if first + row in kept:
                self.features[first + row] = images.features[row].to("cpu", copy=True)

    def ranked(self) -> list[list[Ranked]]:
        cosines = torch.cat(self.cosines).T if self.cosines else torch.empty(len(self.read_texts.ids), 0)
        return rank(cosines, self.names, self.search, self._match)

    def _match(self, chosen: Tensor) -> Tensor:
        """Logits [texts, k, 2] of each text with its images [texts, k], computed image by image."""
        places: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for text, images in enumerate(chosen.tolist()):
            for place, image in enumerate(images):
                places[image].append((text, place))
        # Images that as many texts have chosen fill a rectangle.
        alike: dict[int, list[int]] = defaultdict(list)
        for image, pairs in places.items():
            alike[len(pairs)].append(image)
        logits = torch.empty(*chosen.shape, 2)
        for count, images in alike.items():
            for batch in batches(images, max(1, self.matcher.pairs // count)):
                where = torch.tensor([places[image] for image in batch])
                texts, ranks = where.unbind(dim=-1)
                features = torch.stack([self.features[image] for image in batch]).to(self.matcher.device)
                logits[texts, ranks] = self.matcher.match(self.matcher.remember(features), self.read_texts, texts)
        return logits
