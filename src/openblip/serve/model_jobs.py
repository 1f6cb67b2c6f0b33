"""What the engine's thread asks of a model: all of it is here.

A job is what requests have in common that go together as one batch; what each has of its own is an item. Jobs are
equal where their options are. Only the engine's thread runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch

from openblip.images.encoded_image import EncodedImage, ReadImage
from openblip.models.abilities import writer_of
from openblip.results import Classified, GeneratedText, Match

if TYPE_CHECKING:
    from openblip.generation.options import ResolvedOptions
    from openblip.models.model import Model
    from openblip.models.writer import Writer


class Job(Hashable, Protocol):
    """Something that a model does for several items at once."""

    @property
    def kind(self) -> Hashable:
        """Jobs of one kind take about the same time for as many items."""
        ...

    def run(self, model: Model, items: Sequence[Any]) -> list[Any]:
        """One result for each item, in order."""
        ...


@dataclass(frozen=True, eq=False)
class Prompted:
    """A text that is wanted about an image.

    Attributes:
        prompts: the first of them that fits the model is read: a conversation, and the same without its oldest turns.
    """

    image: ReadImage
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Written:
    """Texts about an image, best first.

    Attributes:
        read: positions of the image and the prompt in the language model.
        longest: tokens after which a text ends, whether it is finished or not.
    """

    texts: tuple[GeneratedText, ...]
    read: int
    longest: int

    @property
    def written(self) -> int:
        """Tokens of all texts."""
        return sum(len(one.tokens) for one in self.texts)

    def finished(self, text: GeneratedText) -> bool:
        """Whether the model ended the text by itself."""
        return len(text.tokens) < self.longest


@dataclass(frozen=True)
class Write:
    """Captions, answers and turns of conversations, which go together where their options are the same.

    Attributes:
        caption: texts go on from their prompts, whose words count as used.
    """

    options: ResolvedOptions
    caption: bool = False

    @property
    def kind(self) -> Hashable:
        return Write, self.options.num_beams, self.options.num_return_sequences, self.options.max_new_tokens

    @property
    def repeatable(self) -> bool:
        """Whether the same item gives the same texts again."""
        return not self.options.do_sample or self.options.seed is not None

    def run(self, model: Model, items: Sequence[Prompted]) -> list[Written]:
        writer = writer_for(model, self.caption)
        images = writer.encoder.encode_read([item.image for item in items])
        prompts = [self.prompt(writer, image, item.prompts) for image, item in zip(images, items, strict=True)]
        # Questions about one image share what the model reads of it; the same question is asked once.
        asked: dict[EncodedImage, dict[Hashable, str]] = {}
        places: list[Hashable] = []
        for number, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
            place = prompt if self.repeatable else (prompt, number)
            asked.setdefault(image, {})[place] = prompt
            places.append(place)
        rows = writer.write(
            list(asked), [list(own.values()) for own in asked.values()], self.options, caption=self.caption
        )
        found = {
            (image, place): texts
            for (image, own), row in zip(asked.items(), rows, strict=True)
            for place, texts in zip(own, row, strict=True)
        }
        return [
            Written(tuple(found[image, place]), writer.count_tokens(image, prompt), self.options.max_new_tokens)
            for image, place, prompt in zip(images, places, prompts, strict=True)
        ]

    def prompt(self, writer: Writer, image: EncodedImage, prompts: Sequence[str]) -> str:
        """The first of the prompts that fits the model."""
        for prompt in prompts:
            if len(prompts) == 1 or writer.fits(image, prompt, self.options.max_new_tokens):
                return prompt
        return prompts[-1]  # and the writer says what is too long


@dataclass(eq=False)
class Streamed:
    """A text while it is written.

    Attributes:
        read, longest: as of `Written`.
        written: tokens by now.
    """

    read: int
    longest: int
    written: int = 0

    @property
    def finished(self) -> bool:
        return self.written < self.longest


@dataclass(frozen=True)
class MatchTexts:
    """How well each of the texts fits an image; items are images."""

    texts: tuple[str, ...]

    @property
    def kind(self) -> Hashable:
        return MatchTexts, len(self.texts)

    def run(self, model: Model, items: Sequence[ReadImage]) -> list[tuple[Match, ...]]:
        images = _encoded(model, items)
        return [found.matches for found in model.match_many(images, self.texts, batch_size=len(images))]


@dataclass(frozen=True)
class Classify:
    """The labels of an image, most probable first; items are images."""

    labels: tuple[str, ...]
    templates: tuple[str, ...]

    @property
    def kind(self) -> Hashable:
        return Classify, len(self.labels) * len(self.templates)

    def run(self, model: Model, items: Sequence[ReadImage]) -> list[tuple[Classified, ...]]:
        images = _encoded(model, items)
        found = model.classify_many(images, self.labels, templates=self.templates, batch_size=len(images))
        return [one.labels for one in found]


@dataclass(frozen=True)
class EmbedImages:
    """Unit vectors [Q][width] of images, which are the items."""

    kind: Hashable = field(default="embed images", init=False)

    def run(self, model: Model, items: Sequence[ReadImage]) -> list[list[list[float]]]:
        found: list[list[list[float]]] = model.embed_images(_encoded(model, items), batch_size=len(items)).tolist()
        return found


@dataclass(frozen=True)
class EmbedTexts:
    """Unit vectors [width] of texts; an item is one text."""

    kind: Hashable = field(default="embed texts", init=False)

    def run(self, model: Model, items: Sequence[str]) -> list[list[float]]:
        found: list[list[float]] = model.embed_texts(items).tolist()
        return found


@dataclass(frozen=True, eq=False)
class Call:
    """Anything else that somebody does with the model; the item is None."""

    function: Callable[[Model], Any]
    kind: Hashable = field(default="call", init=False)

    def run(self, model: Model, items: Sequence[None]) -> list[Any]:
        return [self.function(model) for _ in items]


def prepare_thread(model: Model, threads: int | None) -> None:
    """What PyTorch keeps for each thread: the number of threads that share its work, and the GPU."""
    if threads is not None:
        torch.set_num_threads(threads)
    if model.device.type == "cuda":
        torch.cuda.set_device(model.device)


def count_known(model: Model, images: Sequence[ReadImage]) -> int:
    """How many of the images need not be encoded."""
    cache = model.components.encoder.cache
    return sum(cache.find(image.key) is not None for image in images)


def most_new_tokens(model: Model) -> int:
    """Tokens that a text may have so that half of the model's positions are left for the image and the prompt."""
    writer = model.components.writer
    positions = None if writer is None else writer.language_model.config.max_positions
    return 2**31 if positions is None else max(1, positions // 2)


def _encoded(model: Model, images: Sequence[ReadImage]) -> list[EncodedImage]:
    return model.components.encoder.encode_read(images)


def writer_for(model: Model, caption: bool) -> Writer:
    """What writes captions, or everything else."""
    # The ability was looked for when the options were resolved; what may only caption continues prompts, too.
    return writer_of(model, "caption" if caption else "ask")
