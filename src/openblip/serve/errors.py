"""What a server answers when it does not do what it was asked: one JSON shape, which is also OpenAI's."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import Send

from openblip.errors import CheckpointError, ImageError, OpenBlipError, OptionError, printable

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "too_large_error",
    415: "unsupported_media_type_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    499: "client_left",
    500: "server_error",
    503: "overloaded_error",
    504: "timeout_error",
}
CODES = {405: "method_not_allowed"}
SENTENCES = {
    404: "there is nothing at this path: GET /openapi.json lists what there is",
    405: "this path does not take this method: GET /openapi.json lists what there is",
    500: "the server failed; its log has the reason under the request id",
}
NO_ROOM = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
NO_ROOM_SECONDS = 30


class Refusal(HTTPException):
    """An answer that is no result.

    Attributes:
        code: for programs: which limit, or what is wrong.
        param: the field of the request that it is about.
    """

    def __init__(
        self,
        status: int,
        message: object,
        code: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, printable(str(message), 1000, 300), headers)
        self.code = code
        self.param = param


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


def unreadable() -> Refusal:
    """A body that is no JSON."""
    return Refusal(422, "the body of the request is no JSON that can be read: check how it was made", "bad_json")


def over_limit(status: int, what: str, name: str, value: object, param: str | None = None) -> Refusal:
    """A refusal that says which limit was passed, and how whoever runs the server raises it."""
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    message = f"{what}: the limit {name} is {shown}; whoever runs the server raises it with --limit {name}=VALUE"
    return Refusal(status, message, name, param=param)


def busy(seconds: float, message: str, code: str, status: int = 429) -> Refusal:
    """Whoever comes back later may be served.

    Args:
        seconds: until then; said as whole seconds from 1 to 30, as clients give up on longer ones.
    """
    wait = min(30, max(1, math.ceil(seconds)))
    return Refusal(status, message, code, headers={"Retry-After": str(wait)})


def refusal_of(error: Exception) -> Refusal:
    """How an error of the library, or of the framework, is answered."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return busy(
            NO_ROOM_SECONDS,
            "the server's disk for temporary files is full: try again later; whoever runs it has to make room "
            "there, or to name another folder with TMPDIR",
            "disk_full",
            503,
        )
    if isinstance(error, HTTPException) and error.status_code == 400:
        return unreadable()  # all that the framework answers so
    if isinstance(error, HTTPException):
        message = SENTENCES.get(error.status_code) or str(error.detail)
        kind = CODES.get(error.status_code) or KINDS.get(error.status_code, "error").removesuffix("_error")
        return Refusal(error.status_code, message, kind, headers=error.headers)
    if isinstance(error, ImageError):
        return Refusal(422, error, "bad_image", param="image")
    if isinstance(error, CheckpointError):
        return Refusal(422, error, "no_such_ability", param="model")
    if isinstance(error, OptionError):
        return Refusal(422, error, "bad_option")
    if isinstance(error, OpenBlipError):
        return Refusal(422, error, "bad_request")
    return Refusal(500, SENTENCES[500], "failed")


def body_of(refusal: Refusal, request_id: str) -> dict[str, Any]:
    """The JSON of a refusal."""
    return {
        "error": {
            "message": refusal.detail,
            "type": KINDS.get(refusal.status_code, "error"),
            "code": refusal.code,
            "param": refusal.param,
        },
        "request_id": request_id,
    }


async def send_refusal(send: Send, refusal: Refusal, request_id: str, *, more: bool = False) -> None:
    """Answer with a refusal.

    Args:
        more: leave the answer open: all of it is sent, and the caller ends it.
    """
    content = json.dumps(body_of(refusal, request_id)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in (refusal.headers or {}).items()]
    await send({"type": "http.response.start", "status": refusal.status_code, "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": more})
