"""Images beside texts: embedded apart and compared (ITC), or read together by the Q-Former (ITM)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from openblip.errors import ImageError, OptionError, whole_number
from openblip.images.encoded_image import CachedEncoder, EncodedImage, ImageInput
from openblip.nn.blip2 import Blip2Network, itc_similarity
from openblip.nn.qformer import ImageMemory
from openblip.results import Classified, Embedded, Match, Matched, Scores
from openblip.text import MatchingText, clean_caption, pad_ids, text_list

PAIRS = 64
"""Pairs of image and text that the Q-Former reads at once: enough to keep a GPU busy, some 100 MB for the official
models."""

TEMPLATES = ("a photo of a {}",)
"""Around a label, by default."""

QUERIES = "queries"
"""What is kept of an encoded image: the Q-Former's outputs [Q, width]."""

Item = TypeVar("Item")


class QueriedImages:
    """A batch of encoded images as the Q-Former's queries see them, which is kept with each image."""

    def __init__(self, network: Blip2Network, encoder: CachedEncoder, images: Sequence[EncodedImage]) -> None:
        self.network = network
        self.encoder = encoder
        self.images = images

    @cached_property
    def features(self) -> Tensor:
        """[I, N, image width], as the Q-Former reads them; of images that were queried before, nobody asks for it."""
        return torch.stack([image.features for image in self.images])

    @cached_property
    def memory(self) -> ImageMemory:
        """Keys and values of the Q-Former's cross-attention."""
        return self.network.qformer.remember(self.features)

    @cached_property
    def queries(self) -> Tensor:
        """Outputs of the queries [I, Q, width]."""
        return torch.stack(self.encoder.derive(self.images, QUERIES, self._queries))

    @cached_property
    def embeds(self) -> Tensor:
        """Unit vectors [I, Q, shared width], float32."""
        return self.network.project_queries(self.queries).float()

    def _queries(self, places: list[int]) -> list[Tensor]:
        rows = torch.tensor(places, device=self.features.device)
        memory = self.memory if len(places) == len(self.images) else self.memory.take(rows)
        # Cloned: a row of the batch would keep the memory of all of it.
        return [row.clone() for row in self.network.qformer.image(memory)]


@dataclass(frozen=True, eq=False)
class ReadTexts:
    """Texts as token ids, from [CLS] to [SEP], and as unit vectors [M, shared width], float32."""

    ids: list[list[int]]
    embeds: Tensor


@dataclass(frozen=True, eq=False)
class ImageScores:
    """One image against M texts: cosines and ITM probabilities [M], or what is wrong with the image.

    Attributes:
        source: the path, address or description of the image.
    """

    source: str
    itc: Tensor | None = None
    itm: Tensor | None = None
    error: ImageError | None = None


class Matcher:
    """A network with a text side, and what brings words and images to it.

    Args:
        encoder: of the images.
        pairs: of an image and a text that are read together at once.
    """

    def __init__(
        self,
        network: Blip2Network,
        words: MatchingText,
        encoder: CachedEncoder,
        pairs: int = PAIRS,
    ) -> None:
        self.network = network
        self.words = words
        self.encoder = encoder
        self.pairs = pairs

    @property
    def device(self) -> torch.device:
        return self.network.vision_norm.weight.device

    def queried(self, images: Sequence[EncodedImage]) -> QueriedImages:
        return QueriedImages(self.network, self.encoder, images)

    @torch.inference_mode()
    def memory(self, images: Sequence[EncodedImage]) -> ImageMemory:
        """What ITM reads of encoded images."""
        return self.queried(images).memory

    @torch.inference_mode()
    def remember(self, features: Tensor) -> ImageMemory:
        return self.network.qformer.remember(features)

    @torch.inference_mode()
    def read(self, texts: str | Iterable[str], batch_size: int = 64) -> ReadTexts:
        """Texts, cleaned as captions were in training."""
        ids = [self.words.encode(clean_caption(text)) for text in text_list(texts)]
        embeds = [torch.empty(0, self.network.config.shared_width, device=self.device)]
        for batch in batches(ids, batch_size):
            hidden = self.network.qformer.text(*self._padded(batch))
            embeds.append(self.network.project_text(hidden).float())
        return ReadTexts(ids, torch.cat(embeds))

    @torch.inference_mode()
    def compare(self, images: QueriedImages, texts: ReadTexts) -> Tensor:
        """ITC: cosines [I, M], on the CPU."""
        return itc_similarity(images.embeds, texts.embeds).cpu()

    @torch.inference_mode()
    def match(self, memory: ImageMemory, texts: ReadTexts, chosen: Tensor) -> Tensor:
        """ITM: logits [I, S, 2] of each image with S texts of its own, float32 on the CPU; index 1 is yes.

        Args:
            chosen: indices [I, S] of the texts.
        """
        images, count = chosen.shape
        logits = torch.empty(images, count, 2)
        together = max(1, self.pairs // max(1, count))
        for first in range(0, images if count else 0, together):
            rows = torch.arange(first, min(first + together, images), device=self.device)
            part = memory if len(rows) == images else memory.take(rows)
            for start in range(0, count, self.pairs):
                there = slice(first, first + together), slice(start, start + self.pairs)
                ids, mask = self._padded([texts.ids[text] for text in chosen[there].flatten().tolist()])
                found = self.network.itm_logits(ids, mask, part)
                logits[there] = found.float().cpu().view(len(rows), -1, 2)
        return logits

    def embed_images(self, sources: ImageInput | Iterable[ImageInput], batch_size: int) -> Tensor:
        """Unit vectors [N, Q, shared width], float32 on the CPU."""
        config = self.network.config
        rows = [torch.empty(0, config.qformer.num_queries, config.shared_width)]
        for embedded in self.embed_many(sources, batch_size):
            if embedded.error is not None:
                raise embedded.error
            rows += [] if embedded.embeds is None else [embedded.embeds[None]]
        return torch.cat(rows)

    @torch.inference_mode()
    def embed_batch(self, images: Sequence[EncodedImage]) -> Tensor:
        """Unit vectors [I, Q, shared width] of encoded images, float32 on the CPU."""
        config = self.network.config
        if not images:
            return torch.empty(0, config.qformer.num_queries, config.shared_width)
        return self.queried(images).embeds.cpu().clone()

    def embed_many(self, sources: ImageInput | Iterable[ImageInput], batch_size: int) -> Iterator[Embedded]:
        """Unit vectors [Q, shared width] of each image in order, as batches are done."""
        for batch in self.encoder.batches(sources, batch_size):
            for source, found in batch.join(self.embed_batch(batch.images)):
                if isinstance(found, ImageError):
                    yield Embedded(source, error=found)
                else:
                    yield Embedded(source, found)

    def embed_texts(self, texts: str | Iterable[str], batch_size: int) -> Tensor:
        """Unit vectors [M, shared width], float32 on the CPU."""
        # Computed in inference mode, they could not be learnt from; a copy made outside can.
        return self.read(texts, whole_number("batch_size", batch_size, 1)).embeds.cpu().clone()

    def score(
        self, sources: ImageInput | Iterable[ImageInput], texts: str | Iterable[str], *, itm: bool, batch_size: int
    ) -> Iterator[ImageScores]:
        """Each image against all texts, in order, as batches are done; texts are read once, at the beginning."""
        told = self.read(texts)
        for batch in self.encoder.batches(sources, batch_size):
            for source, found in batch.join(self._score(batch.images, told, itm)):
                if isinstance(found, ImageError):
                    yield ImageScores(source, error=found)
                else:
                    yield ImageScores(source, *found)

    def match_many(
        self, sources: ImageInput | Iterable[ImageInput], texts: Sequence[str], batch_size: int
    ) -> Iterator[Matched]:
        """As `score`, with the texts."""
        for row in self.score(sources, texts, itm=True, batch_size=batch_size):
            if row.itc is None or row.itm is None:
                yield Matched(row.source, error=row.error)
            else:
                pairs = zip(texts, row.itm.tolist(), row.itc.tolist(), strict=True)
                yield Matched(row.source, tuple(Match(text, itm, itc) for text, itm, itc in pairs))

    def classify(
        self,
        sources: ImageInput | Iterable[ImageInput],
        labels: Sequence[str],
        templates: Sequence[str],
        batch_size: int,
    ) -> list[list[Classified]]:
        """Labels of each image, most probable first; of equals, what was given first is first.

        Raises:
            OptionError: there are no labels or templates, or a template has no place for the label.
        """
        if not labels or not templates:
            raise OptionError(f"there are no {'templates' if labels else 'labels'}: give at least one")
        for template in templates:
            if "{}" not in template:
                raise OptionError(f"the template {template!r} has no {{}} in it: say where the label stands")
        texts = [template.replace("{}", label) for label in labels for template in templates]
        cosines = self.scores(sources, texts, itm=False, batch_size=batch_size).itc
        means = cosines.view(len(cosines), len(labels), len(templates)).mean(dim=2)
        odds = (means / self.network.temperature.float().cpu()).softmax(dim=1)
        best = odds.argsort(dim=1, descending=True, stable=True)
        return [
            [Classified(labels[place], float(row[place])) for place in order]
            for row, order in zip(odds, best.tolist(), strict=True)
        ]

    def scores(
        self, sources: ImageInput | Iterable[ImageInput], texts: str | Iterable[str], *, itm: bool, batch_size: int
    ) -> Scores:
        """As `score`, in one table; the first image that cannot be read raises its ImageError."""
        texts = text_list(texts)
        none = torch.empty(0, len(texts))
        itc, odds = [none], [none]
        for row in self.score(sources, texts, itm=itm, batch_size=batch_size):
            if row.error is not None:
                raise row.error
            itc += [] if row.itc is None else [row.itc[None]]
            odds += [] if row.itm is None else [row.itm[None]]
        return Scores(torch.cat(itc), torch.cat(odds) if itm else None)

    @torch.inference_mode()
    def _score(self, images: Sequence[EncodedImage], texts: ReadTexts, itm: bool) -> list[tuple[Tensor, Tensor | None]]:
        if not images:
            return []
        batch = self.queried(images)
        cosines = self.compare(batch, texts)
        if not itm:
            return [(row, None) for row in cosines]
        everything = torch.arange(len(texts.ids)).expand(len(images), -1)
        odds = self.match(batch.memory, texts, everything).softmax(dim=-1)[..., 1]
        return list(zip(cosines, odds, strict=True))

    def _padded(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        rows, mask = pad_ids(ids, self.words.tokenizer.pad_id)
        return rows.to(self.device), mask.to(self.device)


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Items in order, `size` at a time.

    Raises:
        OptionError: when the first batch is asked for and `size` is no whole number, or below 1.
    """
    size = whole_number("batch_size", size, 1)
    waiting = iter(items)
    while batch := list(islice(waiting, size)):
        yield batch
