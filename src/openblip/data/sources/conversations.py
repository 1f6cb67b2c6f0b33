"""Conversations about an image, as LLaVA and its followers write them, as questions with answers and as captions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from openblip.data.sources.cells import encodable
from openblip.errors import OpenBlipError

SPEAKERS = {"human": "user", "user": "user", "gpt": "model", "assistant": "model", "model": "model", "system": ""}
"""Who speaks in `from` or `role`; what "" says is left out."""
DESCRIBING = frozenset(
    "a account an analysis analyze and aspects before brief briefly break caption captioning characterize clarify "
    "clear clearly closely compact comprehensive concise concisely content contents create depict depiction describe "
    "description descriptive detail detailed details displayed down elaborate elements examine exhaustive explain "
    "explanation features following for generate give given great illustrate image important in informative its "
    "interpretation key manner me narrate narrative narration of offer one photo photograph picture please portray "
    "precision present presented provide provided relay render representing rich rundown s see sentence share short "
    "shown subsequent succinct summarize summary terse the this thorough through using various visual walk well what "
    "with write you your".split()
)
"""A request that has no other words asks for a description of the image, and its answer is a caption."""
_PLACEHOLDER = re.compile(r"\s*<(?:image|img|video)>\s*")


def read_turns(turns: object, place: str) -> Iterator[tuple[str, str]]:
    """What was asked and answered, turn by turn; "" was asked where the answer describes the image.

    Args:
        turns: a list of objects with `from` and `value`, or with `role` and `content`.
        place: for error messages.

    Raises:
        OpenBlipError: it is no conversation.
    """
    if not isinstance(turns, list):
        raise OpenBlipError(f"{place} has {type(turns).__name__} for a conversation: it takes a list of turns")
    asked: str | None = None
    for turn in turns:
        speaker, text = _spoken(turn, place)
        if speaker == "user":
            asked = text
        elif speaker == "model" and asked is not None:
            if text:
                yield ("" if asks_for_description(asked) else asked), text
            asked = None


def asks_for_description(request: str) -> bool:
    """Whether a request is for a description of the whole image, as all those of LLaVA's pre-training.

    >>> asks_for_description("Give a short and clear explanation of the subsequent image.")
    True
    >>> asks_for_description("Describe the man in the image.") or asks_for_description("What is this?")
    False
    """
    return "?" not in request and DESCRIBING.issuperset(re.findall(r"[^\W\d_]+", request.lower()))


def _spoken(turn: Any, place: str) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise OpenBlipError(f"{place} has {type(turn).__name__} for a turn: it takes objects with from and value")
    speaker, content = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
    if isinstance(content, list):  # of parts, each of a text or an image
        content = "\n".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    if not isinstance(speaker, str) or speaker.lower() not in SPEAKERS or not isinstance(content, str):
        raise OpenBlipError(
            f"{place} has a turn that is not understood: give from (human or gpt) and value, or role (user or "
            "assistant) and content"
        )
    return SPEAKERS[speaker.lower()], encodable(_PLACEHOLDER.sub("\n", content).strip())
