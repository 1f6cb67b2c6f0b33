"""What a user holds: one object that captions, answers, matches and embeds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from openblip.checkpoints.loading import load_parts
from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.registry import DEFAULT_MODEL
from openblip.devices import Placement, choose_placement, tell_substitution
from openblip.errors import CheckpointError, ImageError, OptionError
from openblip.generation.cuda_graphs import Graphs
from openblip.generation.engine import generate, stream
from openblip.generation.options import Generation, GenerationOptions, TextOptions
from openblip.generation.prefill import fits
from openblip.generation.prefix import Prefix
from openblip.images.decode import load_image, to_pixels
from openblip.images.prefetch import PixelBatch, pixel_batches
from openblip.images.sources import ImageSource, describe_source
from openblip.matching.matcher import Matcher
from openblip.matching.methods import BATCH_SIZE, Matching, listed
from openblip.models.encoded_image import DEFAULT_BYTES, ImageCache, SeenImage
from openblip.models.text_options import answer_options, caption_options, read_text
from openblip.nn.efficientnet import EfficientNet
from openblip.nn.language_model import LanguageModel
from openblip.nn.quant.swap import prepare_layers
from openblip.results import Captioned, GeneratedText
from openblip.text import Pieces, clean_question, text_pieces

if TYPE_CHECKING:
    from PIL.Image import Image
    from typing_extensions import Unpack

    from openblip.models.chat import Chat


SHARED_FROM = 3
"""Questions about one image from which reading its visual prompt once saves more than a larger batch does: the prompt
is longer than two questions."""


def load(
    name: str | Path = DEFAULT_MODEL,
    *,
    checkpoint: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    adapter: str | Path | None = None,
    tokenizer: str | Path | None = None,
    image_cache: int = DEFAULT_BYTES,
) -> Blip2:
    """Load a model by name, or from a folder that OpenBLIP or transformers wrote.

    Args:
        name: "mini", which is in the package; an official BLIP-2 (`openblip models`), whose files are downloaded
            if they are not on this machine; a repository of the hub; or a folder. One that holds an adapter alone
            stands for the model that it was trained on, with the adapter.
        checkpoint: a `.pth` that LAVIS saved, read instead of the official one of a LAVIS name.
        device: "cpu", "cuda", "cuda:1"; by default CUDA where there is one.
        dtype: "float32", "bfloat16" or "float16"; "int8" quantises large matrices as they are read, for a quarter of
            the memory and several times the speed on a CPU, "int4" those of the language model further; by default
            what the device computes fast.
        adapter: a folder, or a repository of the hub, with low-rank adapters (LoRA) as peft writes them; they are
            merged into the weights before these are cast or quantised.
        tokenizer: a model's folder or name, whose vocabulary is read for a folder of transformers that has none, as
            the checkpoints of its Trainer.
        image_cache: bytes of memory, on the device, for what was computed of the images seen last, so that captions,
            answers and chats about one of them again need not look at it; 0 switches it off.

    Raises:
        CheckpointError: no such model, its files are broken, or the adapter does not fit it.
        DownloadError: its files cannot be had.
        OptionError: an unknown device or type, or a negative number of bytes.
    """
    placement = choose_placement(device, dtype)
    own = None if checkpoint is None else Path(checkpoint)
    parts = load_parts(
        name,
        checkpoint=own,
        dtype=placement.dtype,
        device=placement.device,
        bits=placement.bits,
        adapter=adapter,
        tokenizer=tokenizer,
    )
    return Blip2(parts, placement, image_cache)


class Blip2(Matching):
    """A loaded model. Make one with `openblip.load`.

    Images may be paths, http(s) addresses, bytes, PIL images or arrays (see `openblip.images.decode.load_image`);
    one that cannot be read raises ImageError, which names it. Methods that generate text take the options
    of `openblip.generation.options.TextOptions` by keyword, and raise OptionError for wrong ones.

    Attributes:
        image_cache: of the images seen last; `clear` it after changing weights.
    """

    def __init__(self, parts: ModelParts, placement: Placement, image_cache: int = DEFAULT_BYTES) -> None:
        self.parts = parts
        self.placement = placement
        self.image_cache = ImageCache(image_cache)
        tell_substitution(placement.device, placement.dtype)
        self.network = parts.network.to(device=placement.device, dtype=placement.dtype).eval()
        self.network.requires_grad_(False)
        prepare_layers(self.network)
        if isinstance(self.network.vision, EfficientNet):
            self.network.vision.fold()
            if placement.convolutions is not None:
                self.network.vision.compute_in(placement.convolutions)
        # Launching a step's many kernels one by one is what costs time on a GPU; on a CPU there is nothing to launch.
        captured = placement.device.type == "cuda" and self.network.config.own_language is not None
        self.graphs = Graphs(self.network.own_language_model) if captured else None

    def __repr__(self) -> str:
        return f"Blip2({self.name!r}, device={self.placement.device}, dtype={self.placement.dtype})"

    @property
    def name(self) -> str:
        """The name or folder that it was loaded from."""
        return self.parts.name

    @property
    def language_model(self) -> LanguageModel:
        """The one that writes."""
        return self.network.language_model if self.graphs is None else self.graphs

    @overload
    def caption(
        self,
        image: ImageSource,
        *,
        prompt: str | None = None,
        stream: Literal[False] = False,
        **options: Unpack[TextOptions],
    ) -> str: ...
    @overload
    def caption(
        self,
        image: ImageSource,
        *,
        prompt: str | None = None,
        stream: Literal[True],
        **options: Unpack[TextOptions],
    ) -> Pieces: ...
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
        stream: bool = False,
        **options: Unpack[TextOptions],
    ) -> str | list[str] | list[list[str]] | Pieces:
        """Describe an image, or each of a list of images.

        Args:
            num_captions: given, each image gets a list of that many captions, best first.
            prompt: how the caption begins ("a photo of"); it is not repeated in the result.
            stream: give the pieces of one caption as they are written: greedily, unless options draw at random.
            options: see `TextOptions`.
        """
        if stream:
            if isinstance(image, list) or num_captions is not None:
                raise OptionError("one caption of one image can be streamed: leave out num_captions, give one image")
            return self._stream_caption(image, prompt, options)
        sources = image if isinstance(image, list) else [image]
        texts = []
        for captioned in self.caption_many(
            sources,
            num_captions=1 if num_captions is None else num_captions,
            prompt=prompt,
            **options,
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

        An image that cannot be read gives a result with its error; the others are not affected. Images are taken
        from the iterable and read in threads, a few batches ahead of the model.
        """
        chosen = caption_options(self.parts, options, num_captions)
        text = self.parts.prompts.caption if prompt is None else prompt
        for batch in pixel_batches(listed(images), self.parts.transform, batch_size):
            yield from self._caption_batch(batch, text, chosen)

    @overload
    def ask(
        self, image: ImageSource, question: str, *, stream: Literal[False] = False, **options: Unpack[TextOptions]
    ) -> str: ...
    @overload
    def ask(
        self, image: ImageSource, question: str, *, stream: Literal[True], **options: Unpack[TextOptions]
    ) -> Pieces: ...
    @overload
    def ask(self, image: ImageSource, question: list[str], **options: Unpack[TextOptions]) -> list[str]: ...

    def ask(
        self, image: ImageSource, question: str | list[str], *, stream: bool = False, **options: Unpack[TextOptions]
    ) -> str | list[str] | Pieces:
        """Answer a question about an image, or several, for which the image is looked at once.

        Args:
            stream: give the pieces of one answer as they are written: greedily, unless options draw at random.
            options: see `TextOptions`.
        """
        if stream:
            if isinstance(question, list):
                raise OptionError("one answer at a time can be streamed: give one question")
            asked = self._question(question)
            answer_options(self.parts, options, stream=True)  # wrong ones are told before the image is looked at
            return self.stream(self.look(image), asked, **options)
        questions = question if isinstance(question, list) else [question]
        answers = [answer.text for answer in self.answer(image, questions, **options)]
        return answers if isinstance(question, list) else answers[0]

    def answer(
        self, image: ImageSource, questions: Sequence[str], **options: Unpack[TextOptions]
    ) -> list[GeneratedText]:
        """As `ask`, with scores and token log-probabilities."""
        prompts = [self._question(question) for question in listed(questions)]
        return self.complete(self.look(image), prompts, **options)

    def chat(self, image: ImageSource) -> Chat:
        """Start a conversation about an image, which is looked at once."""
        from openblip.models.chat import Chat

        return Chat(self, image)

    def complete(
        self, image: SeenImage | Tensor, prompts: Sequence[str], **options: Unpack[TextOptions]
    ) -> list[GeneratedText]:
        """Go on from prompts behind one image, as answers do: what they share is read once.

        Args:
            image: what `look` gave, or a visual prompt [Q, token width].
        """
        chosen = answer_options(self.parts, options)
        prefix = self._prefix(image)
        with torch.inference_mode(), self._kept(image):
            found = generate(self.language_model, [self._embed(prompt) for prompt in prompts], chosen, prefix=prefix)
        return [read_text(self.parts, texts[0]) for texts in found]

    def answer_many(
        self,
        asked: Sequence[tuple[ImageSource, Sequence[str]]],
        *,
        frame: str | None = None,
        **options: Unpack[TextOptions],
    ) -> list[list[GeneratedText]]:
        """As `answer` for several images with questions of their own, looked at and answered together.

        Few questions about each of many images are one batch; many about one share its visual prompt instead.

        Args:
            asked: images, each with the questions about it.
            frame: what questions stand in, with {question} in it; None is the model's own prompt.

        Raises:
            ImageError: an image cannot be read.
            OptionError: a question is empty, or an option out of range.
        """
        chosen = answer_options(self.parts, options)
        self.parts.require_words()

        def framed(question: str) -> str:
            return self._question(question) if frame is None else frame.replace("{question}", clean_question(question))

        prompts = [[framed(question) for question in listed(questions)] for _, questions in asked]
        seen = self._look([load_image(image) for image, _ in asked]) if asked else []
        with torch.inference_mode():
            rows = [
                self._join(one.prefix.embeds, prompt)
                for one, own in zip(seen, prompts, strict=True)
                for prompt in own
                if len(own) < SHARED_FROM
            ]
            found = iter(generate(self.language_model, rows, chosen))
        return [
            self.complete(one, own, **options)
            if len(own) >= SHARED_FROM
            else [read_text(self.parts, next(found)[0]) for _ in own]
            for one, own in zip(seen, prompts, strict=True)
        ]

    def stream(self, image: SeenImage | Tensor, prompt: str, **options: Unpack[TextOptions]) -> Pieces:
        """As `complete` for one prompt, greedily or drawn at random: the pieces of the text as they are written.

        The image and the prompt are read now, so what is wrong with them is said now; closing the iterator, or letting
        go of it, ends the writing.
        """
        chosen = answer_options(self.parts, options, stream=True)
        prefix = self._prefix(image)
        with torch.inference_mode(), self._kept(image):
            tokens = stream(self.language_model, self._embed(prompt), chosen, prefix)
        return text_pieces(self.parts.require_words(), tokens)

    def fits(self, prompt: str, max_new_tokens: int | None = None) -> bool:
        """Whether a prompt and an answer (of usual length by default) fit the language model's positions.

        T5 has no positions, and everything fits.
        """
        read = self.network.config.qformer.num_queries + len(self.parts.prompt_ids(prompt))
        answer = answer_options(self.parts, {}).max_new_tokens if max_new_tokens is None else max_new_tokens
        return fits(self.language_model.config, read, answer)

    def look(self, image: ImageSource) -> SeenImage:
        """Look at an image, to `complete` any number of prompts behind it."""
        self.parts.require_words()
        return self._look([load_image(image)])[0]

    def visual_prompt(self, image: ImageSource) -> Tensor:
        """What the language model reads of an image: [Q, token width]."""
        return self.look(image).prefix.embeds.clone()

    def _caption_batch(self, batch: PixelBatch, prompt: str, options: GenerationOptions) -> list[Captioned]:
        captions: list[list[Generation]] = []
        if len(batch.pixels):
            with torch.inference_mode():
                seen = self.image_cache.look(batch.pixels, self._see)
                rows = [self._join(one.prefix.embeds, prompt) for one in seen]
                captions = generate(self.language_model, rows, options, self._begun(prompt, options, len(rows)))
        return [
            Captioned(describe_source(source), error=found)
            if isinstance(found, ImageError)
            else Captioned(describe_source(source), tuple(read_text(self.parts, text) for text in found))
            for source, found in batch.join(captions)
        ]

    def _stream_caption(self, image: ImageSource, prompt: str | None, options: TextOptions) -> Pieces:
        chosen = caption_options(self.parts, options, 1, stream=True)
        seen = self.look(image)
        with torch.inference_mode():
            text = self.parts.prompts.caption if prompt is None else prompt
            begun = self._begun(text, chosen, 1)
            row = self._join(seen.prefix.embeds, text)
            tokens = stream(self.language_model, row, chosen, prompt_ids=None if begun is None else begun[0])
        return text_pieces(self.parts.require_words(), tokens)

    def _begun(self, prompt: str, options: GenerationOptions, count: int) -> list[Tensor] | None:
        """The ids of a prompt that captions go on from, where its words must not occur again."""
        if not options.no_repeat_words:
            return None
        return [torch.tensor(self.parts.prompt_ids(prompt), device=self.placement.device)] * count

    def image_features(self, images: Sequence[Image]) -> Tensor:
        """Features [B, N, image width] of checked images, as the Q-Former reads them."""
        return self._features(to_pixels(images, self.parts.transform))

    def _features(self, pixels: Tensor) -> Tensor:
        return self.network.image_features(pixels.to(self.placement.device, self.placement.dtype))

    @torch.inference_mode()
    def _look(self, images: Sequence[Image]) -> list[SeenImage]:
        """The visual prompts of checked images, of which those alone are computed that are not kept."""
        return self.image_cache.look(to_pixels(images, self.parts.transform), self._see)

    def _see(self, pixels: Tensor) -> list[Prefix]:
        visual = self.network.visual_prompt(self._features(pixels))
        # Cloned: a row of the batch would keep the memory of all of it.
        return [Prefix(self.language_model, row.clone()) for row in visual]

    def _join(self, visual_prompt: Tensor, prompt: str) -> Tensor:
        """What the language model reads: embeddings [T, token width] of visual tokens and words."""
        return torch.cat([visual_prompt, self._embed(prompt)])

    def _embed(self, prompt: str) -> Tensor:
        ids = torch.tensor(self.parts.prompt_ids(prompt), device=self.placement.device)
        return self.language_model.embed(ids)

    def _prefix(self, image: SeenImage | Tensor) -> Prefix:
        return image.prefix if isinstance(image, SeenImage) else Prefix(self.language_model, image)

    @contextmanager
    def _kept(self, image: SeenImage | Tensor) -> Iterator[None]:
        """Keep an image that was seen, whose keys and values may be computed meanwhile."""
        try:
            yield
        finally:
            if isinstance(image, SeenImage):
                self.image_cache.keep(image)

    def _question(self, question: str) -> str:
        """The prompt of a question. Raises OptionError when nothing is asked."""
        asked = clean_question(question)
        if asked == "?":
            raise OptionError("the question is empty: ask something about the image")
        return self.parts.prompts.ask(asked)

    def _stop_id(self) -> int:
        return self.parts.stop_id

    def _matcher(self) -> Matcher:
        if self.parts.matching is None:
            raise CheckpointError(f"the model {self.name} has no text side: it can caption and answer only")
        return Matcher(self.network, self.parts.matching, self.parts.transform)
