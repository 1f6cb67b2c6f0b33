"""Images that a text of outside names: an agent's, a client's. It says what such a text may name."""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote_to_bytes, urlsplit

from openblip.errors import ImageError, OptionError, given_path, printable, whole_number
from openblip.files import open_file, open_in_folder
from openblip.images.decode import loaded
from openblip.images.sources import describe_source, is_address, open_encoded
from openblip.web.policy import UrlPolicy

if TYPE_CHECKING:
    from PIL import Image

MAX_BYTES = 100 * 2**20
_DATA = re.compile(r"data:[^,]{0,200},", re.IGNORECASE)
_ENCODED = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "SUkqA", "TU0AK", "JVBERi0")
"""How JPEG, PNG, GIF, WebP, TIFF and PDF files begin in base64."""
_LEAST_ENCODED = 64
"""Characters: no image is smaller, and few paths that begin like base64 are longer."""
_SEEN = 5_000
"""Characters that are looked at to tell base64 from a path, more than a path has."""
_BASE64 = re.compile(r"[A-Za-z0-9+/\-_\s]+={0,2}\s*")


@dataclass(frozen=True)
class ImageReferences:
    """What texts that come from outside may name as an image.

    A text is a `data:` URL, the base64 of an image file, a web address, a path, or a `file:` URL of this machine.

    Attributes:
        root: the folder that files have to lie in, links followed; relative paths are relative to it. None: any file.
        paths: whether files of this machine may be named at all.
        urls: which web addresses are fetched; none unless it names hosts.
        max_bytes: of an encoded image.

    Raises:
        OptionError: there is no such folder, or a limit is no number.
    """

    root: str | os.PathLike[str] | None = None
    paths: bool = True
    urls: UrlPolicy = field(default_factory=UrlPolicy)
    max_bytes: int = MAX_BYTES

    def __post_init__(self) -> None:
        whole_number("max_bytes", self.max_bytes, 1)
        if not isinstance(self.urls, UrlPolicy):
            raise OptionError(f"urls is {self.urls!r}: give an openblip.UrlPolicy, which names hosts")
        if self.root is not None:
            folder = given_path("the folder of images", self.root).resolve()
            if not folder.is_dir():
                raise OptionError(f"{folder} is no folder: give the one that images may be read from")
            object.__setattr__(self, "root", folder)

    def load(self, text: str) -> Image.Image:
        """The image as `openblip.load_image` reads it. Raises ImageError, which names it and says what to do."""
        with loaded(io.BytesIO(self.read(text)), name_of(text)) as image:
            return image

    def read(self, text: str) -> bytes:
        """The encoded file. Raises ImageError."""
        if not isinstance(text, str):
            raise ImageError(describe_source(text), "is no text that names an image; pass a path, a URL or base64")
        name = name_of(text)
        if not text.strip() or "\0" in text:
            raise ImageError(name, "names no image; pass a path, a URL or base64")
        if (start := _DATA.match(text)) or _looks_encoded(text):
            return self._decoded(text, start[0] if start else None, name)
        if text[:5].lower() == "file:":
            text = _path_of(text, name)
        elif is_address(text):
            with open_encoded(text, name, self.urls) as stream:
                return self._limited(stream, name)
        if not self.paths:
            raise ImageError(name, "files of this machine are not read here; pass a data: URL or base64")
        with self._open(text, name) as file:
            return self._limited(file, name)

    def _decoded(self, text: str, start: str | None, name: str) -> bytes:
        if len(text) > self.max_bytes * 3:  # percent signs triple a file; no more of it is looked at
            raise self._too_large(name)
        body = text if start is None else text[len(start) :]
        try:
            if start is not None and not start[:-1].lower().endswith(";base64"):
                content = unquote_to_bytes(body)
            else:
                packed = "".join(body.split()).rstrip("=").replace("-", "+").replace("_", "/")
                content = base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
        except (binascii.Error, ValueError) as error:
            raise ImageError(name, f"is no valid base64 ({error}); encode the file again") from error
        if len(content) > self.max_bytes:
            raise self._too_large(name)
        return content

    def _limited(self, stream: BinaryIO, name: str) -> bytes:
        content = stream.read(self.max_bytes + 1)
        if len(content) > self.max_bytes:
            raise self._too_large(name)
        return content

    def _too_large(self, name: str) -> ImageError:
        return ImageError(name, f"is larger than {self.max_bytes} bytes; make it smaller")

    def _open(self, text: str, name: str) -> BinaryIO:
        if self.root is None:
            return open_encoded(text, name)
        root = Path(self.root)
        try:
            place = Path(os.path.realpath(root / text))
        except (OSError, ValueError) as error:
            raise ImageError(name, "is no path; check it") from error
        if place == root or root not in place.parents:
            # The same whether it is there or not: who asks learns nothing of what lies outside.
            raise ImageError(name, "lies outside of the folder that images are read from; pass a file in it")
        try:
            return _open_below(root, place)
        except FileNotFoundError as error:
            raise ImageError(name, "there is no such file in the folder that images are read from") from error
        except IsADirectoryError as error:
            raise ImageError(name, "is a folder, not an image; pass a file in it") from error
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ImageError(name, f"cannot be opened ({reason}); pass another file") from error


def name_of(text: object) -> str:
    """What errors and results call an image that a text names."""
    if isinstance(text, str) and _looks_encoded(text):
        return f"<{len(text)} characters of base64>"
    if isinstance(text, str) and _DATA.match(text):
        return printable(text[:40]) + "…"
    return describe_source(text)


def _looks_encoded(text: str) -> bool:
    start = text[:_SEEN].lstrip()
    return len(start) >= _LEAST_ENCODED and start.startswith(_ENCODED) and _BASE64.fullmatch(start) is not None


def _path_of(text: str, name: str) -> str:
    from urllib.request import url2pathname

    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise ImageError(name, "is not a valid address; pass a path") from error
    if parts.netloc not in ("", "localhost"):
        raise ImageError(name, "is a file of another machine; pass a path of this one")
    return url2pathname(parts.path)


def _open_below(root: Path, place: Path) -> BinaryIO:
    """Open a file in a folder, along a path that had no links a moment ago: one that has come since is not followed."""
    if os.open not in os.supports_dir_fd or not hasattr(os, "O_NOFOLLOW"):
        return open_file(place)
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        *folders, last = place.relative_to(root).parts
        for part in folders:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = inner
        return open_in_folder(folder, last, place)
    finally:
        os.close(folder)
