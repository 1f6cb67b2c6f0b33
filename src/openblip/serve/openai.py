"""OpenAI's API, as far as it is about images: their clients work unchanged."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal
from uuid import uuid4

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from openblip.errors import OpenBlipError
from openblip.generation.options import TextOptions
from openblip.models.abilities import require
from openblip.serve.conversation import MESSAGES, Message, address_of, prompts_of, read_messages
from openblip.serve.errors import ClientLeftError, Refusal, body_of, over_limit, refusal_of
from openblip.serve.model_jobs import EmbedImages, EmbedTexts, Prompted, Streamed, Write, Written, most_new_tokens
from openblip.serve.options import check_text, write_job
from openblip.serve.service import Service, Visit
from openblip.serve.uploads import Source, source_of

STOPS = 16
"""Texts that may end an answer."""
EXAMPLE_IMAGE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
"""A picture of one pixel."""
EXAMPLE_CHAT: dict[str, Any] = {
    "model": "mini",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": EXAMPLE_IMAGE}},
            ],
        }
    ],
}
EXAMPLE_EMBEDDINGS: dict[str, Any] = {"model": "mini", "input": ["a dog on the beach", {"image": EXAMPLE_IMAGE}]}


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="allow")

    include_usage: bool | None = None


class ChatRequest(BaseModel):
    """A chat completion; fields that are not listed are ignored."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"example": EXAMPLE_CHAT})

    messages: Annotated[list[Message], Field(min_length=1, max_length=MESSAGES, fail_fast=True)]
    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int | None = Field(1, ge=1)
    stop: str | Annotated[list[str], Field(max_length=STOPS, fail_fast=True)] | None = None


class EmbeddingsRequest(BaseModel):
    """Texts, and images as data: URLs or as objects {"image": URL}; fields that are not listed are ignored."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"example": EXAMPLE_EMBEDDINGS})

    input: str | dict[str, Any] | list[Any]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: int | None = Field(None, ge=1)


def openai_routes(service: Service) -> APIRouter:
    """The endpoints of a service below /v1."""
    router = APIRouter(prefix="/v1")
    model, limits = service.model, service.limits
    since = int(time.time())
    entry = {"id": service.name, "object": "model", "created": since, "owned_by": "openblip"}

    def check_model(name: str | None) -> None:
        if name not in (None, service.name):
            raise Refusal(
                404,
                f"there is no model {name!r:.100}: this server has {service.name}",
                "model_not_found",
                param="model",
            )

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """The one model of the server, and what it can do."""
        return {"object": "list", "data": [{**entry, "abilities": list(model.abilities)}]}

    @router.get("/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        """The model by its name."""
        check_model(name)
        return {**entry, "abilities": list(model.abilities)}

    @router.post("/chat/completions", responses={200: {"content": {"text/event-stream": {}}}})
    async def chat(asked: ChatRequest, request: Request) -> Response:
        """Answer about an image; an image without words is described."""
        check_model(asked.model)
        conversation = read_messages(asked.messages)
        ability: Literal["caption", "ask"] = "caption" if conversation.question is None else "ask"
        prompts = prompts_of(service, conversation)
        texts = asked.n or 1
        if texts > limits.captions:
            raise over_limit(422, f"{texts} choices were asked for", "captions", limits.captions, "n")
        if asked.stream and texts > 1:
            raise Refusal(422, "one choice can be streamed: leave out n, or stream", "several_streams", param="n")
        options = _options(asked, min(limits.new_tokens, most_new_tokens(model)))
        job = write_job(model, limits, ability, options, texts=texts, stream=bool(asked.stream))
        stops = [check_text(limits, "stop", one) for one in _stops(asked.stop)]
        reply = Reply(f"chatcmpl-{uuid4().hex}", int(time.time()), service.name, stops)
        visit = service.visit(request, 1)
        try:
            item = Prompted(await visit.read_one(conversation.image), prompts)
            if asked.stream:
                usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
                return await _streamed(reply, visit, job, item, usage, request.state.request_id)
            written: Written
            (written,) = await visit.run(job, [item])
        except BaseException:
            visit.end()
            raise
        visit.end()
        return JSONResponse(reply.whole(written))

    @router.post("/embeddings")
    async def embeddings(asked: EmbeddingsRequest, request: Request) -> Response:
        """One unit vector for each text and image; of an image with several vectors, their normalized mean."""
        check_model(asked.model)
        require(model, "embed")
        inputs = asked.input if isinstance(asked.input, list) else [asked.input]
        if not inputs:
            raise Refusal(422, "the input is empty: give texts or images", "no_input", param="input")
        if len(inputs) > limits.texts:
            raise over_limit(422, f"the input has {len(inputs)} parts", "texts", limits.texts, "input")
        read = [_input(one, place) for place, one in enumerate(inputs)]
        uploads = [one for one in read if not isinstance(one, str)]
        texts = [check_text(limits, "input", one) for one in read if isinstance(one, str)]
        with service.visit(request, len(uploads)) as visit:
            images = await visit.read(uploads) if uploads else []
            for image in images:
                if isinstance(image, Exception):
                    raise image
            pictures = iter([_mean(one) for one in await visit.run(EmbedImages(), images)] if images else [])
            words = iter(await visit.run(EmbedTexts(), texts) if texts else [])
        vectors: list[list[float]] = [next(words) if isinstance(one, str) else next(pictures) for one in read]
        if asked.dimensions not in (None, len(vectors[0])):
            raise Refusal(
                422,
                f"the vectors have {len(vectors[0])} dimensions: leave out dimensions",
                "dimensions",
                param="dimensions",
            )
        base64_wanted = asked.encoding_format == "base64"
        data = [
            {"object": "embedding", "index": place, "embedding": _packed(vector) if base64_wanted else vector}
            for place, vector in enumerate(vectors)
        ]
        count = sum(len(text.split()) for text in texts)
        usage = {"prompt_tokens": count, "total_tokens": count}
        return JSONResponse({"object": "list", "data": data, "model": service.name, "usage": usage})

    return router


class Reply:
    """Answers in OpenAI's words.

    Args:
        stops: texts before which an answer ends.
    """

    def __init__(self, id: str, created: int, model: str, stops: Sequence[str]) -> None:
        self.head = {"id": id, "created": created, "model": model}
        self.stops = stops

    def whole(self, written: Written) -> dict[str, Any]:
        choices = []
        for index, one in enumerate(written.texts):
            text, stopped = cut(one.text, self.stops)
            reason = "stop" if stopped or written.finished(one) else "length"
            message = {"role": "assistant", "content": text, "refusal": None}
            choices.append({"index": index, "message": message, "logprobs": None, "finish_reason": reason})
        usage = usage_of(written)
        return {**self.head, "object": "chat.completion", "choices": choices, "usage": usage}

    def chunk(self, delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._event({**self.head, "object": "chat.completion.chunk", "choices": [choice]})

    def usage(self, streamed: Streamed) -> bytes:
        usage = usage_of(streamed)
        return self._event({**self.head, "object": "chat.completion.chunk", "choices": [], "usage": usage})

    def error(self, refusal: Refusal, request_id: str) -> bytes:
        return self._event(body_of(refusal, request_id))

    def _event(self, value: Any) -> bytes:
        return b"data: " + json.dumps(value).encode() + b"\n\n"


class _Events(StreamingResponse):
    """An answer as it is written, at whose end the visit is over; also where the client leaves before it begins."""

    def __init__(self, events: AsyncIterator[bytes], visit: Visit) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self.visit = visit
        self.is_whole = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.visit.end()
        if not self.is_whole:
            raise ClientLeftError

    async def stream_response(self, send: Send) -> None:
        await super().stream_response(send)
        self.is_whole = True


async def _streamed(reply: Reply, visit: Visit, job: Write, item: Prompted, usage: bool, request_id: str) -> _Events:
    pieces = await visit.stream(job, item)

    async def events() -> AsyncIterator[bytes]:
        shown, whole = "", ""
        try:
            async with aclosing(pieces):
                yield reply.chunk({"role": "assistant", "content": ""})
                async for piece in pieces:
                    if isinstance(piece, Streamed):
                        if whole != shown:
                            yield reply.chunk({"content": whole[len(shown) :]})
                        yield reply.chunk({}, "stop" if piece.finished else "length")
                        if usage:
                            yield reply.usage(piece)
                        break
                    whole, stopped = cut(whole + piece, reply.stops)
                    sure = whole if stopped else whole[: len(whole) - held_back(whole, reply.stops)]
                    if len(sure) > len(shown):
                        yield reply.chunk({"content": sure[len(shown) :]})
                        shown = sure
                    if stopped:
                        yield reply.chunk({}, "stop")
                        break
                yield b"data: [DONE]\n\n"
        except (OpenBlipError, Refusal, asyncio.TimeoutError) as error:
            # The answer has begun: what went wrong comes as an event, as OpenAI's clients expect it.
            late = isinstance(error, asyncio.TimeoutError)
            seconds = visit.limits.request_seconds
            refusal = (
                over_limit(504, "the answer took too long", "request_seconds", seconds) if late else refusal_of(error)
            )
            yield reply.error(refusal, request_id)

    return _Events(events(), visit)


def usage_of(done: Written | Streamed) -> dict[str, int]:
    return {"prompt_tokens": done.read, "completion_tokens": done.written, "total_tokens": done.read + done.written}


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """A text up to the first of its stops, and whether there is one."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def held_back(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of a text that may be the beginning of a stop."""
    most = 0
    for stop in stops:
        place = text.find(stop[0], max(0, len(text) - len(stop) + 1))
        while place >= 0 and not stop.startswith(text[place:]):
            place = text.find(stop[0], place + 1)
        if place >= 0:
            most = max(most, len(text) - place)
    return most


def _stops(stop: str | list[str] | None) -> list[str]:
    return [one for one in ([stop] if isinstance(stop, str) else stop or []) if one]


def _options(asked: ChatRequest, most_tokens: int) -> TextOptions:
    """OpenAI's options in the library's words."""
    options: TextOptions = {}
    longest = asked.max_completion_tokens or asked.max_tokens
    if longest is not None:
        options["max_new_tokens"] = min(longest, most_tokens)  # clients ask for thousands
    if asked.temperature:  # 0 is the model's own search
        options["temperature"] = asked.temperature
        if asked.top_p is not None:
            options["top_p"] = asked.top_p
    elif asked.temperature is None and asked.top_p not in (None, 1):
        options["top_p"] = asked.top_p
    if asked.seed is not None and options.keys() & {"temperature", "top_p"}:
        options["seed"] = asked.seed
    return options


def _input(value: Any, place: int) -> Source | str:
    where = f"input.{place}"
    if isinstance(value, str):
        return source_of(value, where) if value.startswith("data:image/") else value
    if isinstance(value, dict):
        if "text" in value and value.get("type", "text") in ("text", "input_text"):
            return str(value["text"])
        return source_of(address_of(value.get("image", value.get("image_url")), where), where)
    raise Refusal(
        422,
        "the input has something that is neither a text nor an image: send texts, not tokens "
        "(LangChain: check_embedding_ctx_length=False)",
        "bad_input",
        param=where,
    )


def _mean(vectors: list[list[float]]) -> list[float]:
    total = [sum(column) for column in zip(*vectors, strict=True)]
    length = sum(value * value for value in total) ** 0.5 or 1.0
    return [value / length for value in total]


def _packed(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
