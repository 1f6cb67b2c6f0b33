"""Captions and answers that are written together although they are asked for at different times."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from openblip.errors import ImageError, OptionError, whole_number
from openblip.generation.continuous import MOST_TEXTS, MOST_TOKENS, ContinuousBatch
from openblip.generation.options import ResolvedOptions
from openblip.images.encoded_image import EncodedImage, ImageInput
from openblip.models.abilities import writer_of
from openblip.results import Answered, Captioned, DecodeEvent, GeneratedText
from openblip.text import GrowingText, one_text, text_list

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from openblip.generation.options import TextOptions
    from openblip.models.abilities import Ability, Composed
    from openblip.models.signatures import Texts
    from openblip.models.writer import Writer

IMAGES_A_STEP = 16
"""New images that a step encodes at most: what is being written waits meanwhile."""


@dataclass(eq=False)
class _Work:
    """Something that was asked for.

    Attributes:
        texts: captions' prompts, or questions, as they were given; prompts: what the language model reads.
        found: the texts of each prompt that is done.
        keys: of the prompts that are decoded, and which each is.
    """

    id: int
    image: ImageInput
    texts: list[str]
    prompts: list[str]
    options: ResolvedOptions
    captions: bool
    growing: GrowingText | None
    source: str = ""
    found: dict[int, list[GeneratedText]] = field(default_factory=dict)
    keys: dict[int, int] = field(default_factory=dict)
    encoded: EncodedImage | None = None

    def result(self, error: ImageError | None = None) -> Captioned | Answered:
        rows = [] if error is not None else [self.found[place] for place in range(len(self.prompts))]
        if self.captions:
            return Captioned(self.source, tuple(rows[0]) if rows else (), error)
        return Answered(self.source, tuple(self.texts), tuple(best for best, *_ in rows), error)


class DecodeSession:
    """Texts of a model that are written together, by continuous batching. Make one with `Model.decode_session`.

    What you ask for joins what is being written, and leaves as soon as it is done: nothing waits for the longest text
    of a batch. Each result is what `Model.caption` and `Model.ask` give for it alone, with options of its own. One
    thread at a time may use a session, and the model's other methods between steps.
    """

    def __init__(self, model: Composed, *, max_texts: int = MOST_TEXTS, max_tokens: int = MOST_TOKENS) -> None:
        self.model = model
        captions: Ability = "caption" if "ask" not in model.abilities else "ask"
        self._writer: Writer = writer_of(model, captions)
        self._batch = ContinuousBatch(
            self._writer.language_model,
            whole_number("max_texts", max_texts, 1),
            whole_number("max_tokens", max_tokens, 1),
        )
        self._work: dict[int, _Work] = {}
        self._unread: deque[_Work] = deque()
        self._by_key: dict[int, _Work] = {}
        self._ids = 0

    def caption(
        self,
        image: ImageInput,
        *,
        prompt: str | None = None,
        num_captions: int = 1,
        stream: bool = False,
        **options: Unpack[TextOptions],
    ) -> int:
        """Ask for captions of an image. Returns the id that their events have, which end in a `Captioned`.

        Args:
            prompt, num_captions, options: see `Model.caption`.
            stream: give the pieces of the caption, too, as they are written. The search is greedy unless the options
                sample.

        Raises:
            CheckpointError: the model does not caption.
            OptionError: an option is unknown or out of range, or another model has encoded the image.
        """
        writer = writer_of(self.model, "caption")
        defaults = self.model.parts.defaults.captions
        chosen = writer.options(options, defaults, texts=num_captions, stream=stream, method=self.caption)
        text = self.model.parts.prompts.caption if prompt is None else one_text(prompt, "the prompt")
        return self._join(image, [text], [text], chosen, stream, captions=True)

    def ask(
        self,
        image: ImageInput,
        questions: str | Texts,
        *,
        template: str | None = None,
        stream: bool = False,
        **options: Unpack[TextOptions],
    ) -> int:
        """Ask a question or several about an image. Returns the id of their events, which end in an `Answered`.

        Args:
            template, options: see `Model.ask`.
            stream: of one question, as of `caption`.

        Raises:
            CheckpointError: the model does not answer.
            OptionError: a question is empty, an option is unknown or out of range, or another model has encoded the
                image.
        """
        writer = writer_of(self.model, "ask")
        chosen = writer.options(options, self.model.parts.defaults.answers, stream=stream, method=self.ask)
        return self._prompts(image, questions, partial(writer.question, template=template), chosen, stream)

    def generate(
        self, image: ImageInput, prompts: str | Texts, *, stream: bool = False, **options: Unpack[TextOptions]
    ) -> int:
        """Continue a prompt about an image, or several, word for word, as `Model.generate` does.

        Returns the id of the events, which end in an `Answered` whose `questions` are the prompts.

        Raises:
            OptionError: an option is unknown or out of range, or another model has encoded the image.
        """
        defaults = self.model.parts.defaults
        usual = defaults.answers if "ask" in self.model.abilities else defaults.captions
        chosen = self._writer.options(options, usual, stream=stream, method=self.generate)
        return self._prompts(image, prompts, str, chosen, stream)

    def step(self) -> list[DecodeEvent]:
        """Encode and read what has joined, or write one more token of each text: what has come of it.

        A step that has nothing to do returns at once: see `running`. If one raises an error, nothing that was asked
        for runs any more, and the session can be used again.
        """
        events: list[DecodeEvent] = []
        try:
            if self._unread and not self._batch.waiting:
                self._read_images(events)
            advance = self._batch.step()
        except BaseException:
            self.cancel_all()
            raise
        for key, token in advance.tokens:
            work = self._by_key[key]
            if work.growing is not None and (piece := work.growing.add(token)):
                events.append(DecodeEvent(work.id, piece))
        for key, texts in advance.finished.items():
            work = self._by_key.pop(key)
            work.found[work.keys[key]] = self._writer.generated(texts)
            if len(work.found) == len(work.prompts):
                self._finish(work, events)
        return events

    def cancel(self, id: int) -> bool:
        """Give up something that was asked for, at once; its events end. Returns whether it had not ended before."""
        work = self._work.pop(id, None)
        if work is None:
            return False
        self._unread = deque(one for one in self._unread if one is not work)
        for key in work.keys:
            self._batch.cancel(key)
            self._by_key.pop(key, None)
        return True

    def cancel_all(self) -> None:
        """Give up everything."""
        self._batch.clear()
        self._work.clear()
        self._unread.clear()
        self._by_key.clear()

    @property
    def running(self) -> list[int]:
        """Ids of what has not ended, in the order in which it was asked for; go on with `step` while there is any."""
        return list(self._work)

    @property
    def texts(self) -> int:
        """How many texts are being written now; beams and samples count one each."""
        return self._batch.texts

    @property
    def nbytes(self) -> int:
        """Memory of the keys and values of texts that are being written."""
        return self._batch.nbytes

    def _prompts(
        self,
        image: ImageInput,
        texts: str | Texts,
        prompt_of: Callable[[str], str],
        options: ResolvedOptions,
        stream: bool,
    ) -> int:
        own = text_list(texts)
        if not own or (stream and len(own) != 1):
            raise OptionError("one text about one image can be streamed" if own else "nothing is asked: give a text")
        return self._join(image, own, [prompt_of(text) for text in own], options, stream, captions=False)

    def _join(
        self,
        image: ImageInput,
        texts: list[str],
        prompts: list[str],
        options: ResolvedOptions,
        stream: bool,
        *,
        captions: bool,
    ) -> int:
        if isinstance(image, EncodedImage):
            self.model.encode_image(image)  # an error now if another model has encoded it
        self._ids += 1
        growing = GrowingText(self._writer.tokenizer) if stream else None
        work = _Work(self._ids, image, texts, prompts, options, captions, growing)
        self._work[work.id] = work
        self._unread.append(work)
        return work.id

    def _read_images(self, events: list[DecodeEvent]) -> None:
        """Encode the next images together, and hand what is asked about them on."""
        works = [self._unread.popleft() for _ in range(min(IMAGES_A_STEP, len(self._unread)))]
        (batch,) = self._writer.encoder.batches([work.image for work in works], len(works))
        self._writer.prepare(batch.images)
        for work, (source, image) in zip(works, batch.join(batch.images), strict=True):
            work.source = source
            try:
                if isinstance(image, ImageError):
                    raise image
                self._hand_on(work, image)
            except (ImageError, OptionError) as error:
                self.cancel(work.id)
                result = work.result(error) if isinstance(error, ImageError) else None
                events.append(DecodeEvent(work.id, result=result, error=error))

    def _hand_on(self, work: _Work, image: EncodedImage) -> None:
        """Raises OptionError when a prompt is too long for the model."""
        work.encoded = image
        for place, request in enumerate(
            self._writer.requests(image, work.prompts, work.options, caption=work.captions)
        ):
            key = self._batch.join(request)
            work.keys[key] = place
            self._by_key[key] = work

    def _finish(self, work: _Work, events: list[DecodeEvent]) -> None:
        del self._work[work.id]
        if work.growing is not None and (piece := work.growing.end()):
            events.append(DecodeEvent(work.id, piece))
        if work.encoded is not None:
            # Keys and values of its visual prompt may have been computed meanwhile.
            self._writer.encoder.cache.keep(work.encoded)
        events.append(DecodeEvent(work.id, result=work.result()))
