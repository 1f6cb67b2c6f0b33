"""The methods of `openblip.Model` that generate text. The class takes them over; `self` is the model."""

# Overloads are tried in order: a path or an open file is one image although it can be iterated over, and a str is one
# text. mypy warns of this overlap, which is meant.
# mypy: disable-error-code="overload-overlap"

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, cast, overload

from openblip.errors import OptionError, yes_or_no
from openblip.generation.options import ResolvedOptions
from openblip.images.encoded_image import ImageInput, image_list, is_one
from openblip.models.abilities import writer_of
from openblip.models.signatures import BATCH_SIZE, Images, No, Texts, Yes, collect
from openblip.models.text_options import answer_options, caption_options
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
    one, count = is_one(images), 1 if num_captions is None else num_captions
    writer = writer_of(self, "caption")
    stream, details = yes_or_no("stream", stream), yes_or_no("details", details)
    if stream and (not one or num_captions is not None or details):
        raise OptionError(
            "one caption of one image can be streamed: leave out num_captions and details, give one image"
        )
    chosen = caption_options(self.parts, options, count, stream=stream, method=caption)
    text = _caption_prompt(self, prompt)
    if stream:
        return writer.stream(self.encode_image(cast(ImageInput, images)), text, chosen, caption=True)

    def pick(captioned: Captioned) -> Any:
        row = [text if details else text.text for text in captioned.captions]
        return row[0] if num_captions is None else row

    return collect(writer.caption_many(images, text, chosen, batch_size), pick, one)


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
    chosen = caption_options(self.parts, options, num_captions, method=caption_many)
    return writer.caption_many(images, _caption_prompt(self, prompt), chosen, batch_size)


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
    prompt_of = partial(writer_of(self, "ask").question, template=template)
    chosen = answer_options(self.parts, options, stream=stream, method=ask)
    if stream:
        return _stream(self, images, questions, details, prompt_of, chosen)
    return _texts(self, images, questions, details, prompt_of, chosen, batch_size)


def ask_many(
    self: Composed,
    asked: Iterable[tuple[ImageInput, str | Texts]],
    *,
    template: str | None = None,
    batch_size: int = BATCH_SIZE,
    **options: Unpack[TextOptions],
) -> Iterator[Answered]:
    """Answer questions about any number of images: one result for each image, in order, as batches are done.

    An image that cannot be read gives a result with its error. A few questions about each of many images are one
    batch; many questions about one image share what the language model reads of it.

    Args:
        asked: pairs of an image and the question or questions about it.
        template: the prompt around a question, with {question} in it; by default the model's own.
        batch_size: images that are encoded together.

    Raises:
        OptionError: a question is empty, or an option is unknown or out of range.
    """
    writer = writer_of(self, "ask")
    chosen = answer_options(self.parts, options, method=ask_many)
    return writer.answer_many(asked, partial(writer.question, template=template), chosen, batch_size)


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

    Options that you leave out are those of answers.

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
    writer_of(self, "ask")
    chosen = answer_options(self.parts, options, stream=stream, method=generate)
    if stream:
        return _stream(self, images, prompts, details, str, chosen)
    return _texts(self, images, prompts, details, str, chosen, batch_size)


def _stream(
    self: Composed,
    images: ImageInput | Images,
    texts: str | Texts,
    details: bool,
    prompt_of: Callable[[str], str],
    options: ResolvedOptions,
) -> Pieces:
    if not is_one(images) or not isinstance(texts, str) or yes_or_no("details", details):
        raise OptionError("one text about one image can be streamed: give one image and one text, and no details")
    prompt = prompt_of(texts)  # a wrong one is an error before the image is encoded
    return writer_of(self, "ask").stream(self.encode_image(cast(ImageInput, images)), prompt, options)


def _texts(
    self: Composed,
    images: ImageInput | Images,
    texts: str | Texts,
    details: bool,
    prompt_of: Callable[[str], str],
    options: ResolvedOptions,
    batch_size: int,
) -> Any:
    one_text, own, details = isinstance(texts, str), text_list(texts), yes_or_no("details", details)
    asked = ((image, own) for image in image_list(images))

    def pick(answered: Answered) -> Any:
        row = [answer if details else answer.text for answer in answered.answers]
        return row[0] if one_text else row

    return collect(writer_of(self, "ask").answer_many(asked, prompt_of, options, batch_size), pick, is_one(images))
