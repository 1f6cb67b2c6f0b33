"""Keys: who has one may ask; a middleware, so that nothing of a request is read before."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from openblip.errors import OptionError, given_path
from openblip.files import read_text
from openblip.serve.bodies import BodyReader, refuse
from openblip.serve.errors import Refusal

FREE = frozenset({"/health", "/ready"})
"""What probes read, which have no keys."""
SHORTEST = 16
OWN_SITE = frozenset({b"none", b"same-origin"})
"""Where requests come from that a browser may send a password with: no other page makes it do so."""


def read_keys(path: str | Path) -> list[bytes]:
    """The keys of a file, one a line, as digests; empty lines and those that begin with # do not count.

    Raises:
        OptionError: the file cannot be read, has no key, or one that could be guessed.
    """
    place = given_path("the file of keys", path)
    try:
        lines = [line.strip() for line in read_text(place).splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionError(f"the file of keys {place} cannot be read ({reason}): give another") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise OptionError(f"the file of keys {place} has no key: write one a line")
    for number, line in enumerate(lines, 1):
        if line in keys and (len(line) < SHORTEST or not line.isascii() or len(line.split()) > 1):
            raise OptionError(
                f"line {number} of {place} is no key: give at least {SHORTEST} letters and digits, as "
                "`openssl rand -hex 32` prints them"
            )
    return [_digest(key.encode()) for key in keys]


class Keys:
    """Refuses requests without a key: `Authorization: Bearer KEY`, or `X-API-Key: KEY`.

    Args:
        login: browsers may ask their users for a key, as a password beside any name. They send it with requests of our
            own page alone.
    """

    def __init__(self, app: ASGIApp, keys: list[bytes], login: bool = False) -> None:
        self.app = app
        self.keys = keys
        self.login = login

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in FREE and not self._knows(dict(scope["headers"])):
            given = b"authorization" in dict(scope["headers"]) or b"x-api-key" in dict(scope["headers"])
            message = "this key is unknown" if given else "this server wants a key"
            refusal = Refusal(
                401,
                f"{message}: send the header 'Authorization: Bearer KEY' with one that the server was started with",
                "unknown_key" if given else "no_key",
                headers={"WWW-Authenticate": 'Basic realm="OpenBLIP: any name, and a key as the password"'}
                if self.login
                else {"WWW-Authenticate": "Bearer"},
            )
            await refuse(scope, BodyReader(receive), send, refusal)
            return
        await self.app(scope, receive, send)

    def _knows(self, headers: dict[bytes, bytes]) -> bool:
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        kind = scheme.lower()
        if kind == b"basic" and self.login and headers.get(b"sec-fetch-site", b"none") in OWN_SITE:
            given = _digest(_password(key))
        else:
            given = _digest(key.strip() if kind == b"bearer" else headers.get(b"x-api-key", b""))
        # Each key is compared, in a time that says nothing of how much of it is right.
        return sum(hmac.compare_digest(given, key) for key in self.keys) > 0


def _password(credentials: bytes) -> bytes:
    try:
        return base64.b64decode(credentials.strip(), validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
