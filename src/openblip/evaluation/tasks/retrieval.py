"""The task of image-text retrieval in both directions, and its recall.

Each image is encoded twice: to compare it with all texts (ITC), and to match it (ITM) with its candidates in both
directions. Both results are stored on disk, so that a killed run continues.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openblip.data.sample import ImageFile, Sample
from openblip.errors import ImageError, OptionError
from openblip.evaluation.journal import Journal
from openblip.evaluation.metrics.recall import DEPTHS, score_retrieval
from openblip.evaluation.outcome import Evaluation, Excluded, Progress, Row
from openblip.evaluation.settings import Settings, Task
from openblip.evaluation.tasks.images import excluded, grouped, name_of, sources
from openblip.images.encoded_image import EncodedBatch
from openblip.matching.matcher import Matcher, ReadTexts
from openblip.matching.ranking import Search, rank
from openblip.models.abilities import matcher_of
from openblip.models.model import Model
from openblip.nn.blip2 import itc_similarity
from openblip.results import Ranked, Rankings
from openblip.text import clean_caption


def evaluate_retrieval(
    model: Model, samples: Sequence[Sample], settings: Settings, journal: Journal, progress: Progress
) -> Evaluation:
    """Score retrieval between the images of the samples and all their captions, in both directions.

    An image that cannot be read is left out, with its captions.

    Raises:
        CheckpointError: the model has no text side.
        OptionError: no image can be read.
        ImageError: an image cannot be read, and the policy is to stop.
    """
    groups = grouped(samples, "retrieval")
    matcher = matcher_of(model, "match")
    steps = 2 * len(groups)
    look = _Looks(matcher, list(groups), settings.batch_size)
    embeds, lost = _embed_all(look, settings, journal, lambda done: progress(done, steps))
    good = [number for number in range(len(groups)) if number not in lost]
    if not good:
        first = next(iter(lost.values()))
        raise OptionError(f"none of the {len(groups)} images could be read: {first.image}: {first.problem}")
    images = [look.images[number] for number in good]
    clean = clean_caption if settings.retrieval.clean_texts else str
    captions = [[clean(text) for row in groups[image] for text in samples[row].captions] for image in images]
    texts = [text for own in captions for text in own]
    owners = [number for number, own in enumerate(captions) for _ in own]
    read_texts = matcher.read(texts)
    cosines = itc_similarity(embeds[good], read_texts.embeds.cpu())
    wanted = Search(top=max(DEPTHS), rerank=settings.retrieval.rerank, batch_size=settings.batch_size)
    search = wanted.by(matcher)
    logits = torch.zeros_like(cosines)
    if search.rerank:
        chosen = _candidates(cosines, search.rerank)
        logits = _match_all(
            look, read_texts, good, chosen, journal, lambda done: progress(len(groups) + done, 2 * len(groups))
        )
    progress(2 * len(groups), 2 * len(groups))
    names = [name_of(image) for image in images]
    rankings = Rankings(
        rank(cosines.T, names, search, lambda found: _two(logits.T.gather(1, found))),
        rank(cosines, texts, search, lambda found: _two(logits.gather(1, found))),
    )
    scores = score_retrieval(rankings, owners)
    rows = _rows_of_images(rankings.texts, images, captions, owners) + _rows_of_texts(
        rankings.images, images, texts, owners
    )
    note = f"{len(names)} images, {len(texts)} texts; contrast (ITC) for all"
    note += f", matching (ITM) for the best {search.rerank} of each query." if search.rerank else " and nothing else."
    return Evaluation(Task.RETRIEVAL, scores.table, rows, "reciprocal rank", list(lost.values()), (note,))


class _Looks:
    """Encodes images in batches."""

    def __init__(self, matcher: Matcher, images: Sequence[ImageFile], batch_size: int) -> None:
        self.matcher = matcher
        self.images = images
        self.batch_size = batch_size

    def batches(self, numbers: Sequence[int]) -> Iterator[tuple[list[int], EncodedBatch, dict[str, ImageError]]]:
        """Indices of images, the encoded batch, and the errors of packed images by name."""
        problems: dict[str, ImageError] = {}
        image_sources = sources((self.images[number] for number in numbers), problems)
        done = 0
        for batch in self.matcher.encoder.batches(image_sources, self.batch_size):
            yield list(numbers[done : done + len(batch.names)]), batch, problems
            done += len(batch.names)


def _embed_all(
    look: _Looks, settings: Settings, journal: Journal, progress: Callable[[int], None]
) -> tuple[Tensor, dict[int, Excluded]]:
    """ITC embeddings [N, Q, width] of all images, and the images that cannot be read, whose rows stay zero."""
    shape = len(look.images), *look.matcher.embeds_shape
    embeds = _table_on_disk(journal.beside("embeddings.npy"), shape)
    lost = {}
    left = [number for number, empty in enumerate((embeds == 0).all(axis=(1, 2))) if empty]
    done = len(look.images) - len(left)
    progress(done)
    for numbers, batch, problems in look.batches(left):
        found = iter(look.matcher.embed_batch(batch.images))
        for number, error in zip(numbers, batch.errors, strict=True):
            if error is None:
                embeds[number] = next(found).numpy()
            else:
                name = name_of(look.images[number])
                lost[number] = excluded(name, problems.get(name, error), settings.on_bad_image)
        done += len(numbers)
        progress(done)
    return torch.from_numpy(np.array(embeds)), lost


def _table_on_disk(path: Path | None, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A table of zeros, or the table of a run that was stopped."""
    if path is None:
        return np.zeros(shape, np.float32)
    if path.exists():
        with contextlib.suppress(ValueError, OSError):  # a killed run may have left half a file
            table: np.ndarray[Any, np.dtype[np.float32]] = np.load(path, mmap_mode="r+")
            if table.shape == shape:
                return table
    table = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    return table


def _match_all(
    look: _Looks,
    read_texts: ReadTexts,
    good: Sequence[int],
    chosen: Tensor,
    journal: Journal,
    progress: Callable[[int], None],
) -> Tensor:
    """ITM logits [N, M] for "yes" of the chosen pairs [N, M]; zero for all others."""
    logits = torch.zeros(chosen.shape)
    places = {number: place for place, number in enumerate(good)}
    left = [number for number in good if number not in journal.done]
    done = len(look.images) - len(left)
    progress(done)
    for numbers, batch, _ in look.batches(left):
        memory = look.matcher.memory(batch.whole())
        for row, number in enumerate(numbers):
            texts = chosen[places[number]].nonzero().flatten()
            one = memory.take(torch.tensor([row], device=look.matcher.device))
            found = look.matcher.match(one, read_texts, texts[None])[0, :, 1]
            journal.add(number, image=name_of(look.images[number]), texts=texts.tolist(), logits=found.tolist())
        done += len(numbers)
        progress(done)
    for number in good:
        logits[places[number], journal.done[number]["texts"]] = torch.tensor(journal.done[number]["logits"])
    return logits


def _candidates(cosines: Tensor, rerank: int) -> Tensor:
    """The pairs [N, M] in which the text is a candidate of the image by ITC, or the image one of the text."""
    chosen = torch.zeros(cosines.shape, dtype=torch.bool)
    chosen.scatter_(1, cosines.argsort(dim=1, descending=True, stable=True)[:, :rerank], True)
    chosen.T.scatter_(1, cosines.T.argsort(dim=1, descending=True, stable=True)[:, :rerank], True)
    return chosen


def _two(yes: Tensor) -> Tensor:
    """Logits [..., 2] of which only that for "yes" counts."""
    return torch.stack([torch.zeros_like(yes), yes], dim=-1)


def _rows_of_images(
    rankings: Sequence[Sequence[Ranked]],
    images: Sequence[ImageFile],
    captions: Sequence[Sequence[str]],
    owners: Sequence[int],
) -> list[Row]:
    return [
        Row(
            image=name_of(image),
            prediction=ranked[0].source,
            references=tuple(own),
            score=score,
            scores={"reciprocal rank": score},
            image_file=image,
        )
        for number, (ranked, image, own) in enumerate(zip(rankings, images, captions, strict=True))
        for score in (_reciprocal_rank([owners[one.index] for one in ranked], number),)
    ]


def _rows_of_texts(
    rankings: Sequence[Sequence[Ranked]], images: Sequence[ImageFile], texts: Sequence[str], owners: Sequence[int]
) -> list[Row]:
    return [
        Row(
            image=ranked[0].source,
            prediction=ranked[0].source,
            references=(name_of(images[owner]),),
            score=score,
            question=text,
            scores={"reciprocal rank": score},
            image_file=images[ranked[0].index],
        )
        for ranked, text, owner in zip(rankings, texts, owners, strict=True)
        for score in (_reciprocal_rank([one.index for one in ranked], owner),)
    ]


def _reciprocal_rank(found: Sequence[int], right: int) -> float:
    """1 / the rank of the first right result; 0 if there is none."""
    return next((1 / place for place, one in enumerate(found, start=1) if one == right), 0.0)
