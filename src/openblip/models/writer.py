"""Text about encoded images: a language model behind them, and what turns its ids into words."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from openblip.checkpoints.model_parts import ModelParts
from openblip.errors import ImageError, OptionError, yes_or_no
from openblip.generation.candidates import rank_candidates
from openblip.generation.cohort import DecodeRequest
from openblip.generation.engine import generate, stream
from openblip.generation.options import Generation, GenerationOptions, ResolvedOptions, TextOptions, check_names
from openblip.generation.prefill import fits
from openblip.generation.prefix import SHARED_FROM, Prefix
from openblip.generation.repeated_words import Vocabulary
from openblip.images.encoded_image import CachedEncoder, EncodedImage, ImageInput
from openblip.nn.language_model import LanguageModel
from openblip.results import GeneratedText, RankedAnswer
from openblip.text import Pieces, clean_generated, clean_question, one_text, text_pieces

PREFIX = "prefix"
"""What is kept of an encoded image: the visual prompt, and once several prompts stood behind it its keys and values."""


class Writer:
    """Captions and answers.

    Args:
        language_model: the one that writes.
        visual_prompts: encoded images to what the language model reads of each: [S, token width].
        prefix: how it reads that: in front of prompts, unless a family does so in a way of its own.
    """

    def __init__(
        self,
        parts: ModelParts[Any],
        language_model: LanguageModel,
        encoder: CachedEncoder,
        visual_prompts: Callable[[Sequence[EncodedImage]], Iterable[Tensor]],
        prefix: Callable[[Any, Tensor], Prefix] = Prefix,
    ) -> None:
        self.parts = parts
        self.tokenizer = parts.require_words()
        self.language_model = language_model
        self.encoder = encoder
        self.visual_prompts = visual_prompts
        self.prefix = prefix
        self.ranked: tuple[list[str], list[list[int]]] = [], []

    def options(
        self,
        user_options: TextOptions,
        defaults: GenerationOptions,
        *,
        texts: int = 1,
        stream: bool = False,
        method: Callable[..., Any] | None = None,
    ) -> ResolvedOptions:
        """How texts are generated: as the user says, and as `defaults` do where the user says nothing.

        Args:
            texts: of each prompt.
            stream: the text is shown as it is generated: greedily, where the default is a beam search.
            method: what the options were given to; its keywords are suggested for a wrong one, too.

        Raises:
            OptionError: an unknown name, a value out of range, or options that exclude each other.
        """
        check_names(user_options, method)
        chosen = GenerationOptions(**user_options, num_return_sequences=texts, stop_ids=(self.parts.stop_id,))
        if not yes_or_no("stream", stream):
            return chosen.resolved(defaults, lambda: self._vocabulary)
        resolved = chosen.resolved(replace(defaults, num_beams=1), lambda: self._vocabulary)
        resolved.check_streaming()
        return resolved

    def write(
        self,
        images: Sequence[EncodedImage],
        prompts: Sequence[Sequence[str]],
        options: ResolvedOptions,
        *,
        caption: bool = False,
    ) -> list[list[list[GeneratedText]]]:
        """What follows prompts of its own behind each image: of each prompt its texts, best first.

        Few prompts of each of many images are one batch; many of one image share its visual prompt instead.

        Args:
            caption: texts go on from their prompts, whose words count as used.
        """
        few = [len(own) < SHARED_FROM for own in prompts]
        with torch.inference_mode():
            prefixes = [
                prefix
                for prefix, own, together in zip(self._prefixes(images), prompts, few, strict=True)
                for _ in own
                if together
            ]
            batch = [prompt for own, together in zip(prompts, few, strict=True) for prompt in own if together]
            found = iter(self._generate(prefixes, batch, options, caption))
        return [
            [next(found) for _ in own] if together else self._behind(image, own, options, caption)
            for image, own, together in zip(images, prompts, few, strict=True)
        ]

    def write_many(
        self,
        pairs: Iterable[tuple[ImageInput, list[str]]],
        options: ResolvedOptions,
        batch_size: int,
        *,
        prompt_of: Callable[[str], str] = str,
        caption: bool = False,
    ) -> Iterator[tuple[str, list[str], list[list[GeneratedText]] | ImageError]]:
        """As `write` for any number of images, in order, as batches are done.

        Args:
            pairs: an image and its texts: questions or prompts.
            prompt_of: makes the prompt of a text.

        Yields:
            the name of an image, its texts, and the model's texts for each prompt, or the image's error.
        """
        waiting: deque[tuple[list[str], list[str]]] = deque()

        def images() -> Iterator[ImageInput]:
            for image, own in pairs:
                waiting.append((own, [prompt_of(text) for text in own]))  # checked before its image is read
                yield image

        for batch in self.encoder.batches(images(), batch_size):
            rows = [waiting.popleft() for _ in batch.names]
            good = [prompts for (_, prompts), error in zip(rows, batch.errors, strict=True) if error is None]
            found = self.write(batch.images, good, options, caption=caption) if batch.images else []
            for (own, _), (source, texts) in zip(rows, batch.join(found), strict=True):
                yield source, own, texts

    def texts(self, image: EncodedImage, prompts: Sequence[str], options: ResolvedOptions) -> list[GeneratedText]:
        """What follows each prompt behind one image; what the prompts share is read once."""
        return [texts[0] for texts in self._behind(image, prompts, options, False)]

    def rank(
        self, image: EncodedImage, prompts: Sequence[str], answers: Sequence[str], first: int
    ) -> list[list[RankedAnswer]]:
        """Answers to each prompt behind one image, likeliest first.

        Args:
            first: how many answers are read of each prompt: those that begin likeliest.
        """
        with torch.inference_mode(), self._kept(image):
            (prefix,) = self._prefixes([image])
            rows = [self.language_model.embed(self._ids(prompt)) for prompt in prompts]
            found = rank_candidates(self.language_model, rows, self._answer_ids(answers), prefix, first)
        return [[RankedAnswer(one.index, answers[one.index], one.score) for one in row] for row in found]

    def _answer_ids(self, answers: Sequence[str]) -> list[list[int]]:
        """The ids of each, and a stop token. Kept: the next image mostly has the same thousands."""
        if self.ranked[0] != list(answers):
            # Where a prompt goes on, the next word begins with a space.
            space = "" if self.language_model.config.encodes_prompts else " "
            ids = [[*self.tokenizer.encode(space + answer), self.parts.stop_id] for answer in answers]
            self.ranked = list(answers), ids
        return self.ranked[1]

    def stream(self, image: EncodedImage, prompt: str, options: ResolvedOptions, *, caption: bool = False) -> Pieces:
        """The pieces of what follows a prompt, as they are written, greedily or sampled.

        The prompt is read now, so what is wrong with it is said now; closing the iterator, or letting go of it, ends
        the writing.

        Args:
            caption: the text goes on from the prompt, whose words count as used.
        """
        with torch.inference_mode(), self._kept(image):
            (prefix,) = self._prefixes([image])
            ids = self._ids(prompt)
            begun = ids if self._counts_prompts(options, caption) else None
            tokens = stream(self.language_model, self.language_model.embed(ids), options, prefix, begun)
        return text_pieces(self.tokenizer, tokens)

    @torch.inference_mode()
    def requests(
        self, image: EncodedImage, prompts: Sequence[str], options: ResolvedOptions, *, caption: bool = False
    ) -> list[DecodeRequest]:
        """What `write` would be asked for, of each prompt behind one image, to be decoded together with others.

        Args:
            caption: texts go on from their prompts, whose words count as used.
        """
        (prefix,) = self._prefixes([image])
        rows = [self._ids(prompt) for prompt in prompts]
        counts = self._counts_prompts(options, caption)
        return [DecodeRequest(self.language_model.embed(ids), options, prefix, ids if counts else None) for ids in rows]

    def prepare(self, images: Sequence[EncodedImage]) -> None:
        """Compute together what `requests` needs of each image."""
        self._prefixes(images)

    def question(self, question: str, template: str | None = None) -> str:
        """The prompt of a question: in `template`, which has {question} in it, or in the model's own.

        Raises:
            OptionError: nothing is asked, or the template has no place for the question.
        """
        cleaned = clean_question(one_text(question, "the question"))
        if cleaned == "?":
            raise OptionError("the question is empty: ask something about the image")
        if template is None:
            return self.parts.prompts.ask(cleaned)
        if "{question}" not in one_text(template, "the template"):
            raise OptionError(f"the template {template!r} has no {{question}} in it: say where the question stands")
        return template.replace("{question}", cleaned)

    def count_tokens(self, image: EncodedImage, prompt: str) -> int:
        """Positions that an image and a prompt take in the language model."""
        (prefix,) = self._prefixes([image])
        return prefix.length + len(self.parts.prompt_ids(prompt))

    def fits(self, image: EncodedImage, prompt: str, max_new_tokens: int) -> bool:
        """Whether an image, a prompt and a text behind them fit the language model's positions."""
        return fits(self.language_model.config, self.count_tokens(image, prompt), max_new_tokens)

    def _behind(
        self, image: EncodedImage, prompts: Sequence[str], options: ResolvedOptions, caption: bool
    ) -> list[list[GeneratedText]]:
        """The texts of each prompt behind one image, whose keys and values they share."""
        with torch.inference_mode(), self._kept(image):
            (prefix,) = self._prefixes([image])
            return self._generate(prefix, prompts, options, caption)

    def _generate(
        self, prefix: Prefix | Sequence[Prefix], prompts: Sequence[str], options: ResolvedOptions, caption: bool
    ) -> list[list[GeneratedText]]:
        # Captions of many images have one prompt, which is read once.
        ids = {prompt: self._ids(prompt) for prompt in dict.fromkeys(prompts)}
        embeds = {prompt: self.language_model.embed(row) for prompt, row in ids.items()}
        begun = [ids[prompt] for prompt in prompts] if self._counts_prompts(options, caption) else None
        found = generate(self.language_model, [embeds[prompt] for prompt in prompts], options, begun, prefix)
        return [self.generated(texts) for texts in found]

    @torch.inference_mode()
    def _prefixes(self, images: Sequence[EncodedImage]) -> list[Prefix]:
        new = list(dict.fromkeys(image for image in images if PREFIX not in image.derived))
        if new:
            for image, row in zip(new, self.visual_prompts(new), strict=True):
                image.derived[PREFIX] = self.prefix(self.language_model, row)
                self.encoder.cache.keep(image)
        return [image.derived[PREFIX] for image in images]

    def _counts_prompts(self, options: ResolvedOptions, caption: bool) -> bool:
        """Whether words of prompts count as used: of captions, and where prompts are part of the model's texts."""
        config = self.language_model.config
        return (caption and options.no_repeat_words) or (config.prompt_counts and not config.encodes_prompts)

    def _ids(self, prompt: str) -> Tensor:
        return torch.tensor(self.parts.prompt_ids(prompt), device=next(self.parts.network.parameters()).device)

    def generated(self, texts: Sequence[Generation]) -> list[GeneratedText]:
        """Generated ids as words."""
        return [self._text(one) for one in texts]

    def _text(self, generation: Generation) -> GeneratedText:
        return GeneratedText(
            text=clean_generated(self.tokenizer.decode(generation.ids)),
            score=generation.score,
            tokens=tuple(self.tokenizer.decode([token]) for token in generation.ids),
            log_probs=generation.log_probs,
        )

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.tokenizer.tokens())

    @contextmanager
    def _kept(self, image: EncodedImage) -> Iterator[None]:
        """Measure an image anew, whose keys and values may be computed meanwhile."""
        try:
            yield
        finally:
            self.encoder.cache.keep(image)
