"""What a model that has a text side does with images and texts: it matches, ranks and embeds them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from torch import Tensor

from openblip.images.sources import ImageSource, describe_source
from openblip.matching import ranking
from openblip.matching.matcher import Matcher
from openblip.matching.ranking import Search
from openblip.results import Match, Matched, Ranked, Rankings, Scores

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from openblip.matching.ranking import SearchOptions

BATCH_SIZE = 8
Many = TypeVar("Many", bound="Iterable[object]")


class Matching(ABC):
    """Half of what a user holds: see `openblip.models.blip2.Blip2`."""

    @abstractmethod
    def _matcher(self) -> Matcher:
        """What compares. Raises CheckpointError when there is no text side."""

    @overload
    def match(self, image: ImageSource, texts: str) -> Match: ...
    @overload
    def match(self, image: ImageSource, texts: list[str]) -> list[Match]: ...

    def match(self, image: ImageSource, texts: str | list[str]) -> Match | list[Match]:
        """How well each text fits an image: ITM probability and ITC cosine, in the order given."""
        (found,) = self.match_many([image], texts)
        if found.error is not None:
            raise found.error
        return found.matches[0] if isinstance(texts, str) else list(found.matches)

    def match_many(
        self, images: Iterable[ImageSource], texts: Sequence[str], *, batch_size: int = BATCH_SIZE
    ) -> Iterator[Matched]:
        """How well each text fits each of any number of images, one result an image in order, as batches are done.

        Images and texts are encoded once. An image that cannot be read gives a result with its error.
        """
        told = listed(texts)
        for row in self._matcher().score(listed(images), told, itm=True, batch_size=batch_size):
            source = describe_source(row.source)
            if row.itc is None or row.itm is None:
                yield Matched(source, error=row.error)
            else:
                pairs = zip(told, row.itm.tolist(), row.itc.tolist(), strict=True)
                yield Matched(source, tuple(Match(text, itm, itc) for text, itm, itc in pairs))

    def scores(
        self, images: Iterable[ImageSource], texts: Sequence[str], *, itm: bool = False, batch_size: int = BATCH_SIZE
    ) -> Scores:
        """Every image against every text: cosines [N, M] and, asked for, ITM probabilities [N, M].

        Cosines cost one look at each image and each text, probabilities a pass of the Q-Former for every pair.
        """
        return self._matcher().scores(listed(images), listed(texts), itm=itm, batch_size=batch_size)

    @overload
    def rank_images(
        self, texts: str, images: Iterable[ImageSource], **options: Unpack[SearchOptions]
    ) -> list[Ranked]: ...
    @overload
    def rank_images(
        self, texts: list[str], images: Iterable[ImageSource], **options: Unpack[SearchOptions]
    ) -> list[list[Ranked]]: ...

    def rank_images(
        self, texts: str | list[str], images: Iterable[ImageSource], **options: Unpack[SearchOptions]
    ) -> list[Ranked] | list[list[Ranked]]:
        """The images that fit a text best, or each of a list of texts; each image is encoded once for all.

        Args:
            options: `top`, `rerank` and `batch_size`, see `openblip.matching.ranking.SearchOptions`.
        """
        found = ranking.rank_images(self._matcher(), listed(images), listed(texts), Search(**options))
        return found[0] if isinstance(texts, str) else found

    @overload
    def rank_texts(
        self, images: ImageSource, texts: Sequence[str], **options: Unpack[SearchOptions]
    ) -> list[Ranked]: ...
    @overload
    def rank_texts(
        self, images: list[Any], texts: Sequence[str], **options: Unpack[SearchOptions]
    ) -> list[list[Ranked]]: ...

    def rank_texts(
        self, images: ImageSource | list[Any], texts: Sequence[str], **options: Unpack[SearchOptions]
    ) -> list[Ranked] | list[list[Ranked]]:
        """The texts that fit an image best, or each of a list of images; options as for `rank_images`."""
        sources = images if isinstance(images, list) else [images]
        found = ranking.rank_texts(self._matcher(), sources, listed(texts), Search(**options))
        return found if isinstance(images, list) else found[0]

    def rank_both(
        self, images: Iterable[ImageSource], texts: Sequence[str], **options: Unpack[SearchOptions]
    ) -> Rankings:
        """`rank_images` and `rank_texts` from one look at each image, as retrieval is evaluated."""
        return ranking.rank_both(self._matcher(), listed(images), listed(texts), Search(**options))

    def embed_images(self, images: Iterable[ImageSource], *, batch_size: int = BATCH_SIZE) -> Tensor:
        """Unit vectors [N, Q, shared width] of images, float32 on the CPU.

        The similarity of an image and a text is the largest of the Q dot products with the text's vector.
        """
        return self._matcher().embed_images(listed(images), batch_size)

    def embed_texts(self, texts: Sequence[str], *, batch_size: int = 64) -> Tensor:
        """Unit vectors [N, shared width] of texts, float32 on the CPU."""
        return self._matcher().embed_texts(listed(texts), batch_size)


def listed(given: Many) -> Many:
    """A lone string where several things are expected would otherwise be taken letter by letter."""
    return cast("Many", [given]) if isinstance(given, str | bytes) else given
