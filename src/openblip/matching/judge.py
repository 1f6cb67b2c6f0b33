"""Statements about one image or two, read with them and put into a class: NLVR2's true and false, or entailment."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from typing import Any, Protocol

import torch
from torch import Tensor

from openblip.errors import ImageError, OptionError, is_several, whole_number
from openblip.images.encoded_image import CachedEncoder, EncodedBatch, EncodedImage, ImageInput
from openblip.images.sources import is_one_image
from openblip.matching.comparison import Words
from openblip.matching.matcher import PAIRS
from openblip.results import Judged, Judgement
from openblip.text import pad_ids, text_list

WANTED = "give pairs of what is judged by, an image or a pair of images, and the statements about it, not"


class StatementNetwork(Protocol):
    """A family's network, as far as it classifies texts that are read with images."""

    def class_logits(self, ids: Tensor, mask: Tensor | None, *features: Tensor) -> Tensor:
        """Classes of texts [B, L] with their images: [B, classes].

        Args:
            features: [I, N, image width] of the first image of each of I statements, and of the second where it reads
                two. B is a multiple of I, and each has as many texts in a row.
        """
        ...


class Judge:
    """What puts statements about images into classes, and what brings words and images to it.

    Args:
        network: on the device of the encoder's features.
        classes: their names, in the order of the network's logits.
        num_images: that a statement is about, 1 or 2.
        name: of the model, in errors.
    """

    def __init__(
        self,
        network: StatementNetwork,
        classes: Sequence[str],
        num_images: int,
        words: Words,
        encoder: CachedEncoder,
        name: str,
    ) -> None:
        self.network = network
        self.classes = tuple(classes)
        self.num_images = num_images
        self.words = words
        self.encoder = encoder
        self.name = name

    def groups(self, images: Any) -> tuple[list[Any], bool]:
        """Images as a user gives them, by statement: one each, or two each; and whether it is a single group.

        A network of two images takes two in a list or a tuple, or several such pairs.

        Raises:
            OptionError: what is given are no pairs of images.
        """
        if self.num_images == 1:
            return ([images], True) if is_one_image(images) else (list(images), False)
        if is_one_image(images):
            raise OptionError(f"{self.name} judges statements about two images: give both, as [left, right]")
        given = list(images)
        if any(is_one_image(one) for one in given):
            return [self.group(given)], True
        return [self.group(one) for one in given], False

    def group(self, images: Any) -> tuple[ImageInput, ...]:
        """The images of one statement.

        Raises:
            OptionError: there are more of them, or fewer.
        """
        if self.num_images == 1:
            if not is_one_image(images):
                raise OptionError(f"{self.name} judges statements about one image: give one for each")
            return (images,)
        found = () if is_one_image(images) else tuple(images)
        if len(found) != self.num_images or not all(map(is_one_image, found)):
            raise OptionError(f"{self.name} judges statements about two images: give both, as [left, right]")
        return found

    def judge_many(self, pairs: Iterable[Any], batch_size: int) -> Iterator[Judged]:
        """One result for each pair of a group of images and its statements, in order, as batches are done.

        Args:
            batch_size: groups that are encoded together.

        Raises:
            OptionError: what is given are no such pairs, or a statement is empty.
        """
        size = whole_number("batch_size", batch_size, 1)
        if not is_several(pairs):
            raise OptionError(f"{WANTED} {str(pairs)[:100]}")
        waiting: deque[tuple[str, ...]] = deque()

        def images() -> Iterator[ImageInput]:
            for pair in pairs:
                if not isinstance(pair, tuple | list) or len(pair) != 2:
                    raise OptionError(f"{WANTED} {str(pair)[:100]}")
                group = self.group(pair[0])
                waiting.append(tuple(statement_list(pair[1])))
                yield from group

        for batch in self.encoder.batches(images(), size * self.num_images):
            yield from self._judge_batch(batch, waiting)

    def _judge_batch(self, batch: EncodedBatch, waiting: deque[tuple[str, ...]]) -> Iterator[Judged]:
        found = batch.join(batch.images)
        rows: list[Judged | tuple[tuple[str, ...], list[EncodedImage], tuple[str, ...]]] = []
        for _ in range(len(batch.names) // self.num_images):
            group = [next(found) for _ in range(self.num_images)]
            names, statements = tuple(name for name, _ in group), waiting.popleft()
            error = next((image for _, image in group if isinstance(image, ImageError)), None)
            if error is not None:
                rows.append(Judged(names, statements, error=error))
            else:
                rows.append((names, [image for _, image in group if isinstance(image, EncodedImage)], statements))
        good = [row for row in rows if not isinstance(row, Judged)]
        odds = iter(self.probabilities([images for _, images, _ in good], [texts for *_, texts in good]))
        for row in rows:
            if isinstance(row, Judged):
                yield row
                continue
            names, _, statements = row
            each = zip(statements, next(odds), strict=True)
            yield Judged(names, statements, tuple(self._judgement(text, shares) for text, shares in each))

    def _judgement(self, statement: str, shares: Sequence[float]) -> Judgement:
        best = max(range(len(shares)), key=shares.__getitem__)
        return Judgement(statement, self.classes[best], dict(zip(self.classes, shares, strict=True)))

    @torch.inference_mode()
    def probabilities(
        self, groups: Sequence[Sequence[EncodedImage]], statements: Sequence[Sequence[str]]
    ) -> list[list[list[float]]]:
        """Of each class, for each statement about each group of images."""
        found: list[list[list[float]]] = []
        ids = [[self.words.encode(self.words.clean(text)) for text in texts] for texts in statements]
        # Groups with as many statements as their neighbours go together: each image is projected once for all of its.
        for count, rows in groupby(range(len(ids)), key=lambda row: len(ids[row])):
            alike, most = list(rows), max(1, PAIRS // max(1, count))
            for start in range(0, len(alike), most):
                chosen = alike[start : start + most]
                found += self._together([groups[row] for row in chosen], [ids[row] for row in chosen], count)
        return found

    def _together(
        self, groups: Sequence[Sequence[EncodedImage]], ids: Sequence[Sequence[Sequence[int]]], count: int
    ) -> list[list[list[float]]]:
        features = [torch.stack([group[place].features for group in groups]) for place in range(self.num_images)]
        parts: list[Tensor] = []
        for start in range(0, count, PAIRS):
            texts = list(chain.from_iterable(rows[start : start + PAIRS] for rows in ids))
            padded, mask = pad_ids(texts, self.words.tokenizer.pad_id)
            device = features[0].device
            logits = self.network.class_logits(padded.to(device), mask.to(device), *features)
            parts.append(logits.float().softmax(dim=-1).cpu().view(len(groups), -1, len(self.classes)))
        if not parts:
            return [[] for _ in groups]
        odds: list[list[list[float]]] = torch.cat(parts, dim=1).tolist()
        return odds


def statement_list(statements: str | Iterable[str]) -> list[str]:
    """Statements to judge. Raises OptionError for one that is empty, or no text."""
    found = text_list(statements, "the statements")
    if not all(statement.strip() for statement in found):
        raise OptionError("a statement is empty: say what is judged")
    return found
