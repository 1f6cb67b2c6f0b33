"""Messages as OpenAI's clients send them -> one image, what was said of it, and what is asked now."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from openblip.models.abilities import require
from openblip.serve.errors import Refusal
from openblip.serve.options import check_text
from openblip.serve.uploads import Source, source_of
from openblip.text import clean_question

if TYPE_CHECKING:
    from openblip.serve.service import Service

USERS = ("user", "tool", "function")
"""Roles whose images and texts are asked about: agents send images as what a tool returned."""
HISTORY, TURNS = 4, 32
"""Times the longest text, and turns: of what was said earlier, no more is looked at."""
MESSAGES, PARTS = 1024, 256
"""Messages of a conversation and parts of a message, at most: what is larger takes long to be looked at."""


class Message(BaseModel):
    """One message; the content is a text, or parts of type text and image_url in any order."""

    model_config = ConfigDict(extra="allow")

    role: str = Field(examples=["user"])
    content: str | Annotated[list[dict[str, Any] | str], Field(max_length=PARTS, fail_fast=True)] | None = None


@dataclass(eq=False)
class Conversation:
    """What is asked, about which image.

    Attributes:
        image: the last one that was sent.
        turns: questions and answers about it, in order.
        question: what is asked now; None for an image without words.
    """

    image: Source
    turns: list[tuple[str, str]] = field(default_factory=list)
    question: str | None = None


def read_messages(messages: list[Message]) -> Conversation:
    """The conversation in messages. System messages are left out: no model here was taught to follow them.

    What was said before the last image came is of another image, and left out, too; an image that is sent again with
    every turn is the same one.

    Raises:
        Refusal: there is no image, several in one message, one at no address that is read, or no question at the end.
    """
    address: str | None = None
    turns: list[tuple[str, str]] = []
    asked: str | None = None
    for place, message in enumerate(messages):
        texts, addresses = _parts(message, f"messages.{place}.content")
        if message.role == "assistant":
            if asked is not None and texts:
                turns.append((asked, " ".join(texts)))
                asked = None
            continue
        if message.role not in USERS:
            continue
        if len(set(addresses)) > 1:
            raise Refusal(
                422,
                f"the message has {len(set(addresses))} images, and the model answers about one at a time: ask about "
                "each in a request of its own",
                "several_images",
                param=f"messages.{place}.content",
            )
        if addresses and addresses[0] != address:
            address, turns, asked = addresses[0], [], None
        if texts:
            # What the user said twice in a row, without an answer, is one question.
            asked = " ".join([*([asked] if asked else []), *texts])
    if address is None:
        raise Refusal(
            422,
            "there is no image in the messages: send one as a part of the type image_url, with a data: URL",
            "no_image",
            param="messages",
        )
    if asked is None and turns:
        raise Refusal(
            422, "the last message asks nothing: end with a message of the user", "no_question", param="messages"
        )
    return Conversation(source_of(address, "messages"), turns, asked)


def _parts(message: Message, where: str) -> tuple[list[str], list[str]]:
    """The texts and the addresses of images in a message. Raises a Refusal for a part of another type."""
    content = [message.content] if isinstance(message.content, str) else message.content or []
    texts: list[str] = []
    addresses: list[str] = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type", "image_url" if "image_url" in part else "text")
        if kind in ("text", "input_text"):
            text = part.get("text") or ""
            if not isinstance(text, str):
                raise Refusal(
                    422,
                    'a part of the type text has none: send {"type": "text", "text": "..."}',
                    "bad_part",
                    param=where,
                )
            texts.append(text)
        elif kind in ("image_url", "input_image"):
            addresses.append(address_of(part.get("image_url"), where))
        elif kind == "refusal":
            continue
        else:
            raise Refusal(
                422, f"parts of the type {kind!r:.50} are not read: send text and image_url", "bad_part", param=where
            )
    return [text.strip() for text in texts if text.strip()], addresses


def address_of(value: Any, where: str) -> str:
    """The address of an image, which stands alone or in an object. Raises a Refusal where there is none."""
    address = value.get("url") if isinstance(value, dict) else value
    if not isinstance(address, str):
        raise Refusal(
            422, 'image_url has no address: send {"url": "data:image/jpeg;base64,..."}', "no_data_url", param=where
        )
    return address


def prompts_of(service: Service, conversation: Conversation) -> tuple[str, ...]:
    """What the model may read, best first: with all turns, without the oldest, and so on.

    Raises:
        Refusal: the question is too long.
        OptionError: it has no words.
        CheckpointError: the model does not answer, or holds no conversation.
    """
    parts = service.model.parts
    if conversation.question is None:
        return (parts.prompts.caption,)
    writer = service.model.components.writer
    require(service.model, "ask")
    assert writer is not None
    question = check_text(service.limits, "question", conversation.question)
    if not conversation.turns:
        return (writer.question(question),)
    require(service.model, "chat")
    writer.question(question)  # an empty one is an error
    turns: list[tuple[str, str]] = []
    room = HISTORY * service.limits.text_chars
    for asked, answer in reversed(conversation.turns[-TURNS:]):
        room -= len(asked) + len(answer)
        if room < 0:
            break  # what no model has positions for
        turns.insert(0, (clean_question(asked), answer))
    cleaned = clean_question(question)
    return tuple(parts.prompts.chat(turns[start:], cleaned) for start in range(len(turns) + 1))
