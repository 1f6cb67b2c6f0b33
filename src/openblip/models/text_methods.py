"""The methods of `openblip.Model` that generate text. The class takes them over; `self` is the model."""

# Overloads are tried in order: a path or an open file is one image although it can be iterated over, and a str is one
# text. mypy warns of this overlap, which is meant.
# mypy: disable-error-code="overload-overlap"

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, cast, overload

from openblip.errors import ImageError, OptionError, is_several, whole_number, yes_or_no
from openblip.generation.options import ResolvedOptions
from openblip.images.encoded_image import ImageInput
from openblip.images.sources import image_list, is_one_image
from openblip.models.abilities import writer_of
from openblip.models.signatures import BATCH_SIZE, Images, No, Texts, Yes
from openblip.models.writer import Writer
from openblip.results import Answered, Captioned, GeneratedText
from openblip.text import Pieces, one_text, text_list

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from openblip.generation.options import TextOptions
    from openblip.models.abilities import Composed
    from openblip.models.signatures import (
        AskOptions,
        CaptionOptions,
        GenerateOptions,
        StreamedAskOptions,
        StreamedCaptionOptions,
        StreamedGenerateOptions,
    )

PAIRS = "ask_many takes pairs of an image and the question or questions about it, not"


@overload
def caption(
    self: Composed,
    images: ImageInput,
    *,
    num_captions: None = None,
    details: No = False,
    **options: Unpack[CaptionOptions],
) -> str: ...
@overload
def caption(
    self: Composed, images: ImageInput, *, num_captions: int, details: No = False, **options: Unpack[CaptionOptions]
) -> list[str]: ...
@overload
def caption(
    self: Composed, images: ImageInput, *, num_captions: None = None, details: Yes, **options: Unpack[CaptionOptions]
) -> GeneratedText: ...
@overload
def caption(
    self: Composed, images: ImageInput, *, num_captions: int, details: Yes, **options: Unpack[CaptionOptions]
) -> list[GeneratedText]: ...
@overload
def caption(
    self: Composed, images: ImageInput, *, stream: Yes, **options: Unpack[StreamedCaptionOptions]
) -> Pieces: ...
@overload
def caption(
    self: Composed, images: Images, *, num_captions: None = None, details: No = False, **options: Unpack[CaptionOptions]
) -> list[str]: ...
@overload
def caption(
    self: Composed, images: Images, *, num_captions: int, details: No = False, **options: Unpack[CaptionOptions]
) -> list[list[str]]: ...
@overload
def caption(
    self: Composed, images: Images, *, num_captions: None = None, details: Yes, **options: Unpack[CaptionOptions]
) -> list[GeneratedText]: ...
@overload
def caption(
    self: Composed, images: Images, *, num_captions: int, details: Yes, **options: Unpack[CaptionOptions]
) -> list[list[GeneratedText]]: ...
def caption(
    self: Composed,
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
        prompt: how the caption begins ("a photo of"); the result does not repeat it.
        num_captions: each image gets a list of that many captions, best first, even if it is 1.
        stream: return an iterator of the pieces of one image's caption, as they are written. The search is greedy
            unless the options sample.
        batch_size: images that are encoded and captioned together.
        details: return a `GeneratedText` with scores and tokens instead of each str.
        options: see `openblip.GenerationOptions`.

    Returns:
        A str; a list of str with `num_captions` or of several images; a list of lists with both.

    Raises:
        ImageError: an image cannot be read.
        OptionError: an option is unknown or out of range.
    """
    writer, details = writer_of(self, "caption"), yes_or_no("details", details)
    if yes_or_no("stream", stream) and (num_captions is not None or details or not is_one_image(images)):
        raise OptionError(
            "one caption of one image can be streamed: leave out num_captions and details, give one image"
        )
    count = 1 if num_captions is None else num_captions
    chosen = writer.options(options, self.parts.defaults.captions, texts=count, stream=stream, method=caption)
    text = _caption_prompt(self, prompt)
    if stream:
        return writer.stream(writer.encoder.encode(cast(ImageInput, images)), text, chosen, caption=True)

    def pick(texts: list[list[GeneratedText]]) -> Any:
        captions = [one if details else one.text for one in texts[0]]
        return captions[0] if num_captions is None else captions

    return _write(writer, images, [text], str, chosen, batch_size, pick, caption=True)


def caption_many(
    self: Composed,
    images: ImageInput | Images,
    *,
    prompt: str | None = None,
    num_captions: int = 1,
    batch_size: int = BATCH_SIZE,
    **options: Unpack[TextOptions],
) -> Iterator[Captioned]:
    """Describe any number of images: one result each, in order, as batches are done.

    An image that cannot be read gives a result with its error; the others are not affected. Images are taken
    from the iterable and read in threads, a few batches ahead of the model.
    """
    writer = writer_of(self, "caption")
    chosen = writer.options(options, self.parts.defaults.captions, texts=num_captions, method=caption_many)
    text = _caption_prompt(self, prompt)
    pairs = ((image, [text]) for image in image_list(images))
    found = writer.write_many(pairs, chosen, batch_size, caption=True)
    return (
        Captioned(source, error=texts) if isinstance(texts, ImageError) else Captioned(source, tuple(texts[0]))
        for source, _, texts in found
    )


def _caption_prompt(self: Composed, prompt: str | None) -> str:
    return self.parts.prompts.caption if prompt is None else one_text(prompt, "the prompt")


@overload
def ask(
    self: Composed, images: ImageInput, questions: str, *, details: No = False, **options: Unpack[AskOptions]
) -> str: ...
@overload
def ask(
    self: Composed, images: ImageInput, questions: Texts, *, details: No = False, **options: Unpack[AskOptions]
) -> list[str]: ...
@overload
def ask(
    self: Composed, images: ImageInput, questions: str, *, details: Yes, **options: Unpack[AskOptions]
) -> GeneratedText: ...
@overload
def ask(
    self: Composed, images: ImageInput, questions: Texts, *, details: Yes, **options: Unpack[AskOptions]
) -> list[GeneratedText]: ...
@overload
def ask(
    self: Composed, images: ImageInput, questions: str, *, stream: Yes, **options: Unpack[StreamedAskOptions]
) -> Pieces: ...
@overload
def ask(
    self: Composed, images: Images, questions: str, *, details: No = False, **options: Unpack[AskOptions]
) -> list[str]: ...
@overload
def ask(
    self: Composed, images: Images, questions: Texts, *, details: No = False, **options: Unpack[AskOptions]
) -> list[list[str]]: ...
@overload
def ask(
    self: Composed, images: Images, questions: str, *, details: Yes, **options: Unpack[AskOptions]
) -> list[GeneratedText]: ...
@overload
def ask(
    self: Composed, images: Images, questions: Texts, *, details: Yes, **options: Unpack[AskOptions]
) -> list[list[GeneratedText]]: ...
def ask(
    self: Composed,
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
        template: the prompt around a question, with {question} in it; by default the model's own.
        stream: return an iterator of the pieces of one answer about one image, as they are written. The search is
            greedy unless the options sample.
        batch_size: images that are encoded together.
        details: return a `GeneratedText` with scores and tokens instead of each str.
        options: see `openblip.GenerationOptions`.

    Returns:
        A str; a list of str for several questions or several images; a list for each image for both.

    Raises:
        ImageError: an image cannot be read.
        OptionError: a question is empty, or an option is unknown or out of range.
    """
    writer = writer_of(self, "ask")
    chosen = writer.options(options, self.parts.defaults.answers, stream=stream, method=ask)
    prompt_of = partial(writer.question, template=template)
    return _answer(writer, images, questions, prompt_of, chosen, batch_size, details, stream)


def ask_many(
    self: Composed,
    pairs: Iterable[tuple[ImageInput, str | Texts]],
    *,
    template: str | None = None,
    batch_size: int = BATCH_SIZE,
    **options: Unpack[TextOptions],
) -> Iterator[Answered]:
    """Answer questions about any number of images: one result for each image, in order, as batches are done.

    An image that cannot be read gives a result with its error. A few questions about each of many images are one
    batch; many questions about one image share what the language model reads of it.

    Args:
        pairs: pairs of an image and the question or questions about it.
        template: the prompt around a question, with {question} in it; by default the model's own.
        batch_size: images that are encoded together.

    Raises:
        OptionError: a question is empty, or an option is unknown or out of range.
    """
    writer = writer_of(self, "ask")
    chosen = writer.options(options, self.parts.defaults.answers, method=ask_many)
    if not is_several(pairs):
        raise OptionError(f"{PAIRS} {str(pairs)[:100]}")
    prompt_of = partial(writer.question, template=template)
    found = writer.write_many(_pairs(pairs), chosen, batch_size, prompt_of=prompt_of)
    return (
        Answered(source, tuple(own), error=texts)
        if isinstance(texts, ImageError)
        else Answered(source, tuple(own), tuple(best for best, *_ in texts))
        for source, own, texts in found
    )


def _pairs(pairs: Iterable[Any]) -> Iterator[tuple[ImageInput, list[str]]]:
    for pair in pairs:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise OptionError(f"{PAIRS} {str(pair)[:100]}")
        yield pair[0], text_list(pair[1], "the questions")


@overload
def generate(
    self: Composed, images: ImageInput, prompts: str, *, details: No = False, **options: Unpack[GenerateOptions]
) -> str: ...
@overload
def generate(
    self: Composed, images: ImageInput, prompts: Texts, *, details: No = False, **options: Unpack[GenerateOptions]
) -> list[str]: ...
@overload
def generate(
    self: Composed, images: ImageInput, prompts: str, *, details: Yes, **options: Unpack[GenerateOptions]
) -> GeneratedText: ...
@overload
def generate(
    self: Composed, images: ImageInput, prompts: Texts, *, details: Yes, **options: Unpack[GenerateOptions]
) -> list[GeneratedText]: ...
@overload
def generate(
    self: Composed, images: ImageInput, prompts: str, *, stream: Yes, **options: Unpack[StreamedGenerateOptions]
) -> Pieces: ...
@overload
def generate(
    self: Composed, images: Images, prompts: str, *, details: No = False, **options: Unpack[GenerateOptions]
) -> list[str]: ...
@overload
def generate(
    self: Composed, images: Images, prompts: Texts, *, details: No = False, **options: Unpack[GenerateOptions]
) -> list[list[str]]: ...
@overload
def generate(
    self: Composed, images: Images, prompts: str, *, details: Yes, **options: Unpack[GenerateOptions]
) -> list[GeneratedText]: ...
@overload
def generate(
    self: Composed, images: Images, prompts: Texts, *, details: Yes, **options: Unpack[GenerateOptions]
) -> list[list[GeneratedText]]: ...
def generate(
    self: Composed,
    images: ImageInput | Images,
    prompts: str | Texts,
    *,
    stream: bool = False,
    batch_size: int = BATCH_SIZE,
    details: bool = False,
    **options: Unpack[TextOptions],
) -> Any:
    """Continue a prompt about an image, which is read word for word; several give lists, as for `ask`.

    Options that you leave out are those of answers, or of captions for a model that writes captions alone.

    Args:
        stream: return an iterator of the pieces of one text, as they are written. The search is greedy unless the
            options sample.
        batch_size: images that are encoded together.
        details: return a `GeneratedText` with scores and tokens instead of each str.
        options: see `openblip.GenerationOptions`.

    Returns:
        A str; a list of str for several prompts or several images; a list for each image for both.

    Raises:
        ImageError: an image cannot be read.
        OptionError: an option is unknown or out of range.
    """
    captions = "caption" in self.abilities and "ask" not in self.abilities
    writer = writer_of(self, "caption" if captions else "ask")
    usual = self.parts.defaults.captions if captions else self.parts.defaults.answers
    chosen = writer.options(options, usual, stream=stream, method=generate)
    return _answer(writer, images, prompts, str, chosen, batch_size, details, stream)


def _answer(
    writer: Writer,
    images: ImageInput | Images,
    texts: str | Texts,
    prompt_of: Callable[[str], str],
    options: ResolvedOptions,
    batch_size: int,
    details: bool,
    stream: bool,
) -> Any:
    details = yes_or_no("details", details)
    if stream:
        if not isinstance(texts, str) or details or not is_one_image(images):
            raise OptionError("one text about one image can be streamed: give one image and one text, and no details")
        prompt = prompt_of(texts)  # a wrong one is an error before the image is encoded
        return writer.stream(writer.encoder.encode(cast(ImageInput, images)), prompt, options)

    def pick(answers: list[list[GeneratedText]]) -> Any:
        row = [best if details else best.text for best, *_ in answers]
        return row[0] if isinstance(texts, str) else row

    return _write(writer, images, text_list(texts), prompt_of, options, batch_size, pick)


def _write(
    writer: Writer,
    images: ImageInput | Images,
    texts: list[str],
    prompt_of: Callable[[str], str],
    options: ResolvedOptions,
    batch_size: int,
    pick: Callable[[list[list[GeneratedText]]], Any],
    *,
    caption: bool = False,
) -> Any:
    """What is picked of an image's generated texts, or of those of each of several; the first error is raised."""
    whole_number("batch_size", batch_size, 1)
    if is_one_image(images):
        prompts = [prompt_of(text) for text in texts]
        image = writer.encoder.encode(cast(ImageInput, images))
        return pick(writer.write([image], [prompts], options, caption=caption)[0])
    rows = []
    pairs = ((image, texts) for image in cast(Images, images))
    for _, _, found in writer.write_many(pairs, options, batch_size, prompt_of=prompt_of, caption=caption):
        if isinstance(found, ImageError):
            raise found
        rows.append(pick(found))
    return rows
