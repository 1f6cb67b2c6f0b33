"""Text about encoded images: a language model behind them, and what turns its ids into words."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from openblip.checkpoints.model_parts import ModelParts
from openblip.errors import ImageError, OptionError, is_several
from openblip.generation.engine import generate, stream
from openblip.generation.options import ResolvedOptions
from openblip.generation.prefill import fits
from openblip.generation.prefix import Prefix
from openblip.images.encoded_image import CachedEncoder, EncodedImage, ImageInput
from openblip.models.text_options import read_text
from openblip.nn.language_model import LanguageModel
from openblip.results import Answered, Captioned, GeneratedText
from openblip.text import Pieces, clean_question, one_text, text_list, text_pieces

SHARED_FROM = 3
"""Questions about one image from which reading its visual prompt once saves more than a larger batch does: the prompt
is longer than two questions."""
PREFIX = "prefix"
"""What is kept of an encoded image: the visual prompt, and once several prompts stood behind it its keys and values."""


class Writer:
    """Captions and answers.

    Args:
        language_model: the one that writes.
        visual_prompts: encoded images to what the language model reads of each: [S, token width].
    """

    def __init__(
        self,
        parts: ModelParts,
        language_model: LanguageModel,
        encoder: CachedEncoder,
        visual_prompts: Callable[[Sequence[EncodedImage]], Iterable[Tensor]],
    ) -> None:
        self.parts = parts
        self.language_model = language_model
        self.encoder = encoder
        self.visual_prompts = visual_prompts

    def caption_many(
        self, images: ImageInput | Iterable[ImageInput], prompt: str, options: ResolvedOptions, batch_size: int
    ) -> Iterator[Captioned]:
        """Captions of images, or what is wrong with them, in order, as batches are done."""
        for batch in self.encoder.batches(images, batch_size):
            found = self.captions(batch.images, prompt, options) if batch.images else []
            for source, texts in batch.join(found):
                if isinstance(texts, ImageError):
                    yield Captioned(source, error=texts)
                else:
                    yield Captioned(source, tuple(texts))

    def answer_many(
        self,
        asked: Iterable[tuple[ImageInput, str | Iterable[str]]],
        prompt_of: Callable[[str], str],
        options: ResolvedOptions,
        batch_size: int,
    ) -> Iterator[Answered]:
        """Answers to the questions about each image, or what is wrong with the image, in order, as batches are done.

        Args:
            prompt_of: a question to its prompt.
        """
        waiting: deque[tuple[list[str], list[str]]] = deque()
        wanted = "give pairs of an image and the question or questions about it"
        if not is_several(asked):
            raise OptionError(f"{str(asked)[:100]} was asked: {wanted}")

        def images() -> Iterator[ImageInput]:
            for pair in asked:
                if not isinstance(pair, tuple | list) or len(pair) != 2:
                    raise OptionError(f"{str(pair)[:100]} was asked: {wanted}")
                image, given = pair
                own = text_list(given, "the questions")
                waiting.append((own, [prompt_of(question) for question in own]))  # checked before its image is read
                yield image

        for batch in self.encoder.batches(images(), batch_size):
            questions = [waiting.popleft() for _ in batch.names]
            good = [prompts for (_, prompts), error in zip(questions, batch.errors, strict=True) if error is None]
            found = self.texts_of_many(batch.images, good, options) if batch.images else []
            for (own, _), (source, answers) in zip(questions, batch.join(found), strict=True):
                if isinstance(answers, ImageError):
                    yield Answered(source, tuple(own), error=answers)
                else:
                    yield Answered(source, tuple(own), tuple(answers))

    @torch.inference_mode()
    def captions(
        self, images: Sequence[EncodedImage], prompt: str, options: ResolvedOptions
    ) -> list[list[GeneratedText]]:
        """The captions of each image, best first."""
        begun = self._begun([prompt] * len(images), options.no_repeat_words)
        rows, prefixes = [self._embed(prompt)] * len(images), self._prefixes(images)
        return [
            [read_text(self.parts, text) for text in texts]
            for texts in generate(self.language_model, rows, options, begun, prefixes)
        ]

    def texts(self, image: EncodedImage, prompts: Sequence[str], options: ResolvedOptions) -> list[GeneratedText]:
        """What follows each prompt behind one image; what the prompts share is read once."""
        with torch.inference_mode(), self._kept(image):
            (prefix,) = self._prefixes([image])
            rows = [self._embed(prompt) for prompt in prompts]
            found = generate(self.language_model, rows, options, self._begun(prompts), prefix)
        return [read_text(self.parts, texts[0]) for texts in found]

    def texts_of_many(
        self, images: Sequence[EncodedImage], prompts: Sequence[Sequence[str]], options: ResolvedOptions
    ) -> list[list[GeneratedText]]:
        """As `texts` for several images with prompts of their own.

        Few prompts of each of many images are one batch; many of one image share its visual prompt instead.
        """
        few = [len(own) < SHARED_FROM for own in prompts]
        with torch.inference_mode():
            behind = [
                (prefix, prompt)
                for prefix, own, together in zip(self._prefixes(images), prompts, few, strict=True)
                for prompt in own
                if together
            ]
            rows = [self._embed(prompt) for _, prompt in behind]
            begun = self._begun([prompt for _, prompt in behind])
            found = iter(generate(self.language_model, rows, options, begun, [prefix for prefix, _ in behind]))
        return [
            [read_text(self.parts, next(found)[0]) for _ in own] if together else self.texts(image, own, options)
            for image, own, together in zip(images, prompts, few, strict=True)
        ]

    def stream(self, image: EncodedImage, prompt: str, options: ResolvedOptions, *, caption: bool = False) -> Pieces:
        """The pieces of what follows a prompt, as they are written, greedily or sampled.

        The prompt is read now, so what is wrong with it is said now; closing the iterator, or letting go of it, ends
        the writing.

        Args:
            caption: the text goes on from the prompt, whose words count as used.
        """
        begun = self._begun([prompt], caption and options.no_repeat_words)
        with torch.inference_mode(), self._kept(image):
            (prefix,) = self._prefixes([image])
            tokens = stream(
                self.language_model, self._embed(prompt), options, prefix, None if begun is None else begun[0]
            )
        return text_pieces(self.parts.require_words(), tokens)

    def question(self, question: str, template: str | None = None) -> str:
        """The prompt of a question: in `template`, which has {question} in it, or in the model's own.

        Raises:
            OptionError: nothing is asked, or the template has no place for the question.
        """
        asked = clean_question(one_text(question, "the question"))
        if asked == "?":
            raise OptionError("the question is empty: ask something about the image")
        if template is None:
            return self.parts.prompts.ask(asked)
        if "{question}" not in one_text(template, "the template"):
            raise OptionError(f"the template {template!r} has no {{question}} in it: say where the question stands")
        return template.replace("{question}", asked)

    def fits(self, image: EncodedImage, prompt: str, max_new_tokens: int) -> bool:
        """Whether an image, a prompt and a text behind them fit the language model's positions."""
        (prefix,) = self._prefixes([image])
        read = prefix.length + len(self.parts.prompt_ids(prompt))
        return fits(self.language_model.config, read, max_new_tokens)

    @torch.inference_mode()
    def _prefixes(self, images: Sequence[EncodedImage]) -> list[Prefix]:
        def compute(places: list[int]) -> Iterator[Prefix]:
            for row in self.visual_prompts([images[place] for place in places]):
                yield Prefix(self.language_model, row)

        return self.encoder.derive(images, PREFIX, compute)

    def _begun(self, prompts: Sequence[str], whole: bool = False) -> list[Tensor] | None:
        """The ids of prompts whose words count as used: with `whole`, or where they are part of the model's texts."""
        config = self.language_model.config
        counts = whole or (config.prompt_counts and not config.encodes_prompts)
        return [self._ids(prompt) for prompt in prompts] if counts else None

    def _embed(self, prompt: str) -> Tensor:
        return self.language_model.embed(self._ids(prompt))

    def _ids(self, prompt: str) -> Tensor:
        device = next(self.parts.network.parameters()).device
        return torch.tensor(self.parts.prompt_ids(prompt), device=device)

    @contextmanager
    def _kept(self, image: EncodedImage) -> Iterator[None]:
        """Measure an image anew, whose keys and values may be computed meanwhile."""
        try:
            yield
        finally:
            self.encoder.cache.keep(image)
