"""The texts that the engine writes: new ones join those that are being written, and leave once they are done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from openblip.generation.continuous import ContinuousBatch
from openblip.serve.model_jobs import Prompted, Streamed, Write, Written, writer_for
from openblip.text import GrowingText

if TYPE_CHECKING:
    from openblip.images.encoded_image import EncodedImage
    from openblip.models.model import Model


class Wanted(Protocol):
    """Somebody who wants a text; see `openblip.serve.engine.Waiting`."""

    @property
    def job(self) -> Any: ...
    @property
    def item(self) -> Any: ...
    @property
    def put(self) -> Callable[[str], None] | None: ...
    @property
    def left(self) -> threading.Event: ...


Owner = TypeVar("Owner", bound=Wanted)


@dataclass(eq=False)
class _Text(Generic[Owner]):
    """Texts of one prompt that are being written, for all who asked the same meanwhile.

    Attributes:
        same: by which others find it; None where each is to have a text of its own.
        streamed, growing: of a stream.
    """

    owners: list[Owner]
    write: Write
    image: EncodedImage
    read: int
    same: Hashable | None
    streamed: Streamed | None = None
    growing: GrowingText | None = None


class Decoding(Generic[Owner]):
    """Continuous batching of the captions, answers and turns that an engine's clients want.

    Args:
        texts: that are written together at most; beams and samples count one each.
    """

    def __init__(self, model: Model, texts: int) -> None:
        self.model = model
        writer = model.components.writer
        self._batch = None if writer is None else ContinuousBatch(writer.language_model, max_texts=texts)
        self._texts: dict[int, _Text[Owner]] = {}
        self._same: dict[Hashable, int] = {}

    def __len__(self) -> int:
        """How many prompts' texts are being written."""
        return len(self._texts)

    @property
    def streams(self) -> int:
        return sum(text.streamed is not None for text in self._texts.values())

    def encode(self, owners: Sequence[Owner]) -> list[EncodedImage]:
        """Encode images as far as all texts about them have in common. Any thread may call this.

        An error that is raised is nobody's in particular.
        """
        writer = writer_for(self.model, owners[0].job.caption)
        images = writer.encoder.encode_read([owner.item.image for owner in owners])
        writer.prepare(images)
        return images

    def join(self, owners: Sequence[Owner], images: Sequence[EncodedImage]) -> list[tuple[Owner, Exception]]:
        """Take texts on; the same text is written once. Returns those that cannot be written.

        Args:
            images: of each owner, encoded.
        """
        batch = self._batch
        if batch is None:
            raise RuntimeError("the model writes no text")
        wrong: list[tuple[Owner, Exception]] = []
        for owner, image in zip(owners, images, strict=True):
            write: Write = owner.job
            item: Prompted = owner.item
            writer = writer_for(self.model, write.caption)
            prompt = write.prompt(writer, image, item.prompts)
            same = (write, image.key, prompt) if write.repeatable and owner.put is None else None
            if same in self._same:
                self._texts[self._same[same]].owners.append(owner)
                continue
            try:
                (request,) = writer.requests(image, [prompt], write.options, caption=write.caption)
                key = batch.join(request)
            except Exception as error:
                wrong.append((owner, error))
                continue
            read = writer.count_tokens(image, prompt)
            text = self._texts[key] = _Text([owner], write, image, read, same)
            if same is not None:
                self._same[same] = key
            if owner.put is not None:
                text.streamed = Streamed(read, write.options.max_new_tokens)
                text.growing = GrowingText(writer.tokenizer)
        return wrong

    def step(self) -> list[tuple[Owner, Written | Streamed]]:
        """Read what has joined, or go on with all texts by a token: those that are done."""
        if self._batch is None:
            return []
        advance = self._batch.step()
        for key, token in advance.tokens:
            text = self._texts[key]
            if text.streamed is not None and text.growing is not None:
                text.streamed.written += 1
                self._put(text, text.growing.add(token))
        done: list[tuple[Owner, Written | Streamed]] = []
        for key, found in advance.finished.items():
            text = self._remove(key)
            writer = writer_for(self.model, text.write.caption)
            # Keys and values of its visual prompt may have been computed meanwhile.
            writer.encoder.cache.keep(text.image)
            if text.streamed is not None and text.growing is not None:
                self._put(text, text.growing.end())
                done += [(owner, text.streamed) for owner in text.owners]
            else:
                written = Written(tuple(writer.generated(found)), text.read, text.write.options.max_new_tokens)
                done += [(owner, written) for owner in text.owners]
        return done

    def leave(self) -> list[Owner]:
        """Give up what nobody wants any more. Returns whose texts they were."""
        gone: list[Owner] = []
        for key, text in list(self._texts.items()):
            left = [owner for owner in text.owners if owner.left.is_set()]
            if left:
                gone += left
                text.owners = [owner for owner in text.owners if owner not in left]
                if not text.owners and self._batch is not None:
                    self._batch.cancel(key)
                    self._remove(key)
        return gone

    def give_up(self) -> list[Owner]:
        """Let go of all texts. Returns whose they were."""
        owners = [owner for text in self._texts.values() for owner in text.owners]
        if self._batch is not None:
            self._batch.clear()
        self._texts.clear()
        self._same.clear()
        return owners

    def _remove(self, key: int) -> _Text[Owner]:
        text = self._texts.pop(key)
        if text.same is not None:
            del self._same[text.same]
        return text

    @staticmethod
    def _put(text: _Text[Owner], piece: str) -> None:
        puts: Iterable[Callable[[str], None] | None] = (owner.put for owner in text.owners)
        for put in puts:
            if piece and put is not None:
                put(piece)
