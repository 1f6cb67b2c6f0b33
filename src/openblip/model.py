"""What a user holds: one object that captions, answers, matches and embeds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

import torch
from torch import Tensor

from openblip.checkpoints.loading import load_parts
from openblip.checkpoints.parts import ModelParts
from openblip.checkpoints.registry import DEFAULT_MODEL
from openblip.devices import Placement, choose_placement
from openblip.errors import CheckpointError, ImageError, OptionError
from openblip.generation.engine import generate
from openblip.generation.options import Generation, GenerationOptions
from openblip.image_sources import ImageSource, describe_source
from openblip.images import load_image, to_pixels
from openblip.nn.blip2 import itc_similarity
from openblip.nn.efficientnet import EfficientNet
from openblip.nn.t5 import T5
from openblip.options import Defaults, TextOptions, generation_options
from openblip.results import Captioned, GeneratedText, Match
from openblip.text import MatchingText, Tokenizer, clean_caption, clean_generated, clean_question

if TYPE_CHECKING:
    from PIL.Image import Image
    from typing_extensions import Unpack

    from openblip.chat import Chat

BATCH_SIZE = 8
Many = TypeVar("Many", bound="Iterable[object]")


def load(
    name: str | Path = DEFAULT_MODEL,
    *,
    checkpoint: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> Blip2:
    """Load a model by name, or from a folder that OpenBLIP or transformers wrote.

    Args:
        name: "mini", which is in the package; an official BLIP-2 (`openblip models`), whose files are downloaded
            if they are not on this machine; a repository of the hub; or a folder.
        checkpoint: a `.pth` that LAVIS saved, read instead of the official one of a LAVIS name.
        device: "cpu", "cuda", "cuda:1"; by default CUDA where there is one.
        dtype: "float32", "bfloat16" or "float16"; by default what the device computes fast.

    Raises:
        CheckpointError: no such model, or its files are broken.
        DownloadError: its files cannot be had.
        OptionError: an unknown device or type.
    """
    placement = choose_placement(device, dtype)
    own = None if checkpoint is None else Path(checkpoint)
    return Blip2(load_parts(name, checkpoint=own, dtype=placement.dtype, device=placement.device), placement)


class Blip2:
    """A loaded model. Make one with `openblip.load`.

    Images may be paths, http(s) addresses, bytes, PIL images or arrays (see `openblip.images.load_image`);
    one that cannot be read raises ImageError, which names it. Methods that generate text take the options
    of `openblip.options.TextOptions` by keyword, and raise OptionError for wrong ones.
    """

    def __init__(self, parts: ModelParts, placement: Placement) -> None:
        self.parts = parts
        self.placement = placement
        self.network = parts.network.to(device=placement.device, dtype=placement.dtype).eval()
        self.network.requires_grad_(False)
        if isinstance(self.network.vision, EfficientNet):
            self.network.vision.fold()

    def __repr__(self) -> str:
        return f"Blip2({self.name!r}, device={self.placement.device}, dtype={self.placement.dtype})"

    @property
    def name(self) -> str:
        return self.parts.name

    @overload
    def caption(self, image: ImageSource, *, prompt: str | None = None, **options: Unpack[TextOptions]) -> str: ...
    @overload
    def caption(
        self,
        image: ImageSource,
        *,
        num_captions: int,
        prompt: str | None = None,
        **options: Unpack[TextOptions],
    ) -> list[str]: ...
    @overload
    def caption(self, image: list[Any], *, prompt: str | None = None, **options: Unpack[TextOptions]) -> list[str]: ...
    @overload
    def caption(
        self,
        image: list[Any],
        *,
        num_captions: int,
        prompt: str | None = None,
        **options: Unpack[TextOptions],
    ) -> list[list[str]]: ...

    def caption(
        self,
        image: ImageSource | list[Any],
        *,
        num_captions: int | None = None,
        prompt: str | None = None,
        **options: Unpack[TextOptions],
    ) -> str | list[str] | list[list[str]]:
        """Describe an image, or each of a list of images.

        Args:
            num_captions: given, each image gets a list of that many captions, best first.
            prompt: how the caption begins ("a photo of"); it is not repeated in the result.
            options: see `TextOptions`.
        """
        sources = image if isinstance(image, list) else [image]
        texts = []
        for captioned in self.caption_many(
            sources, num_captions=1 if num_captions is None else num_captions, prompt=prompt, **options
        ):
            if captioned.error is not None:
                raise captioned.error
            texts.append([caption.text for caption in captioned.captions])
        if num_captions is None:
            firsts = [row[0] for row in texts]
            return firsts if isinstance(image, list) else firsts[0]
        return texts if isinstance(image, list) else texts[0]

    def caption_many(
        self,
        images: Iterable[ImageSource],
        *,
        prompt: str | None = None,
        num_captions: int = 1,
        batch_size: int = BATCH_SIZE,
        **options: Unpack[TextOptions],
    ) -> Iterator[Captioned]:
        """Describe any number of images, one result each in order, as batches are done.

        An image that cannot be read gives a result with its error; the others are not affected.
        """
        _check_batch_size(batch_size)
        chosen = generation_options(options, self._caption_defaults(), num_captions, self._stop_id())
        text = self.parts.prompts.caption if prompt is None else prompt
        batch: list[ImageSource] = []
        for source in _listed(images):
            batch.append(source)
            if len(batch) == batch_size:
                yield from self._caption_batch(batch, text, chosen)
                batch = []
        if batch:
            yield from self._caption_batch(batch, text, chosen)

    @overload
    def ask(self, image: ImageSource, question: str, **options: Unpack[TextOptions]) -> str: ...
    @overload
    def ask(self, image: ImageSource, question: list[str], **options: Unpack[TextOptions]) -> list[str]: ...

    def ask(self, image: ImageSource, question: str | list[str], **options: Unpack[TextOptions]) -> str | list[str]:
        """Answer a question about an image, or several, for which the image is looked at once."""
        questions = question if isinstance(question, list) else [question]
        answers = [answer.text for answer in self.answer(image, questions, **options)]
        return answers if isinstance(question, list) else answers[0]

    def answer(
        self, image: ImageSource, questions: Sequence[str], **options: Unpack[TextOptions]
    ) -> list[GeneratedText]:
        """As `ask`, with scores and token log-probabilities."""
        asked = [clean_question(question) for question in _listed(questions)]
        if "?" in asked:
            raise OptionError("the question is empty: ask something about the image")
        prompts = [self.parts.prompts.ask(question) for question in asked]
        return self.complete(self.visual_prompt(image), prompts, **options)

    def chat(self, image: ImageSource) -> Chat:
        """Start a conversation about an image, which is looked at once."""
        from openblip.chat import Chat

        return Chat(self, image)

    def complete(
        self, visual_prompt: Tensor, prompts: Sequence[str], **options: Unpack[TextOptions]
    ) -> list[GeneratedText]:
        """Go on from prompts behind one image's visual prompt [Q, token width], as answers do."""
        chosen = generation_options(options, self._answer_defaults(), 1, self._stop_id())
        rows = [self._join(visual_prompt, prompt) for prompt in prompts]
        with torch.inference_mode():
            return [self._text(found[0]) for found in generate(self.network.language_model, rows, chosen)]

    def fits(self, prompt: str, max_tokens: int | None = None) -> bool:
        """Whether a prompt and an answer (of usual length by default) fit the language model's positions.

        T5 has no positions, and everything fits.
        """
        config, tokenizer = self.network.config, self._require_decoder()
        if config.decoder is None:
            return True
        needed = config.qformer.num_queries + 1 + len(tokenizer.encode(prompt))
        answer = self.parts.defaults.answer_max_tokens if max_tokens is None else max_tokens
        return needed + answer <= config.decoder.max_positions

    @torch.inference_mode()
    def visual_prompt(self, image: ImageSource) -> Tensor:
        """What the language model reads of an image: [Q, token width]."""
        self._require_decoder()
        return self.network.visual_prompt(self.image_features([load_image(image)]))[0]

    @overload
    def match(self, image: ImageSource, texts: str) -> Match: ...
    @overload
    def match(self, image: ImageSource, texts: list[str]) -> list[Match]: ...

    @torch.inference_mode()
    def match(self, image: ImageSource, texts: str | list[str]) -> Match | list[Match]:
        """How well each text fits an image: ITM probability and ITC cosine, in the order given."""
        matching = self._require_matching()
        wanted = [texts] if isinstance(texts, str) else texts
        if not wanted:
            return []
        network = self.network
        features = self.image_features([load_image(image)])
        ids, mask = self._matching_batch(matching, wanted)
        logits = network.itm_logits(ids, mask, features.expand(len(wanted), -1, -1)).float()
        image_embeds = network.project_queries(network.qformer.image(features))
        text_embeds = network.project_text(network.qformer.text(ids, mask))
        cosines = itc_similarity(image_embeds, text_embeds)[0].float()
        matches = [
            Match(text, itm, itc)
            for text, itm, itc in zip(wanted, logits.softmax(dim=1)[:, 1].tolist(), cosines.tolist(), strict=True)
        ]
        return matches[0] if isinstance(texts, str) else matches

    @torch.inference_mode()
    def embed_images(self, images: Sequence[ImageSource], *, batch_size: int = BATCH_SIZE) -> Tensor:
        """Unit vectors [N, Q, shared width] of images, float32 on the CPU.

        The similarity of an image and a text is the largest of the Q dot products with the text's vector.
        """
        self._require_matching()
        _check_batch_size(batch_size)
        images, rows = _listed(images), []
        for start in range(0, len(images), batch_size):
            loaded = [load_image(source) for source in images[start : start + batch_size]]
            queries = self.network.qformer.image(self.image_features(loaded))
            rows.append(self.network.project_queries(queries).float().cpu())
        config = self.network.config
        return torch.cat(rows) if rows else torch.empty(0, config.qformer.num_queries, config.shared_width)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str], *, batch_size: int = 64) -> Tensor:
        """Unit vectors [N, shared width] of texts, float32 on the CPU."""
        matching = self._require_matching()
        _check_batch_size(batch_size)
        texts, rows = _listed(texts), []
        for start in range(0, len(texts), batch_size):
            ids, mask = self._matching_batch(matching, texts[start : start + batch_size])
            rows.append(self.network.project_text(self.network.qformer.text(ids, mask)).float().cpu())
        return torch.cat(rows) if rows else torch.empty(0, self.network.config.shared_width)

    def _caption_batch(
        self, sources: Sequence[ImageSource], prompt: str, options: GenerationOptions
    ) -> list[Captioned]:
        loaded: list[Image | ImageError] = []
        for source in sources:
            try:
                loaded.append(load_image(source))
            except ImageError as error:
                loaded.append(error)
        images = [image for image in loaded if not isinstance(image, ImageError)]
        captions: Iterator[list[Generation]] = iter(())
        if images:
            with torch.inference_mode():
                visual = self.network.visual_prompt(self.image_features(images))
                rows = [self._join(row, prompt) for row in visual]
                captions = iter(generate(self.network.language_model, rows, options))
        return [
            Captioned(describe_source(source), error=image)
            if isinstance(image, ImageError)
            else Captioned(describe_source(source), tuple(self._text(found) for found in next(captions)))
            for source, image in zip(sources, loaded, strict=True)
        ]

    def image_features(self, images: Sequence[Image]) -> Tensor:
        """Features [B, N, image width] of checked images, as the Q-Former reads them."""
        pixels = to_pixels(images, self.parts.transform)
        return self.network.image_features(pixels.to(self.placement.device, self.placement.dtype))

    def _join(self, visual_prompt: Tensor, prompt: str) -> Tensor:
        """What the language model reads: embeddings [T, token width].

        Visual tokens, then OPT's start token and the prompt, or the prompt and the stop token that ends what T5 reads.
        """
        tokenizer, words = self._require_decoder(), self.network.language_model
        told = tokenizer.encode(prompt)
        ids = [*told, self._stop_id()] if isinstance(words, T5) else [tokenizer.start_id, *told]
        return torch.cat([visual_prompt, words.embed(torch.tensor(ids, device=visual_prompt.device))])

    def _text(self, generation: Generation) -> GeneratedText:
        tokenizer = self._require_decoder()
        return GeneratedText(
            text=clean_generated(tokenizer.decode(generation.ids)),
            score=generation.score,
            tokens=tuple(tokenizer.decode([token]) for token in generation.ids),
            log_probs=generation.log_probs,
        )

    def _matching_batch(self, matching: MatchingText, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        ids, mask = matching.batch([clean_caption(text) for text in texts])
        return ids.to(self.placement.device), mask.to(self.placement.device)

    def _caption_defaults(self) -> Defaults:
        own = self.parts.defaults
        return Defaults(own.caption_beams, own.caption_max_tokens, own.caption_min_tokens, own.caption_length_penalty)

    def _answer_defaults(self) -> Defaults:
        own = self.parts.defaults
        return Defaults(own.answer_beams, own.answer_max_tokens, 1, own.answer_length_penalty)

    def _stop_id(self) -> int:
        return self._require_decoder().only_id(self.parts.defaults.stop_token)

    def _require_decoder(self) -> Tokenizer:
        if self.parts.tokenizer is None:
            raise CheckpointError(f"the model {self.name} has no language model: it can match and embed only")
        return self.parts.tokenizer

    def _require_matching(self) -> MatchingText:
        if self.parts.matching is None:
            raise CheckpointError(f"the model {self.name} has no text side: it can caption and answer only")
        return self.parts.matching


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise OptionError(f"batch_size is {batch_size}: it must be at least 1")


def _listed(given: Many) -> Many:
    """A lone string where several things are expected would otherwise be taken letter by letter."""
    return cast("Many", [given]) if isinstance(given, str | bytes) else given
