"""What the web page does with a service; how it looks is `openblip.serve.page`'s business."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openblip.errors import CheckpointError, OpenBlipError, OptionError, printable
from openblip.images.decode import load_image
from openblip.images.heatmap import draw_heatmap
from openblip.jobs.rows import Row
from openblip.jobs.text_output import csv_lines
from openblip.jobs.text_tables import ListTable
from openblip.matching.matcher import TEMPLATES
from openblip.models.abilities import Ability
from openblip.results import Classified, Match
from openblip.serve.conversation import Conversation, prompts_of
from openblip.serve.errors import Refusal, over_limit
from openblip.serve.model_jobs import Call, Classify, MatchTexts, Prompted, Streamed, Written
from openblip.serve.options import check_text, write_job
from openblip.serve.service import Service
from openblip.serve.uploads import Upload

if TYPE_CHECKING:
    from PIL import Image

    from openblip.images.encoded_image import ReadImage
    from openblip.models.model import Model
    from openblip.search import Index
    from openblip.search.found import Found

SHOWN, THUMBNAIL = 1024, 400
"""The longer sides of a heatmap, and of a photo that was found, in pixels."""
TOGETHER = 8
"""Photos of a batch that are sent to the model at once: its table grows by so many."""
PATIENCE = 20
"""Times that a batch comes again when the server is busy, before its photos are given up."""


@dataclass(frozen=True)
class Described:
    """A photo of a batch, and what was written about it, or why nothing was."""

    name: str
    text: str | None
    error: str | None = None


class PageWork:
    """Everything that buttons of the page do. Images are files that the page has received.

    All of it raises a Refusal, or an OpenBlipError, whose text is for the user.
    """

    def __init__(self, service: Service, index: Index | None = None) -> None:
        self.service = service
        self.index = index

    @property
    def abilities(self) -> Sequence[Ability]:
        return self.service.model.abilities

    async def caption(self, path: str | None, prompt: str = "", captions: int = 1) -> list[str]:
        """Captions of a photo, best first; `prompt` is how they begin."""
        upload = await _upload(path)
        job = write_job(self.service.model, self.service.limits, "caption", {}, texts=captions)
        begun = prompt.strip() or self.service.model.parts.prompts.caption
        check_text(self.service.limits, "beginning", begun)
        with self.service.visit(None, 1) as visit:
            written: Written
            (written,) = await visit.run(job, [Prompted(await visit.read_one(upload), (begun,))])
        return [one.text for one in written.texts]

    async def answer(
        self, path: str | None, question: str, turns: Sequence[tuple[str, str]] = ()
    ) -> AsyncGenerator[str, None]:
        """The answer to a question as far as it is written, again and again.

        Args:
            turns: what was asked and answered before.
        """
        upload = await _upload(path)
        prompts = prompts_of(self.service, Conversation(upload, list(turns), question))
        job = write_job(self.service.model, self.service.limits, "ask", {}, stream=True)
        with self.service.visit(None, 1) as visit:
            image = await visit.read_one(upload)
            text = ""
            async with aclosing(await visit.stream(job, Prompted(image, prompts))) as pieces:
                async for piece in pieces:
                    if not isinstance(piece, Streamed):
                        text += piece
                        yield text

    async def ask(self, path: str | None, question: str) -> str:
        """The answer to one question."""
        upload = await _upload(path)
        prompts = prompts_of(self.service, Conversation(upload, [], question))
        job = write_job(self.service.model, self.service.limits, "ask", {})
        with self.service.visit(None, 1) as visit:
            written: Written
            (written,) = await visit.run(job, [Prompted(await visit.read_one(upload), prompts)])
        return written.texts[0].text

    async def match(self, path: str | None, texts: Sequence[str]) -> tuple[tuple[Match, ...], Image.Image | None]:
        """How well each text fits a photo, best first, and where in it the model sees the best one.

        The picture is None of a model that does not tell.
        """
        upload = await _upload(path)
        wanted = self._lines("text", texts, "there is no text to compare the photo with: write one a line")
        with self.service.visit(None, 1) as visit:
            image = await visit.read_one(upload)
            matches: tuple[Match, ...]
            (matches,) = await visit.run(MatchTexts(wanted), [image])
            ranked = tuple(sorted(matches, key=_fit, reverse=True))
            try:
                (heat,) = await visit.run(Call(partial(_heatmap, image=image, text=ranked[0].text)), [None])
            except CheckpointError:
                return ranked, None
        return ranked, await asyncio.to_thread(_drawn, upload, heat)

    async def classify(self, path: str | None, labels: Sequence[str]) -> tuple[Classified, ...]:
        """Which of the labels the photo shows, most probable first; the probabilities add up to 1."""
        upload = await _upload(path)
        wanted = self._lines("label", labels, "there are no labels to choose among: write one a line")
        with self.service.visit(None, 1) as visit:
            found: tuple[Classified, ...]
            (found,) = await visit.run(Classify(wanted, TEMPLATES), [await visit.read_one(upload)])
        return found

    def _lines(self, called: str, lines: Sequence[str], advice: str) -> tuple[str, ...]:
        """Texts that were written one a line. Raises an OptionError or a Refusal: there is none, or too much."""
        limits = self.service.limits
        wanted = tuple(check_text(limits, called, line.strip()) for line in lines if line.strip())
        if not wanted:
            raise OptionError(advice)
        if len(wanted) > limits.texts:
            raise over_limit(422, f"there are {len(wanted)} {called}s", "texts", limits.texts)
        return wanted

    async def search(self, text: str, path: str | None, top: int) -> list[tuple[Image.Image, str]]:
        """Photos of the index that fit a text, or are like a photo, with their names and scores, best first."""
        index = self.index
        assert index is not None
        text = check_text(self.service.limits, "text", text.strip())
        if bool(text) == (path is not None):
            raise OptionError("say what to look for: write words, or choose a photo, one of both")
        upload = None if path is None else await _upload(path)
        with self.service.visit(None, 1) as visit:
            if upload is not None:
                await visit.read_one(upload)  # within the limits, or it is refused
            query: dict[str, Any] = {"text": text} if upload is None else {"image": upload.data}
            found: list[Found]
            (found,) = await visit.run(Call(lambda _: index.search(**query, top=top)), [None])
        return await asyncio.to_thread(_thumbnails, found)

    async def describe(
        self, paths: Sequence[str], question: str, busy: Callable[[int], None] = lambda seconds: None
    ) -> AsyncGenerator[list[Described], None]:
        """Captions, or answers to one question, of many photos: all that are done, again and again.

        A photo that cannot be read has its error. While the server is busy, the batch waits.

        Args:
            busy: told the seconds that it waits.
        """
        service = self.service
        question = question.strip()
        job = write_job(service.model, service.limits, "ask" if question else "caption", {})
        if not paths:
            raise OptionError("there are no photos: choose some first")
        done: list[Described] = []
        together = min(TOGETHER, service.limits.images)
        for start in range(0, len(paths), together):
            uploads = [await _upload(path) for path in paths[start : start + together]]
            prompts = prompts_of(service, Conversation(uploads[0], [], question or None))
            for turn in range(PATIENCE + 1):
                try:
                    with self.service.visit(None, len(uploads)) as visit:
                        images = await visit.read(uploads)
                        good = [Prompted(image, prompts) for image in images if not isinstance(image, Exception)]
                        texts = iter([one.texts[0].text for one in await visit.run(job, good)] if good else [])
                    break
                except Refusal as refusal:
                    seconds = int((refusal.headers or {}).get("Retry-After", 0))
                    if not seconds or turn == PATIENCE or service.admission.draining:
                        raise
                    busy(seconds)
                    await asyncio.sleep(seconds)
            for upload, image in zip(uploads, images, strict=True):
                if isinstance(image, Exception):
                    done.append(Described(upload.name, None, told(image)))
                else:
                    done.append(Described(upload.name, next(texts)))
            yield list(done)


def write_csv(path: Path, rows: Sequence[Described]) -> None:
    """The table of a batch, as `openblip run` writes it."""
    table = ListTable((path,), None, "image")
    lines = csv_lines(
        table,
        ["image"],
        ["text", "error"],
        ((Row("", {"image": row.name}), {"text": row.text, "error": row.error}) for row in rows),
    )
    with path.open("wb") as file:
        file.writelines(lines)


def told(error: Exception) -> str:
    """What is wrong, in a sentence for the user."""
    return str(error.detail) if isinstance(error, Refusal) else printable(str(error), 1000, 300)


async def _upload(path: str | None) -> Upload:
    if path is None:
        raise OptionError("there is no photo: choose one first")
    place = Path(path)
    try:
        data = await asyncio.to_thread(place.read_bytes)
    except OSError as error:
        raise OptionError("the photo is not here any more: choose it again") from error
    return Upload(printable(place.name, 100, 30), data)


def _fit(match: Match) -> float:
    return match.itc if match.itm is None else match.itm


def _heatmap(model: Model, image: ReadImage, text: str) -> Any:
    (encoded,) = model.components.encoder.encode_read([image])
    return model.heatmap(encoded, text)


def _drawn(upload: Upload, heat: Any) -> Image.Image:
    image = load_image(upload.data)
    image.thumbnail((SHOWN, SHOWN))
    return draw_heatmap(image, heat)


def _thumbnails(found: Sequence[Found]) -> list[tuple[Image.Image, str]]:
    shown = []
    for one in found:
        try:
            image = load_image(one.path)
        except OpenBlipError:
            continue  # it could be read when it was indexed, and is being changed now
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        shown.append((image, f"{printable(Path(one.path).name, 60, 20)} ({one.score:.2f})"))
    return shown
