"""Images beside texts: embedded apart and compared (ITC), or read together where a network can do so (ITM)."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.errors import CheckpointError, ImageError, OptionError, whole_number
from openblip.images.encoded_image import CachedEncoder, EncodedImage, ImageInput
from openblip.matching.comparison import Comparison, ImageBatch, PairNetwork, Words
from openblip.nn.blip2 import itc_similarity
from openblip.results import Classified, ClassifiedImage, Embedded, Match, Matched, Scores
from openblip.text import pad_ids, text_list

PAIRS = 64
"""Pairs of image and text that are read together at once: enough to keep a GPU busy, some 100 MB for the official
models."""

TEMPLATES = ("a photo of a {}",)
"""Around a label, by default."""

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class ReadTexts:
    """Texts as token ids, first and last included, and as unit vectors [M, shared width], float32."""

    ids: list[list[int]]
    embeds: Tensor


@dataclass(frozen=True, eq=False)
class ImageScores:
    """One image against M texts: cosines and ITM probabilities [M], or what is wrong with the image.

    Attributes:
        source: the path, address or description of the image.
        itm: None where it was not asked for, or the network has no ITM.
    """

    source: str
    itc: Tensor | None = None
    itm: Tensor | None = None
    error: ImageError | None = None


class Matcher:
    """What compares images and texts, and what brings words and images to it.

    Args:
        comparison: the family's network, as far as it compares.
        encoder: of the images.
        pairs: of an image and a text that are read together at once.
    """

    def __init__(
        self,
        comparison: Comparison,
        words: Words,
        encoder: CachedEncoder,
        pairs: int = PAIRS,
    ) -> None:
        self.comparison = comparison
        self.words = words
        self.encoder = encoder
        self.pairs = pairs

    @property
    def device(self) -> torch.device:
        return self.comparison.device

    @property
    def reads_pairs(self) -> bool:
        """Whether it can read an image and a text together (ITM)."""
        return self.comparison.pairs is not None

    @property
    def embeds_shape(self) -> tuple[int, int]:
        """[Q, shared width]: what `embed_images` gives of one image."""
        return self.comparison.vectors, self.comparison.shared_width

    def batch(self, images: Sequence[EncodedImage]) -> ImageBatch:
        return self.comparison.batch(self.encoder, images)

    @torch.inference_mode()
    def memory(self, images: Sequence[EncodedImage]) -> Any:
        """What ITM reads of encoded images; it has `take`."""
        return self.batch(images).memory

    @torch.inference_mode()
    def remember(self, features: Tensor) -> Any:
        return self._pairs().remember(features)

    @torch.inference_mode()
    def read(self, texts: str | Iterable[str], batch_size: int = 64) -> ReadTexts:
        """Texts, cleaned as they were in training."""
        ids = [self.words.encode(self.words.clean(text)) for text in text_list(texts)]
        embeds = [torch.empty(0, self.comparison.shared_width, device=self.device)]
        embeds += [self.comparison.embed_texts(*self._padded(batch)) for batch in batches(ids, batch_size)]
        return ReadTexts(ids, torch.cat(embeds))

    @torch.inference_mode()
    def compare(self, images: ImageBatch, texts: ReadTexts) -> Tensor:
        """ITC: cosines [I, M], on the CPU."""
        return itc_similarity(images.embeds, texts.embeds).cpu()

    @torch.inference_mode()
    def match(self, memory: Any, texts: ReadTexts, chosen: Tensor) -> Tensor:
        """ITM: logits [I, S, 2] of each image with S texts of its own, float32 on the CPU; index 1 is yes.

        Args:
            chosen: indices [I, S] of the texts.
        """
        images, count = chosen.shape
        logits = torch.empty(images, count, 2)
        network = self._pairs()
        together = max(1, self.pairs // max(1, count))
        for first in range(0, images if count else 0, together):
            rows = torch.arange(first, min(first + together, images), device=self.device)
            part = memory if len(rows) == images else memory.take(rows)
            for start in range(0, count, self.pairs):
                there = slice(first, first + together), slice(start, start + self.pairs)
                ids, mask = self._padded([texts.ids[text] for text in chosen[there].flatten().tolist()])
                found = network.itm_logits(ids, mask, part)
                logits[there] = found.float().cpu().view(len(rows), -1, 2)
        return logits

    def heatmap(self, image: EncodedImage, text: str, layer: int | None, name: str) -> Tensor:
        """Where the network looks when it matches a text with an image: [G, G], 0 to 1, float32 on the CPU.

        Args:
            name: of the model, in errors.

        Raises:
            CheckpointError: the network does not tell, or is quantized: there are no gradients then.
            OptionError: there is no such layer, or the text has no words.
        """
        if self.comparison.match_map is None:
            raise CheckpointError(f"the model {name} does not tell where it looks: a BLIP or BLIP-2 with ITM does")
        cleaned = self.words.clean(text)
        if not cleaned:
            raise OptionError(f"the text {text!r} has no words: say what to look for")
        ids, mask = self._padded([self.words.encode(cleaned)])
        try:
            found = self.comparison.match_map(ids, mask, image.features[None], layer)
        except ValueError as error:
            raise OptionError(str(error)) from error
        side = round(found.numel() ** 0.5)
        found = found.view(side, side).float().cpu()
        return found / found.max().clamp(min=1e-12)

    def embed_images(self, sources: ImageInput | Iterable[ImageInput], batch_size: int) -> Tensor:
        """Unit vectors [N, Q, shared width], float32 on the CPU."""
        rows = [torch.empty(0, *self.embeds_shape)]
        for embedded in self.embed_many(sources, batch_size):
            if embedded.error is not None:
                raise embedded.error
            rows += [] if embedded.embeds is None else [embedded.embeds[None]]
        return torch.cat(rows)

    @torch.inference_mode()
    def embed_batch(self, images: Sequence[EncodedImage]) -> Tensor:
        """Unit vectors [I, Q, shared width] of encoded images, float32 on the CPU."""
        if not images:
            return torch.empty(0, *self.embeds_shape)
        return self.batch(images).embeds.cpu().clone()

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
        read_texts = self.read(texts)
        for batch in self.encoder.batches(sources, batch_size):
            for source, found in batch.join(self._score(batch.images, read_texts, itm)):
                if isinstance(found, ImageError):
                    yield ImageScores(source, error=found)
                else:
                    yield ImageScores(source, *found)

    def match_many(
        self, sources: ImageInput | Iterable[ImageInput], texts: Sequence[str], batch_size: int
    ) -> Iterator[Matched]:
        """As `score`, with the texts."""
        for row in self.score(sources, texts, itm=self.reads_pairs, batch_size=batch_size):
            if row.itc is None:
                yield Matched(row.source, error=row.error)
            else:
                odds = [None] * len(texts) if row.itm is None else row.itm.tolist()
                pairs = zip(texts, odds, row.itc.tolist(), strict=True)
                yield Matched(row.source, tuple(Match(text, itm, itc) for text, itm, itc in pairs))

    def classify_many(
        self,
        sources: ImageInput | Iterable[ImageInput],
        labels: Sequence[str],
        templates: Sequence[str],
        batch_size: int,
    ) -> Iterator[ClassifiedImage]:
        """Labels of each image, most probable first; of equals, what was given first is first.

        Raises:
            OptionError: there are no labels or templates, a label is blank, or a template has no place for the label.
        """
        if not labels or not templates:
            raise OptionError(f"there are no {'templates' if labels else 'labels'}: give at least one")
        if not all(label.strip() for label in labels):
            raise OptionError("one of the labels is blank: leave it out, or say what it is")
        for template in templates:
            if "{}" not in template:
                raise OptionError(f"the template {template!r} has no {{}} in it: say where the label stands")
        read_texts = self.read([template.replace("{}", label) for label in labels for template in templates])
        if self.comparison.averages_texts:
            mean = read_texts.embeds.view(len(labels), len(templates), -1).mean(dim=1)
            read_texts = ReadTexts([], F.normalize(mean, dim=-1))
        temperature = self.comparison.temperature.float().cpu()
        for batch in self.encoder.batches(sources, batch_size):
            images = batch.images
            cosines = self.compare(self.batch(images), read_texts) if images else torch.empty(0, len(read_texts.embeds))
            means = cosines.view(len(images), len(labels), len(read_texts.embeds) // len(labels)).mean(dim=2)
            odds = (means / temperature).softmax(dim=1)
            best = odds.argsort(dim=1, descending=True, stable=True)
            for source, found in batch.join(zip(odds.tolist(), best.tolist(), strict=True)):
                if isinstance(found, ImageError):
                    yield ClassifiedImage(source, error=found)
                else:
                    row, order = found
                    yield ClassifiedImage(source, tuple(Classified(labels[place], row[place]) for place in order))

    def scores(
        self, sources: ImageInput | Iterable[ImageInput], texts: str | Iterable[str], *, itm: bool, batch_size: int
    ) -> Scores:
        """As `score`, in one table; the first image that cannot be read raises its ImageError.

        Raises:
            OptionError: `itm` of a network that has none.
        """
        if itm:
            self._pairs()
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
        batch = self.batch(images)
        cosines = self.compare(batch, texts)
        if not itm:
            return [(row, None) for row in cosines]
        everything = torch.arange(len(texts.ids)).expand(len(images), -1)
        odds = self.match(batch.memory, texts, everything).softmax(dim=-1)[..., 1]
        return list(zip(cosines, odds, strict=True))

    def _pairs(self) -> PairNetwork:
        """Raises OptionError for a network without ITM."""
        if self.comparison.pairs is None:
            raise OptionError("this model compares images and texts by contrast (ITC) alone: leave out itm")
        return self.comparison.pairs

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
    while batch := list(islice(waiting, min(size, sys.maxsize))):
        yield batch
