"""What a user holds: one object that captions, answers, matches and embeds, whatever family it is of."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, cast, overload

import torch
from torch import Tensor

from openblip.checkpoints.model_parts import ModelParts
from openblip.checkpoints.openblip.folder import save_native
from openblip.checkpoints.openblip.new_folder import new_folder
from openblip.devices import Placement
from openblip.errors import ImageError, OptionError
from openblip.images.encoded_image import EncodedImage, ImageCache, ImageInput, image_list, is_one
from openblip.matching import ranking
from openblip.matching.matcher import Matcher
from openblip.matching.ranking import Search
from openblip.models.abilities import Ability, Components, require
from openblip.models.text_options import answer_options, caption_options
from openblip.models.writer import Writer
from openblip.results import Answered, Captioned, Embedded, GeneratedText, Match, Matched, Ranked, Rankings, Scores
from openblip.text import Pieces, text_list

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from openblip.generation.options import TextOptions
    from openblip.matching.ranking import SearchOptions
    from openblip.models.chat import Chat

BATCH_SIZE = 8
Images: TypeAlias = "list[Any] | tuple[Any, ...] | set[Any] | Iterator[Any]"
"""Several images. Anything else that can be gone through will do, too."""
Texts: TypeAlias = "list[str] | tuple[str, ...] | set[str] | Iterator[str]"
"""Several texts."""

Item = TypeVar("Item")


class Model:
    """A loaded model. Make one with `openblip.load`.

    Images may be paths, http(s) addresses, bytes, PIL images or arrays (see `openblip.load_image`), or what
    `encode_image` gave; one that cannot be read raises ImageError, which names it. One image gives one result; a list,
    a tuple or any other iterable of images gives a list. Methods that generate text take the options of
    `openblip.GenerationOptions` by keyword, and raise OptionError for wrong ones. What the model cannot do, see
    `abilities`, raises CheckpointError.

    Attributes:
        network: the module with the weights.
        image_cache: encoded images; `clear` it after changing weights.
        abilities: what it can do: "caption", "ask", "chat", "match", "embed", "classify".
    """

    def __init__(self, parts: ModelParts, placement: Placement, components: Components) -> None:
        self.parts = parts
        self.placement = placement
        self.components = components
        self.network = parts.network
        self.abilities = components.abilities

    def __repr__(self) -> str:
        return f"Model({self.name!r}, family={self.family!r}, device={str(self.device)!r}, dtype={self.dtype})"

    @property
    def name(self) -> str:
        """The name or folder that it was loaded from."""
        return self.parts.name

    @property
    def family(self) -> str:
        """Of models that are built alike: "blip2"."""
        return self.parts.family

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.placement.device

    @property
    def dtype(self) -> torch.dtype:
        """In which it computes what is not quantised."""
        return self.placement.dtype

    @property
    def image_cache(self) -> ImageCache:
        """The encoded images used last, whose memory has a limit."""
        return self.components.encoder.cache

    def encode_image(self, image: ImageInput) -> EncodedImage:
        """Encode an image once, to give it to any method any number of times."""
        return self.components.encoder.encode(image)

    @overload
    def caption(
        self,
        images: Images,
        *,
        num_captions: int,
        details: Literal[True],
        prompt: str | None = None,
        batch_size: int = BATCH_SIZE,
        **options: Unpack[TextOptions],
    ) -> list[list[GeneratedText]]: ...
    @overload
    def caption(
        self,
        images: Images,
        *,
        details: Literal[True],
        prompt: str | None = None,
        batch_size: int = BATCH_SIZE,
        **options: Unpack[TextOptions],
    ) -> list[GeneratedText]: ...
    @overload
    def caption(
        self,
        images: Images,
        *,
        num_captions: int,
        prompt: str | None = None,
        batch_size: int = BATCH_SIZE,
        **options: Unpack[TextOptions],
    ) -> list[list[str]]: ...
    @overload
    def caption(
        self,
        images: Images,
        *,
        prompt: str | None = None,
        batch_size: int = BATCH_SIZE,
        **options: Unpack[TextOptions],
    ) -> list[str]: ...
    @overload
    def caption(
        self, images: ImageInput, *, stream: Literal[True], prompt: str | None = None, **options: Unpack[TextOptions]
    ) -> Pieces: ...
    @overload
    def caption(
        self,
        images: ImageInput,
        *,
        num_captions: int,
        details: Literal[True],
        prompt: str | None = None,
        **options: Unpack[TextOptions],
    ) -> list[GeneratedText]: ...
    @overload
    def caption(
        self, images: ImageInput, *, details: Literal[True], prompt: str | None = None, **options: Unpack[TextOptions]
    ) -> GeneratedText: ...
    @overload
    def caption(
        self, images: ImageInput, *, num_captions: int, prompt: str | None = None, **options: Unpack[TextOptions]
    ) -> list[str]: ...
    @overload
    def caption(self, images: ImageInput, *, prompt: str | None = None, **options: Unpack[TextOptions]) -> str: ...

    def caption(
        self,
        images: ImageInput | Images,
        *,
        prompt: str | None = None,
        num_captions: int | None = None,
        stream: bool = False,
        batch_size: int = BATCH_SIZE,
        details: bool = False,
        **options: Unpack[TextOptions],
    ) -> Any:
        """Describe an image, or each of several.

        Args:
            prompt: how the caption begins ("a photo of"); it is not repeated in the result.
            num_captions: given, each image gets a list of that many captions, best first.
            stream: give the pieces of the caption of one image as they are written: greedily, unless options sample.
            batch_size: images that are encoded and captioned together.
            details: a `GeneratedText` with scores and tokens instead of each str.
            options: see `openblip.GenerationOptions`.

        Raises:
            ImageError: an image cannot be read.
        """
        one = is_one(images)
        if stream:
            if not one or num_captions is not None or details:
                raise OptionError(
                    "one caption of one image can be streamed: leave out num_captions and details, give one image"
                )
            return self._stream_caption(cast(ImageInput, images), prompt, options)
        rows = []
        for captioned in self.caption_many(
            image_list(images), prompt=prompt, num_captions=num_captions or 1, batch_size=batch_size, **options
        ):
            if captioned.error is not None:
                raise captioned.error
            rows.append([text if details else text.text for text in captioned.captions])
        found = rows if num_captions is not None else [row[0] for row in rows]
        return found[0] if one else found

    def caption_many(
        self,
        images: ImageInput | Iterable[ImageInput],
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
        writer = self._writer("caption")
        chosen = caption_options(self.parts, options, num_captions)
        text = self.parts.prompts.caption if prompt is None else prompt
        return self._caption_batches(writer, image_list(images), text, chosen, batch_size)

    def _caption_batches(
        self, writer: Writer, images: Iterable[ImageInput], prompt: str, options: Any, batch_size: int
    ) -> Iterator[Captioned]:
        for batch in self.components.encoder.batches(images, batch_size):
            found = writer.captions(batch.images, prompt, options) if batch.images else []
            for source, texts in batch.join(found):
                if isinstance(texts, ImageError):
                    yield Captioned(source, error=texts)
                else:
                    yield Captioned(source, tuple(texts))

    def _stream_caption(self, image: ImageInput, prompt: str | None, options: TextOptions) -> Pieces:
        writer = self._writer("caption")
        chosen = caption_options(self.parts, options, 1, stream=True)
        text = self.parts.prompts.caption if prompt is None else prompt
        return writer.stream(self.encode_image(image), text, chosen, caption=True)

    @overload
    def ask(
        self,
        images: Images,
        questions: Texts,
        *,
        details: Literal[True],
        template: str | None = None,
        batch_size: int = BATCH_SIZE,
        **options: Unpack[TextOptions],
    ) -> list[list[GeneratedText]]: ...
    @overload
    def ask(
        self,
        images: Images,
        questions: str,
        *,
        details: Literal[True],
        template: str | None = None,
        batch_size: int = BATCH_SIZE,
        **options: Unpack[TextOptions],
    ) -> list[GeneratedText]: ...
    @overload
    def ask(
        self,
        images: Images,
        questions: Texts,
        *,
        template: str | None = None,
        batch_size: int = BATCH_SIZE,
        **options: Unpack[TextOptions],
    ) -> list[list[str]]: ...
    @overload
    def ask(
        self,
        images: Images,
        questions: str,
        *,
        template: str | None = None,
        batch_size: int = BATCH_SIZE,
        **options: Unpack[TextOptions],
    ) -> list[str]: ...
    @overload
    def ask(
        self,
        images: ImageInput,
        questions: str,
        *,
        stream: Literal[True],
        template: str | None = None,
        **options: Unpack[TextOptions],
    ) -> Pieces: ...
    @overload
    def ask(
        self,
        images: ImageInput,
        questions: Texts,
        *,
        details: Literal[True],
        template: str | None = None,
        **options: Unpack[TextOptions],
    ) -> list[GeneratedText]: ...
    @overload
    def ask(
        self,
        images: ImageInput,
        questions: str,
        *,
        details: Literal[True],
        template: str | None = None,
        **options: Unpack[TextOptions],
    ) -> GeneratedText: ...
    @overload
    def ask(
        self, images: ImageInput, questions: Texts, *, template: str | None = None, **options: Unpack[TextOptions]
    ) -> list[str]: ...
    @overload
    def ask(
        self, images: ImageInput, questions: str, *, template: str | None = None, **options: Unpack[TextOptions]
    ) -> str: ...

    def ask(
        self,
        images: ImageInput | Images,
        questions: str | Texts,
        *,
        template: str | None = None,
        stream: bool = False,
        batch_size: int = BATCH_SIZE,
        details: bool = False,
        **options: Unpack[TextOptions],
    ) -> Any:
        """Answer a question about an image; several questions give a list, several images a list of these.

        Args:
            template: what a question stands in, with {question} in it; by default the model's own.
            stream: give the pieces of one answer about one image as they are written: greedily, unless options sample.
            batch_size: images that are encoded together.
            details: a `GeneratedText` with scores and tokens instead of each str.
            options: see `openblip.GenerationOptions`.

        Raises:
            ImageError: an image cannot be read.
        """
        one, single = is_one(images), isinstance(questions, str)
        writer = self._writer("ask")
        if stream:
            if not one or not single or details:
                raise OptionError("one answer at a time can be streamed: give one image and one question, no details")
            prompt = writer.question(cast(str, questions), template)
            chosen = answer_options(self.parts, options, stream=True)  # checked before the image is encoded
            return writer.stream(self.encode_image(cast(ImageInput, images)), prompt, chosen)
        own = text_list(questions, "the questions")
        rows = []
        asked = ((image, own) for image in image_list(images))
        for answered in self.ask_many(asked, template=template, batch_size=batch_size, **options):
            if answered.error is not None:
                raise answered.error
            row = [answer if details else answer.text for answer in answered.answers]
            rows.append(row[0] if single else row)
        return rows[0] if one else rows

    def ask_many(
        self,
        asked: Iterable[tuple[ImageInput, str | Iterable[str]]],
        *,
        template: str | None = None,
        batch_size: int = BATCH_SIZE,
        **options: Unpack[TextOptions],
    ) -> Iterator[Answered]:
        """Answer questions about any number of images, one result an image in order, as batches are done.

        An image that cannot be read gives a result with its error. Few questions about each of many images are one
        batch; many about one image share what is read of it.

        Args:
            asked: images, each with the question or the questions about it.
            template: what questions stand in, with {question} in it; by default the model's own.
            batch_size: images that are encoded together.

        Raises:
            OptionError: a question is empty, or an option out of range.
        """
        writer = self._writer("ask")
        chosen = answer_options(self.parts, options)
        return self._ask_batches(writer, asked, template, chosen, batch_size)

    def _ask_batches(
        self,
        writer: Writer,
        asked: Iterable[tuple[ImageInput, str | Iterable[str]]],
        template: str | None,
        options: Any,
        batch_size: int,
    ) -> Iterator[Answered]:
        waiting: deque[list[str]] = deque()

        def images() -> Iterator[ImageInput]:
            for image, questions in asked:
                own = text_list(questions, "the questions")
                for question in own:
                    writer.question(question, template)  # a wrong one is an error before its image is read
                waiting.append(own)
                yield image

        for batch in self.components.encoder.batches(images(), batch_size):
            questions = [waiting.popleft() for _ in batch.sources]
            good = [own for own, error in zip(questions, batch.errors, strict=True) if error is None]
            prompts = [[writer.question(question, template) for question in own] for own in good]
            found = writer.texts_of_many(batch.images, prompts, options) if batch.images else []
            for own, (source, answers) in zip(questions, batch.join(found), strict=True):
                if isinstance(answers, ImageError):
                    yield Answered(source, tuple(own), error=answers)
                else:
                    yield Answered(source, tuple(own), tuple(answers))

    @overload
    def generate(
        self, images: ImageInput, prompts: str, *, stream: Literal[True], **options: Unpack[TextOptions]
    ) -> Pieces: ...
    @overload
    def generate(
        self, images: ImageInput, prompts: Texts, *, details: Literal[True], **options: Unpack[TextOptions]
    ) -> list[GeneratedText]: ...
    @overload
    def generate(
        self, images: ImageInput, prompts: str, *, details: Literal[True], **options: Unpack[TextOptions]
    ) -> GeneratedText: ...
    @overload
    def generate(self, images: ImageInput, prompts: Texts, **options: Unpack[TextOptions]) -> list[str]: ...
    @overload
    def generate(self, images: ImageInput, prompts: str, **options: Unpack[TextOptions]) -> str: ...
    @overload
    def generate(self, images: Images, prompts: str | Texts, **options: Any) -> list[Any]: ...

    def generate(
        self,
        images: ImageInput | Images,
        prompts: str | Texts,
        *,
        stream: bool = False,
        details: bool = False,
        **options: Any,
    ) -> Any:
        """Go on from a prompt behind an image, word for word as it is given; several give lists, as `ask` does.

        Options that are left out are those of answers.

        Args:
            stream: give the pieces of one text as they are written: greedily, unless options sample.
            details: a `GeneratedText` with scores and tokens instead of each str.
        """
        one, single = is_one(images), isinstance(prompts, str)
        writer = self._writer("ask")
        chosen = answer_options(self.parts, cast("TextOptions", options), stream=stream)
        if stream:
            if not one or not single or details:
                raise OptionError("one text at a time can be streamed: give one image and one prompt, no details")
            return writer.stream(self.encode_image(cast(ImageInput, images)), cast(str, prompts), chosen)
        own = text_list(prompts, "the prompts")
        rows: list[Any] = []
        for batch in self.components.encoder.batches(image_list(images), BATCH_SIZE):
            for texts in writer.texts_of_many(batch.whole(), [own for _ in batch.images], chosen):
                row = [text if details else text.text for text in texts]
                rows.append(row[0] if single else row)
        return rows[0] if one else rows

    def chat(self, image: ImageInput) -> Chat:
        """Start a conversation about an image, which is encoded once."""
        from openblip.models.chat import Chat

        return Chat(self._writer("chat"), self.encode_image(image))

    @overload
    def match(self, images: Images, texts: Texts, *, batch_size: int = BATCH_SIZE) -> list[list[Match]]: ...
    @overload
    def match(self, images: Images, texts: str, *, batch_size: int = BATCH_SIZE) -> list[Match]: ...
    @overload
    def match(self, images: ImageInput, texts: Texts, *, batch_size: int = BATCH_SIZE) -> list[Match]: ...
    @overload
    def match(self, images: ImageInput, texts: str, *, batch_size: int = BATCH_SIZE) -> Match: ...

    def match(self, images: ImageInput | Images, texts: str | Texts, *, batch_size: int = BATCH_SIZE) -> Any:
        """How well a text fits an image: ITM probability and ITC cosine. Several give lists, in the order given."""
        one, single = is_one(images), isinstance(texts, str)
        rows: list[Any] = []
        for matched in self.match_many(image_list(images), texts, batch_size=batch_size):
            if matched.error is not None:
                raise matched.error
            rows.append(matched.matches[0] if single else list(matched.matches))
        return rows[0] if one else rows

    def match_many(
        self, images: ImageInput | Iterable[ImageInput], texts: str | Iterable[str], *, batch_size: int = BATCH_SIZE
    ) -> Iterator[Matched]:
        """How well each text fits each of any number of images, one result an image in order, as batches are done.

        Images and texts are encoded once. An image that cannot be read gives a result with its error.
        """
        matcher, own = self.require_matcher("match"), text_list(texts)
        return self._match_batches(matcher, image_list(images), own, batch_size)

    def _match_batches(
        self, matcher: Matcher, images: Iterable[ImageInput], texts: Sequence[str], batch_size: int
    ) -> Iterator[Matched]:
        for row in matcher.score(images, texts, itm=True, batch_size=batch_size):
            if row.itc is None or row.itm is None:
                yield Matched(row.source, error=row.error)
            else:
                pairs = zip(texts, row.itm.tolist(), row.itc.tolist(), strict=True)
                yield Matched(row.source, tuple(Match(text, itm, itc) for text, itm, itc in pairs))

    def scores(
        self,
        images: ImageInput | Iterable[ImageInput],
        texts: str | Iterable[str],
        *,
        itm: bool = False,
        batch_size: int = BATCH_SIZE,
    ) -> Scores:
        """Every image against every text: cosines [N, M] and, asked for, ITM probabilities [N, M].

        Cosines cost one pass for each image and each text, probabilities a pass of the Q-Former for every pair.
        """
        return self.require_matcher("match").scores(
            image_list(images), text_list(texts), itm=itm, batch_size=batch_size
        )

    @overload
    def rank_images(
        self, query: str, images: Iterable[ImageInput], **options: Unpack[SearchOptions]
    ) -> list[Ranked]: ...
    @overload
    def rank_images(
        self, query: Texts, images: Iterable[ImageInput], **options: Unpack[SearchOptions]
    ) -> list[list[Ranked]]: ...

    def rank_images(
        self, query: str | Texts, images: Iterable[ImageInput], **options: Unpack[SearchOptions]
    ) -> list[Ranked] | list[list[Ranked]]:
        """The images that fit a text best, or each of several texts; each image is encoded once for all.

        Args:
            options: `top`, `rerank` and `batch_size`, see `openblip.matching.ranking.SearchOptions`.
        """
        matcher = self.require_matcher("match")
        found = ranking.rank_images(matcher, images, query, Search(**options))
        return found[0] if isinstance(query, str) else found

    @overload
    def rank_texts(
        self, images: Images, texts: Iterable[str], **options: Unpack[SearchOptions]
    ) -> list[list[Ranked]]: ...
    @overload
    def rank_texts(
        self, images: ImageInput, texts: Iterable[str], **options: Unpack[SearchOptions]
    ) -> list[Ranked]: ...

    def rank_texts(
        self, images: ImageInput | Images, texts: Iterable[str], **options: Unpack[SearchOptions]
    ) -> list[Ranked] | list[list[Ranked]]:
        """The texts that fit an image best, or each of several images; options as for `rank_images`."""
        found = ranking.rank_texts(self.require_matcher("match"), images, texts, Search(**options))
        return found[0] if is_one(images) else found

    def rank_both(
        self, images: Iterable[ImageInput], texts: Iterable[str], **options: Unpack[SearchOptions]
    ) -> Rankings:
        """`rank_images` and `rank_texts` at once, each image being encoded once, as retrieval is evaluated."""
        return ranking.rank_both(self.require_matcher("match"), images, texts, Search(**options))

    def embed_images(self, images: ImageInput | Iterable[ImageInput], *, batch_size: int = BATCH_SIZE) -> Tensor:
        """Unit vectors [N, Q, shared width] of images, float32 on the CPU; of one image [Q, shared width].

        The similarity of an image and a text is the largest of the Q dot products with the text's vector.
        """
        found = self.require_matcher("embed").embed_images(images, batch_size)
        return found[0] if is_one(images) else found

    def embed_images_many(
        self, images: ImageInput | Iterable[ImageInput], *, batch_size: int = BATCH_SIZE
    ) -> Iterator[Embedded]:
        """As `embed_images` for any number of images, one result each in order, as batches are done.

        An image that cannot be read gives a result with its error.
        """
        return self.require_matcher("embed").embed_many(images, batch_size)

    def embed_texts(self, texts: str | Iterable[str], *, batch_size: int = 64) -> Tensor:
        """Unit vectors [N, shared width] of texts, float32 on the CPU; of one text [shared width]."""
        found = self.require_matcher("embed").embed_texts(texts, batch_size)
        return found[0] if isinstance(texts, str) else found

    def save(self, folder: str | Path, *, storage: Literal["float32", "float16", "int8"] = "float32") -> Path:
        """Write a folder that `openblip.load` reads.

        Args:
            folder: must be empty or not exist yet.
            storage: of what is not quantised in memory: "float32", "float16" or "int8".

        Raises:
            OptionError: there is something in the folder, an unknown storage, or adapters in the network.
        """
        path = Path(folder)
        with new_folder(path) as place:
            save_native(self.parts, place, storage)
        return path

    def _writer(self, ability: Ability) -> Writer:
        require(self, ability)
        return cast(Writer, self.components.writer)

    def require_matcher(self, ability: Ability) -> Matcher:
        """What compares images and texts. Raises CheckpointError when the model lacks the ability."""
        require(self, ability)
        return cast(Matcher, self.components.matcher)
